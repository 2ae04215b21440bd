"""Helpers without knowledge of detection: commands, files, errors, images, drawing, progress, processes."""
