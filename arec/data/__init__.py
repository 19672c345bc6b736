"""Data sets: sources -> interactions -> k-core -> leave-one-out -> batches."""
