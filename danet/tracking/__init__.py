"""Tracks of targets over the frames of a video, and alarms that they raise."""
