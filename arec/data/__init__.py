"""Data sets: sources -> interactions -> k-core -> leave-one-out -> batches."""

from arec.data.sources import load

__all__ = ["load"]
