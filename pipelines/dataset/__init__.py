"""Feedback and files in, training rows out, every row accounted for."""
