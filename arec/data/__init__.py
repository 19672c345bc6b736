"""Data sets: sources -> interactions -> k-core -> leave-one-out -> batches."""

from arec.data.sources import NAMES, absolute, load

__all__ = ["NAMES", "absolute", "load"]
