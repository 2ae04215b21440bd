"""Running a trained detector on images, data sets and videos."""
