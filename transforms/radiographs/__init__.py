"""Radiographs from files: what they hold, what headers and looks say of them, and their place on the detector."""
