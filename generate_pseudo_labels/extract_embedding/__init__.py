"""From a list of images to recognition embeddings."""
