"""Data lists, metrics, handlers, checkpoints, reports and the command line."""
