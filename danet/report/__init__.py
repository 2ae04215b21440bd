"""``danet report``: a run or a benchmark as one HTML file without external resources."""
