"""Runs a trained detector on images, datasets, videos and cameras."""
