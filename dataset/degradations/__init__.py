"""Seeded degradations of faces, for training and for tests."""
