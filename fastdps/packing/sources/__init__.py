"""Sources of samples to pack, one module per data set. `registry.open_source` makes them by name."""
