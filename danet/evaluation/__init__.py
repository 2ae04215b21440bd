"""Evaluation: matching of detections to ground truth, metrics with confidence intervals, plots and comparisons."""
