"""Fused contrastive loss with a similarity threshold per row, and the similarity statistics around it."""

from arec_kernels.loss import AdaptiveInfoNCE, InfoNCEStats, adaptive_info_nce
from arec_kernels.similarity import (
    alignment_uniformity,
    row_similarity_quantile,
    similarity_histogram,
)

__all__ = [
    "AdaptiveInfoNCE",
    "InfoNCEStats",
    "adaptive_info_nce",
    "alignment_uniformity",
    "row_similarity_quantile",
    "similarity_histogram",
]
