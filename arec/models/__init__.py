"""Encoders of item sequences and the threshold network."""

from arec.models.encoder import Encoder
from arec.models.threshold import ThresholdNetwork

__all__ = ["Encoder", "ThresholdNetwork"]
