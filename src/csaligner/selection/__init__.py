"""Selection on the training pairs: choice of the untrained alignment, and a gate for training."""
