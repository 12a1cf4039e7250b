"""From labels to a trained network."""
