"""The HTML page of scored faces."""
