"""How a bundle run begins: configuration, processes, precision, faults, progress."""
