"""The library: a photo in, scored faces out; knows nothing of the other folders."""

__version__ = "0.2.0"
