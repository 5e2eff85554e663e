"""Pages that show a run, or one reconstruction."""
