"""Transformer encoder of item sequences, causal (SASRec) or bidirectional (BERT4Rec)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arec.models.dropout import Dropout

_STD = 0.02  # of normal initialisation
# A CPU encodes rows of similar length together, so many tokens at a time as its caches hold; a GPU
# rather computes padding than waits to learn of it. Few different numbers of rows and widths: oneDNN
# compiles its products anew for every shape.
_CPU_TOKENS = 4096
_CPU_ROWS = 16
_CPU_WIDTHS = 16


class Block(nn.Module):
    """Self-attention and feed-forward layer, pre-norm or post-norm."""

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        feed_forward: int,
        dropout: float,
        attention_dropout: float,
        norm_first: bool,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm_first = norm_first
        self.attention_dropout = Dropout(attention_dropout)
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden_size, feed_forward), nn.GELU(), nn.Linear(feed_forward, hidden_size)
        )
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,  # (B, L, d)
        key_mask: Tensor | None,  # (B, 1, 1, L) bool, True where a key may be attended; None: causal
        query_position: Tensor | None = None,  # (B,) compute this position only
    ) -> Tensor:  # (B, L, d), or (B, 1, d) with query_position
        source = self.attention_norm(x) if self.norm_first else x
        target = source
        if query_position is not None:
            rows = torch.arange(x.shape[0], device=x.device)
            x, target = x[rows, query_position, None], source[rows, query_position, None]
        x = x + self.dropout(self._attend(target, source, key_mask))
        if not self.norm_first:
            x = self.attention_norm(x)
        y = self.feed_forward(self.feed_forward_norm(x) if self.norm_first else x)
        x = x + self.dropout(y)
        return x if self.norm_first else self.feed_forward_norm(x)

    def _attend(self, target: Tensor, source: Tensor, key_mask: Tensor | None) -> Tensor:
        query = self.query(target).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.key_value(source).chunk(2, dim=-1)
        )
        device = query.device.type
        mixed = torch.is_autocast_enabled(device)
        if mixed and device == "cpu":  # there the gradient of attention is slow in bfloat16
            query, key, value = query.float(), key.float(), value.float()
            mixed = False
        with torch.autocast(device, enabled=mixed):
            if device == "cpu" and self.training and self.attention_dropout.p:
                attended = self._attend_with_dropout(query, key, value, key_mask)
            else:
                attended = F.scaled_dot_product_attention(
                    query,
                    key,
                    value,
                    attn_mask=key_mask,
                    dropout_p=self.attention_dropout.p if self.training else 0.0,
                    is_causal=key_mask is None,
                )
        return self.output(attended.transpose(1, 2).flatten(2))

    def _attend_with_dropout(
        self,
        query: Tensor,  # (B, heads, Q, d / heads)
        key: Tensor,  # (B, heads, L, d / heads)
        value: Tensor,  # (B, heads, L, d / heads)
        key_mask: Tensor | None,
    ) -> Tensor:  # (B, heads, Q, d / heads)
        """What PyTorch does too on a CPU, where none of its fused kernels drops weights."""
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        if key_mask is None:
            key_mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
        weights = scores.masked_fill(~key_mask, -torch.inf).softmax(dim=-1)
        return self.attention_dropout(weights) @ value


class Encoder(nn.Module):
    """Item and position embeddings under a stack of :class:`Block`.

    Sequences are padded on the right with item 0, so that causal attention needs no mask: no
    real position ever looks at padding. Positions count from the start of the window. Counted from
    its end they would mark the last position, the one that is ranked and that contrastive losses
    act on, while next-item training sees it once in a window: the contrast could then bend it
    apart from all others.

    Args:
        num_items: items are 1..num_items; 0 is padding.
        max_length: items of a sequence, at most. A bidirectional encoder takes one token more: the
            mask that stands for the next item.
        causal: attend to earlier positions only.
        with_mask: item ``num_items + 1`` is ``mask_token``, which is embedded but never ranked.
        initialisation: of linear layers, "xavier" or "normal" with deviation 0.02; embeddings are
            always the latter.
        scale_embeddings: item embeddings enter times √d, as in SASRec's own program. The layers
            add outputs of unit size, next to which embeddings that start at 0.02 are lost for long;
            on the other hand a state that keeps its last item is near that item's output embedding
            and gives it a high score, which does not help where nobody takes an item twice.
    """

    def __init__(
        self,
        num_items: int,
        *,
        max_length: int = 50,
        hidden_size: int = 64,
        layers: int = 2,
        heads: int = 2,
        feed_forward: int = 256,
        dropout: float = 0.2,
        attention_dropout: float = 0.0,
        norm_first: bool = True,
        causal: bool = True,
        with_mask: bool = False,
        initialisation: Literal["xavier", "normal"] = "xavier",
        scale_embeddings: bool = True,
    ) -> None:
        super().__init__()
        self.initialisation = initialisation
        self.num_items = num_items
        self.max_length = max_length
        self.causal = causal
        self.mask_token = num_items + 1 if with_mask else None
        self.items = nn.Embedding(num_items + 1 + with_mask, hidden_size, padding_idx=0)
        self.positions = nn.Embedding(max_length + (not causal), hidden_size)
        self.blocks = nn.ModuleList(
            Block(hidden_size, heads, feed_forward, dropout, attention_dropout, norm_first)
            for _ in range(layers)
        )
        # A pre-norm stack leaves its sum unnormalised; a post-norm one wants its input normalised.
        self.norm = nn.LayerNorm(hidden_size)
        self.norm_first = norm_first
        self.item_scale = hidden_size**0.5 if scale_embeddings else 1.0
        self.dropout = Dropout(dropout)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=_STD)
            if module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        if isinstance(module, nn.Linear):
            if self.initialisation == "xavier":
                nn.init.xavier_normal_(module.weight)
            else:
                nn.init.normal_(module.weight, std=_STD)
            nn.init.zeros_(module.bias)

    @property
    def item_table(self) -> Tensor:  # (num_items + 1, d)
        """Embeddings of padding and every item, tied with the output layer."""
        weight = self.items.weight
        return weight if self.mask_token is None else weight[:-1]  # a part's gradient is one more table

    def forward(
        self,
        inputs: Tensor,  # (B, L) int64, right-padded with 0
        lengths: Tensor,  # (B,) int64, number of real items, >= 1
        *,
        last_only: bool = False,
    ) -> Tensor:
        """Hidden states ``(B, L, d)``, or of the last real position only, ``(B, d)``.

        With ``last_only`` the last layer computes one query a row instead of L. States of padding
        mean nothing.
        """
        if inputs.device.type != "cpu":
            return self._encode(self.items(inputs), lengths, last_only)
        order = lengths.argsort()
        longest = inputs.shape[1]
        chunks = list(_similar_lengths(order, lengths, longest))
        tokens = [inputs[rows, :width].flatten() for rows, width in chunks]
        # One lookup for all: the gradient of each is a whole table.
        items = self.items(torch.cat(tokens)).split([len(chunk) for chunk in tokens])
        states = []
        for (rows, width), x in zip(chunks, items):
            state = self._encode(x.unflatten(0, (-1, width)), lengths[rows], last_only)
            states.append(state if last_only else F.pad(state, (0, 0, 0, longest - width)))
        return torch.cat(states)[order.argsort()]

    def _encode(
        self,
        items: Tensor,  # (B, L, d) embeddings
        lengths: Tensor,  # (B,)
        last_only: bool,
    ) -> Tensor:
        steps = torch.arange(items.shape[1], device=items.device)
        x = torch.add(self.positions(steps), items, alpha=self.item_scale)
        x = self.dropout(x if self.norm_first else self.norm(x))
        real = (steps < lengths[:, None])[:, None, None, :]  # (B, 1, 1, L)
        for block in self.blocks[:-1]:
            x = block(x, None if self.causal else real)
        if last_only:
            x = self.blocks[-1](x, real, query_position=lengths - 1)[:, 0]
        else:
            x = self.blocks[-1](x, None if self.causal else real)
        return self.norm(x) if self.norm_first else x


def _similar_lengths(order: Tensor, lengths: Tensor, longest: int) -> Iterator[tuple[Tensor, int]]:
    """Rows of similar length, and a width that holds them all."""
    groups = order.split(_CPU_ROWS)  # each ends with its longest row
    widths = [-(-int(lengths[group[-1]]) // _CPU_WIDTHS) * _CPU_WIDTHS for group in groups]
    for width, same in groupby(zip(groups, widths), key=itemgetter(1)):
        rows = torch.cat([group for group, _ in same])
        for part in rows.split(max(_CPU_TOKENS // width // _CPU_ROWS, 1) * _CPU_ROWS):
            yield part, min(width, longest)
