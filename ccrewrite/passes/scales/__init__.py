"""Internal sizes: which are free, which change together, how they are set."""
