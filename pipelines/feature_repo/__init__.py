"""Feast objects alone."""
