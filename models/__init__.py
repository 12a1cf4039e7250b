"""Networks, checkpoints, recognisers; knows no file list and no image file."""
