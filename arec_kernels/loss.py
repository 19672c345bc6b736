"""The contrastive loss of AdaptiveRec (and, with an infinite threshold, NT-Xent) as one fused op."""

from __future__ import annotations

from typing import Any, overload

from torch import Tensor, nn

from arec_kernels import reference
from arec_kernels.arguments import check_options, check_views, group_rows, threshold_rows
from arec_kernels.backends import check_backend, choose_backend
from arec_kernels.reference import InfoNCEStats
from arec_kernels.registration import Local, info_nce


@overload
def adaptive_info_nce(
    z: Tensor, threshold: Tensor | float, *, temperature: float = ..., groups: Tensor | None = ...,
    positives: bool = ..., partner_weight: float = ..., denominator: str = ...,
    weighting: str = ..., threshold_grad: float | None = ..., histogram_bins: None = None,
    reduction: str = ..., backend: str | None = ...,
) -> Tensor: ...


@overload
def adaptive_info_nce(
    z: Tensor, threshold: Tensor | float, *, temperature: float = ..., groups: Tensor | None = ...,
    positives: bool = ..., partner_weight: float = ..., denominator: str = ...,
    weighting: str = ..., threshold_grad: float | None = ..., histogram_bins: int,
    reduction: str = ..., backend: str | None = ...,
) -> tuple[Tensor, InfoNCEStats]: ...


def adaptive_info_nce(
    z: Tensor,  # (N, D), N = 2B
    threshold: Tensor | float,  # (N,), (B,) or a scalar
    *,
    temperature: float = 1.0,
    groups: Tensor | None = None,  # (N,) or (B,)
    positives: bool = True,
    partner_weight: float = 0.5,
    denominator: str = "negatives",
    weighting: str = "label",
    threshold_grad: float | None = None,
    histogram_bins: int | None = None,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor | tuple[Tensor, InfoNCEStats]:
    """InfoNCE on cosine similarities with a similarity threshold for each row (AdaptiveRec, Eq. 8-9).

    Rows i and i + B of `z` are two views of one sequence: partners, always positive for each other.
    The candidates of row i are all rows but itself and its partner. Those with a cosine above the
    row's threshold ("SimThres") are taken for false negatives: they leave the denominator and
    become positives themselves, m_i of them. The others are the negatives. With cosines s_ij, D_i
    the sum of exp(s_ij / tau) over the partner p and the negatives, and l_ij = log D_i - s_ij / tau,
    the loss of row i is alpha l_ip + (1 - alpha) / m_i sum_j l_ij over its positives j, and l_ip
    where it has none (by default: see `weighting`). It may be below 0, since the positives are not in
    D_i; not so with `denominator="all"`. With `threshold=math.inf, positives=False` this is NT-Xent
    (SimCLR) on cosines, and with the modalities of the rows as `groups` besides, of two modalities, the
    loss of CLIP at a fixed temperature. The compiled backends need O(N D) memory.

    Args:
        z: (2B, D) float32, bfloat16 or float16, any strides, not normalised; float64 with the
            backends "reference" and "cpp". Gradients have the same type. Rows with a norm below
            1e-12 have cosine 0 with every row, and gradient 0, but are rows like others of the mean and
            of the sums: leave out those that are padding. The rows on the unit sphere are rounded to
            bfloat16 or float16 once more, which moves cosines over a finite threshold; `z.float()` does
            not. Under DistributedDataParallel each process contrasts its own rows;
            `arec_kernels.distributed` has those of all.
        threshold: (2B,), (B,) (used for both views) or a scalar, any float type, in units of the
            cosine, before the temperature: no pair is above `math.inf`, all are above -2 (those of
            equal rows may round above 1). A constant is safe only while few pairs are above it: where
            rows come to be alike, all pairs are positives, nothing repels, and the loss falls to 0
            (`row_similarity_quantile` moves with the rows). A cosine equal to the threshold is a
            negative; they are compared in float32 (float64 for float64 `z`). It gets a gradient only
            with `threshold_grad`. Between forward and backward it stays as it is, like `z` (`clone()` it).
        temperature: a Python number from 1e-20 to 1e20; the logits are cosine / temperature (the
            paper has none). No gradient goes to it.
        groups: (2B,) or (B,) integers. Rows of one group >= 0 (say, with the same target item, or
            images among themselves) are known not to be negatives of each other and are no
            candidates, so no positives either (this is not supervised contrast); partners stay
            partners.
        positives: whether candidates above the threshold become positives (Eq. 9) or are only left
            out of the negatives (Eq. 8); then weights change nothing, nor does the threshold with
            `denominator="all"`.
        partner_weight: the partner's weight alpha, in (0, 1] (< 1 with "printed"); the positives of
            a row share the rest equally.
        denominator: "negatives" (the paper) sums over the negatives and the partner; "all" keeps the
            candidates above the threshold in the sum (the paper's released program).
        weighting: "label" has the weights outside the logarithm, sum 1; "label-unnormalised" the
            same, but a row without positives has the weight alpha (the released program); "printed"
            has the weights inside the logarithm (Eq. 9 as printed): l_ip - log(alpha) plus the sum of
            l_ij - log((1 - alpha) / m_i), which grows with the number of positives.
        threshold_grad: None (the paper): no gradient to the threshold. A width h > 0: straight-through
            gradient to the threshold alone, the indicator's derivative being that of
            sigmoid((s - threshold) / h). Unless a regulariser holds them (Sec. 3.2.2), thresholds run to where
            all cosines are above (Appendix A; so with `positives=False`) or none is. Its terms grow as
            exp((s - s_ip) / tau) / h: clip them at low temperatures. Without it,
            DistributedDataParallel wants `find_unused_parameters` where only this loss would reach the
            parameters that thresholds come from.
        histogram_bins: also return counts of the candidates' cosines, from the same pass: those of
            `similarity_histogram`, but that a cosine which is NaN is left out.
        reduction: "mean", "sum" (the paper) or "none" over the 2B rows.
        backend: None (the compiled one for these tensors, or else the oracle), "reference", "cpp",
            "triton" (on CPU tensors under TRITON_INTERPRET=1) or "cuda".

    Returns:
        The loss, 0-d or (2B,), float32 (float64 for float64 `z`); with `histogram_bins` a pair
        (loss, InfoNCEStats), whose fields are `positives`, m_i of each row (0 where `positives` is
        false), and `histogram`. NaN or infinity in `z` and NaN in `threshold` give NaN for every
        row that they touch.

    Raises:
        ValueError: an argument is not as described.
        RuntimeError: `backend` cannot run here; or, through a compiled backend ("reference" has them),
            a second derivative, one of torch.func or one in forward mode, or a gradient where `z`,
            `threshold` or `groups` were made in `torch.inference_mode()` (`clone()` them).

    Of a compiled backend torch.compile compiles anew for each value of `temperature`, `partner_weight`
    and `threshold_grad`, up to its `recompile_limit`: keep a schedule of them out of the compiled
    region. torch.export keeps the gradient of "reference" only, without an error, and the backend
    chosen then; to load what it made, import `arec_kernels`. torch.jit.trace keeps the number of rows.
    """
    check_views(z)
    check_options(temperature, positives, partner_weight, denominator, weighting, threshold_grad,
                  histogram_bins, reduction)
    return info_nce_of_rows(
        z, threshold_rows(threshold, z), group_rows(groups, z), temperature, positives, partner_weight,
        denominator, weighting, threshold_grad, histogram_bins, reduction, backend,
    )


def info_nce_of_rows(
    z: Tensor,  # (N, D)
    threshold: Tensor,  # (N,)
    groups: Tensor | None,  # (N,)
    temperature: float,
    positives: bool,
    partner_weight: float,
    denominator: str,
    weighting: str,
    threshold_grad: float | None,
    histogram_bins: int | None,
    reduction: str,
    backend: str | None,
    local: Local | None = None,
) -> Tensor | tuple[Tensor, InfoNCEStats]:
    """`adaptive_info_nce` of checked arguments; with `local`, only what is of these rows is right."""
    backend = choose_backend(backend, z)
    if backend == "reference":
        return reference.adaptive_info_nce(
            z, threshold, temperature=temperature, groups=groups, positives=positives,
            partner_weight=partner_weight, denominator=denominator, weighting=weighting,
            threshold_grad=threshold_grad, histogram_bins=histogram_bins, reduction=reduction,
        )
    if threshold_grad is None and threshold.requires_grad:
        threshold = threshold.detach()
    loss, num_positives, histogram = info_nce(
        z, threshold, groups, backend,
        (temperature, positives, partner_weight, denominator, weighting, reduction),
        threshold_grad or 0.0, histogram_bins or 0, local,
    )
    return loss if histogram_bins is None else (loss, InfoNCEStats(num_positives, histogram))


_OPTIONS = (
    "temperature", "positives", "partner_weight", "denominator", "weighting", "threshold_grad",
    "histogram_bins", "reduction", "backend",
)  # fmt: skip


class AdaptiveInfoNCE(nn.Module):
    """`adaptive_info_nce` with its options, which are checked here and at every call, documented there.

    They are attributes, and may be changed from step to step (but for the numbers that torch.compile
    compiles anew for).
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        positives: bool = True,
        partner_weight: float = 0.5,
        denominator: str = "negatives",
        weighting: str = "label",
        threshold_grad: float | None = None,
        histogram_bins: int | None = None,
        reduction: str = "mean",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_backend(backend)
        check_options(temperature, positives, partner_weight, denominator, weighting,
                      threshold_grad, histogram_bins, reduction)
        self.temperature = temperature
        self.positives = positives
        self.partner_weight = partner_weight
        self.denominator = denominator
        self.weighting = weighting
        self.threshold_grad = threshold_grad
        self.histogram_bins = histogram_bins
        self.reduction = reduction
        self.backend = backend

    def forward(
        self,
        z: Tensor,  # (N, D), N = 2B
        threshold: Tensor | float,  # (N,), (B,) or a scalar
        groups: Tensor | None = None,  # (N,) or (B,)
    ) -> Tensor | tuple[Tensor, InfoNCEStats]:
        return adaptive_info_nce(z, threshold, groups=groups, **self.options())

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options().items())

    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _OPTIONS}
