"""Random films: how a film differs from a DRR, drawn for a training, and of fixed strength for measuring."""
