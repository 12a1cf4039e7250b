"""Error versus discard: numbers, tables, plots."""
