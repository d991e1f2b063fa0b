"""Readers, the store of features, and batches from it."""
