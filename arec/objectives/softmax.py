"""Cross-entropy over all items in O(chunk · V) memory, or over a sample of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from arec import parallel

# On a CPU a chunk's logits should stay in the caches, the share of one core; bfloat16, whose products
# are fast and begin by packing the table, wants larger ones, and so does a GPU.
_LOGITS_PER_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 28}
_LOGITS_PER_NARROW_CHUNK = {"cpu": 1 << 22, "cuda": 1 << 28}
# The softmax of a chunk goes over so many logits at a time: float32 that stays in a core's own cache.
_LOGITS_PER_BLOCK = {"cpu": 1 << 17}
# Chunks of few different sizes, because oneDNN compiles its products anew for every shape; and no
# thinner ones, however many items there are, because each goes through the whole table.
_STEP = 64


def item_loss(
    hidden: Tensor,  # (P, d)
    item_table: Tensor,  # (V + 1, d), row 0 is padding
    targets: Tensor,  # (P,) int64 in 1..V
    sampled_negatives: int | None,
) -> Tensor:  # 0-d
    """`full_softmax_loss`, or the estimate of it in which drawn items stand for those not drawn.

    The candidates of every position are all targets of the batch (of its share that a process has) and
    at least ``sampled_negatives`` of the other items, drawn uniformly without replacement and weighted by
    others / drawn. So the sums of exponentials are unbiased, but their logarithms, and the loss, are
    biased low, the more the fewer are drawn: compare losses at one number only. With all items drawn it
    is exact. Of several processes the mean is that over the targets of all, see
    `parallel.share_of_mean`.
    """
    if sampled_negatives is None:
        loss = full_softmax_loss(hidden, item_table, targets)
        return parallel.share_of_mean(loss, len(targets))
    known, labels = targets.unique(return_inverse=True)
    is_other = torch.ones(len(item_table), dtype=torch.bool, device=targets.device)
    is_other[0] = is_other[known] = False
    others = is_other.nonzero().squeeze(1)
    filling = -(len(known) + sampled_negatives) % _STEP  # to few different sizes of the products
    order = torch.randperm(len(others), device=others.device)
    drawn = others[order[: sampled_negatives + filling]]
    rows = F.pad(item_table[torch.cat([known, drawn])], (0, 0, 1, 0))
    stand_for = rows.new_ones(len(rows) - 1, dtype=torch.float32)
    stand_for[len(known) :] = len(others) / max(len(drawn), 1)
    loss = _ChunkedSoftmax.apply(hidden, rows, labels + 1, stand_for.log())
    return parallel.share_of_mean(loss, len(targets))


def full_softmax_loss(
    hidden: Tensor,  # (P, d)
    item_table: Tensor,  # (V + 1, d), row 0 is padding
    targets: Tensor,  # (P,) int64 in 1..V
) -> Tensor:  # 0-d
    """Mean cross-entropy of ``hidden @ item_table[1:].T`` against ``targets``.

    The logits exist a chunk of rows at a time and their gradient is taken at once, which is
    several times faster on a CPU than going through the whole (P, V) matrix thrice, and makes
    catalogues of millions of items fit. Under autocast the products are in its type, the softmax
    and the sums in float32. No second derivative.
    """
    return _ChunkedSoftmax.apply(hidden, item_table, targets, None)


class _ChunkedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        item_table: Tensor,
        targets: Tensor,
        log_counts: Tensor | None,  # (V,), how many items each stands for
    ) -> Tensor:
        device = hidden.device.type
        product_dtype = (
            torch.get_autocast_dtype(device)
            if torch.is_autocast_enabled(device)
            else item_table.dtype
        )
        narrow = product_dtype is not item_table.dtype
        items = item_table[1:].to(product_dtype)
        per_chunk = _LOGITS_PER_NARROW_CHUNK if narrow else _LOGITS_PER_CHUNK
        rows = max(1, per_chunk.get(device, 1 << 24) // len(items) // _STEP) * _STEP
        count = len(hidden)
        filling = -count % _STEP  # rows of zeros, which add nothing to the gradient of the items
        states = F.pad(hidden.to(product_dtype), (0, 0, 0, filling))
        labels = F.pad(targets - 1, (0, filling))[:, None]
        # Of the gradient (softmax - one-hot target) the one-hot part is known without any logits.
        grad_hidden = F.pad(-item_table[targets], (0, 0, 0, filling))
        grad_table = torch.zeros_like(item_table)
        grad_table.index_add_(0, targets, hidden.to(item_table.dtype), alpha=-1)
        losses = item_table.new_empty(count + filling, 1)
        # One chunk's memory serves them all: fresh memory would have to be mapped for each.
        product_buffer = states.new_empty(min(rows, len(states)), len(items))
        block = max(1, _LOGITS_PER_BLOCK.get(device, product_buffer.numel()) // len(items))
        wide_buffer = item_table.new_empty(min(block, len(product_buffer)) * narrow, len(items))
        for chunk_states, chunk_labels, chunk_grad, chunk_losses in zip(
            states.split(rows), labels.split(rows), grad_hidden.split(rows), losses.split(rows)
        ):
            products = product_buffer[: len(chunk_states)]
            torch.mm(chunk_states, items.T, out=products)
            totals = torch.empty_like(chunk_losses)
            for part, part_labels, part_losses, total in zip(
                *(whole.split(block) for whole in (products, chunk_labels, chunk_losses, totals))
            ):
                logits = wide_buffer[: len(part)].copy_(part) if narrow else part
                if log_counts is not None:
                    logits += log_counts
                target_logits = logits.gather(1, part_labels)
                top = logits.amax(dim=1, keepdim=True)
                torch.sum(logits.sub_(top).exp_(), dim=1, keepdim=True, out=total)
                part_losses.copy_(total.log() + top - target_logits)
                part.copy_(logits)  # where they are not the same memory
            # Dividing narrow results by the totals saves a pass over the logits.
            chunk_grad += (products @ items) / totals
            scaled = chunk_states / totals
            if narrow:
                grad_table[1:] += products.T @ scaled.to(product_dtype)
            else:
                grad_table[1:].addmm_(products.T, scaled)
        ctx.save_for_backward(grad_hidden[:count], grad_table)
        ctx.count = max(count, 1)
        return losses[:count].sum() / ctx.count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_table = ctx.saved_tensors
        scale = grad / ctx.count
        return grad_hidden * scale, grad_table * scale, None, None
