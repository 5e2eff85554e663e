"""What a checkpoint, or released weights, are on disk."""
