"""Settings that choose themselves on the training pairs: the untrained alignment, and whether training is kept."""
