"""Statistics of the similarities in a batch, streamed in O(N D) memory; none has a gradient.

Rows of bfloat16 and float16 are rounded once more on the unit sphere, as in the loss; those of `z.float()`
are not. (The quantile on a CPU: in O(N D), and some rows of N similarities for each thread.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from arec_kernels import reference
from arec_kernels.arguments import (
    check_bins,
    check_finite,
    check_pair,
    check_quantile,
    check_views,
    group_rows,
)
from arec_kernels.backends import choose_backend
from arec_kernels.registration import OPS


@torch.no_grad()
def similarity_histogram(
    z: Tensor,  # (N, D), N = 2B
    bins: int,
    *,
    groups: Tensor | None = None,  # (N,) or (B,)
    backend: str | None = None,
) -> Tensor:  # (bins,) int64
    """Counts the cosines of all ordered candidate pairs in equal bins over [-1, 1].

    A pair (i, j) is counted in bin floor((s_ij + 1) / 2 * bins), clamped to the ends. `z`, `groups`
    and `backend` are as in `adaptive_info_nce`. Histograms add up over batches, so the quantile of a
    whole epoch (AdaptiveRec, Sec. 3.2) needs no stored similarities. It has no gradient.

    Raises:
        ValueError: an argument is not as described, or NaN or infinity in `z` (for which this
            function waits for the device, and breaks a graph of `torch.compile`).
        RuntimeError: `backend` cannot run here.
    """
    check_views(z)
    check_bins("bins", bins)
    check_finite(z)
    backend = choose_backend(backend, z)
    if backend == "reference":
        return reference.similarity_histogram(z, bins, groups=groups)
    return OPS["histogram"][backend](z, group_rows(groups, z), bins)


@torch.no_grad()
def row_similarity_quantile(
    z: Tensor,  # (N, D), N = 2B
    q: float,
    *,
    groups: Tensor | None = None,  # (N,) or (B,)
    backend: str | None = None,
) -> Tensor:  # (N,)
    """The threshold of each row with the share `q` of its candidates below it (Sec. 3.2.1), exactly.

    With the n candidate similarities of a row in ascending order and r = floor(q n), in float64, it
    is halfway between the r-th and the next one: n - r are above it unless these two are equal.
    (Between neighbouring floats it is the r-th.) r = 0 gives -inf, without candidates too, and r = n
    gives +inf. float32 (float64 for float64 `z`), without a gradient; NaN where a candidate's similarity
    is NaN. `z`, `groups` and `backend` are as in `adaptive_info_nce`; `q` is in [0, 1].

    Raises:
        ValueError: an argument is not as described.
        RuntimeError: `backend` cannot run here.
    """
    check_views(z)
    check_quantile(q)
    backend = choose_backend(backend, z)
    if backend == "reference":
        return reference.row_similarity_quantile(z, q, groups=groups)
    return OPS["quantile"][backend](z, q, group_rows(groups, z))


@torch.no_grad()
def alignment_uniformity(
    x: Tensor,  # (rows, D)
    y: Tensor,  # (rows, D)
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # 0-d, 0-d
    """Alignment (Eq. 3) and uniformity (Eq. 4, Wang and Isola 2020) of rows on the unit sphere.

    Alignment is the mean squared distance of the rows x_i and y_i, uniformity the logarithm of the
    mean of exp(-2 |x_i - x_j|^2) over pairs i < j of `x` (NaN for a single row), all divided by their
    norms. A row with a norm below 1e-12 is at the origin for alignment, and at a right angle to all
    others for uniformity. Lower is better for both. They measure, and have no gradient. float32 (float64
    for float64 input); types and `backend` as in `adaptive_info_nce`.

    Raises:
        ValueError: an argument is not as described.
        RuntimeError: `backend` cannot run here.
    """
    check_pair(x, y)
    backend = choose_backend(backend, x)
    if backend == "reference":
        return reference.alignment_uniformity(x, y)
    return reference.alignment(x, y), OPS["uniformity"][backend](x)
