"""Numbers, plots and pages about scores; knows no network and decodes no image."""
