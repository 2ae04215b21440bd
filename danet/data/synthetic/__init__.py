"""Synthetic infrared scenes and videos with exact annotations."""
