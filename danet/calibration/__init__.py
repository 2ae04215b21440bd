"""Chooses thresholds from footage without targets, so that false alarms stay below a rate: ``danet calibrate``."""
