"""Measurements: `python -m benchmarks.ops`."""
