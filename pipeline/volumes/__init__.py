"""Putting a prediction into patient space, and into a file."""
