"""Synthetic infrared scenes and clips with exact annotations."""
