"""Data sets: sources -> interactions -> k-core -> leave-one-out -> batches."""

from arec.data.sources import absolute, load

__all__ = ["absolute", "load"]
