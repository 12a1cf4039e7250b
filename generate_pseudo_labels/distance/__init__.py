"""The mathematics of the labels: distances between similarity distributions."""
