"""``danet report``: a run, or a benchmark, as one HTML file that needs nothing else."""
