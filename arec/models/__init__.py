"""Encoders of item sequences and the threshold networks."""

from arec.models.encoder import Encoder
from arec.models.threshold import FlattenedThresholdNetwork, ThresholdNetwork

__all__ = ["Encoder", "FlattenedThresholdNetwork", "ThresholdNetwork"]
