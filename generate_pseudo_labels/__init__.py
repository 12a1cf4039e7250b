"""From a list of images and their embeddings to SDD-FIQA pseudo-labels."""
