"""What ``danet.train`` is made of: the loop, the optimiser, the state that resumes it, the log."""
