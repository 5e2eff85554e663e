"""Figures of planes and radiographs that several rooms draw."""
