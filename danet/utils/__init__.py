"""Helpers that are independent of detection: command line, files, errors, images, drawing, progress, processes."""
