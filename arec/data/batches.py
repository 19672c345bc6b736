"""Padded batches: windows of training sequences, their partners, and histories to rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from arec.data.split import LeaveOneOut, Stage
from arec.errors import DataError
from arec.positives import TargetIndex


@dataclass(frozen=True)
class Batch:
    """B windows of training sequences, padded on the right with item 0.

    The contrastive anchor of a row is a position of its window; the views are made of the items up
    to it, and its target is the item after it.
    """

    inputs: Tensor  # (B, L) int64 items
    targets: Tensor  # int64, the next item: (B, L) at each position, or (B,) at the last one only
    lengths: Tensor  # (B,) int64
    partner_inputs: Tensor | None = None  # (B, longest) a sequence before the same target, or the own
    partner_lengths: Tensor | None = None  # (B,)
    intents: Tensor | None = None  # (2B,) planted intent of the anchor's and the partner's target
    anchors: Tensor | None = None  # (B,) int64 number of items up to the anchor; None: all
    weight: float = 1.0  # its next-item targets over those of the epoch's mean batch

    @property
    def anchor_lengths(self) -> Tensor:  # (B,)
        return self.lengths if self.anchors is None else self.anchors

    @property
    def anchor_inputs(self) -> Tensor:  # (B, L)
        """The items up to the anchors, padded on the right with item 0."""
        if self.anchors is None:
            return self.inputs
        steps = torch.arange(self.inputs.shape[1], device=self.inputs.device)
        return self.inputs * (steps < self.anchors[:, None])

    @property
    def anchor_targets(self) -> Tensor:  # (B,)
        return self._targets_after(self.anchor_lengths)

    @property
    def last_targets(self) -> Tensor:  # (B,)
        return self._targets_after(self.lengths)

    def _targets_after(self, lengths: Tensor) -> Tensor:
        if self.targets.ndim == 1:
            return self.targets
        return self.targets.gather(1, lengths[:, None] - 1).squeeze(1)

    def take(self, rows: slice) -> Batch:
        """Some of its rows, to train on: without planted intents, by which whole batches are measured."""
        return replace(self._each(lambda x: x[rows]), intents=None)

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda x: x.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: change(x) for name, x in tensors.items()})


class TrainingBatches:
    """Windows of at most ``max_length`` training positions.

    With ``rows="all-positions"`` an epoch visits every user with at least two training items once
    and every position of its window has a target. Of a sequence longer than the window a user
    gives the latest window or, with probability ``random_windows``, one that ends anywhere. With
    ``rows="prefix"`` an epoch visits every training position that has an item before it, the
    target of the window that ends there; windows are cut when a batch needs them, so that a row
    costs some numbers. There the anchor is the last position; with "all-positions" and
    ``anchors="random"`` it is any position of the window, so that prefixes of all lengths are
    contrasted as in the published programs. An epoch's batches depend on ``seed`` and the epoch's
    number only, so a resumed run sees what an uninterrupted one would have seen.

    The windows of a batch are drawn at random, whatever their lengths: batches of similar lengths
    would need less padding, but each step would then learn from one kind of user, and training
    starts more slowly. Numbers of targets differ, so a loss that is a mean over a batch has to be
    multiplied by ``Batch.weight``, or a target in a batch of short windows (or the incomplete last
    one) would count more than others. Masked items are about as many times fewer in every batch.

    Args:
        shares: the rows of a batch are shared evenly by so many processes, of which ``batch_size``
            is a multiple; the rest of an epoch's rows, fewer than that, is left out, each time others.

    Raises:
        DataError: no user has two training items, there is one item alone, or fewer rows than shares.
    """

    def __init__(
        self,
        split: LeaveOneOut,
        *,
        batch_size: int = 128,
        max_length: int = 50,
        rows: Literal["all-positions", "prefix"] = "all-positions",
        random_windows: float = 0.5,
        anchors: Literal["random", "last"] = "random",
        partners: bool = False,
        seed: int = 0,
        shares: int = 1,
    ) -> None:
        self.split = split
        self.batch_size = batch_size
        self.max_length = max_length
        self.random_windows = random_windows
        self.random_anchors = anchors == "random" and rows == "all-positions"
        self.seed = seed
        if rows == "prefix":
            self.users, self.prefixes = split.train_prefixes()
        else:
            self.users, self.prefixes = np.flatnonzero(split.train_lengths >= 2), None
        if not len(self.users):
            raise DataError(
                f"{split.sequences.name}: no user has 2 items to train with (of 3 items and more, the "
                "last 2 are for validation and test), so there is nothing to learn"
            )
        if split.sequences.num_items < 2:
            raise DataError(
                f"{split.sequences.name}: expected at least 2 items, got 1: there is nothing to rank"
            )
        self.num_rows = len(self.users) // shares * shares
        if not self.num_rows:
            raise DataError(
                f"{split.sequences.name}: expected at least {shares} rows to train on, one for each "
                f"process, got {len(self.users)}"
            )
        self.index = TargetIndex(split) if partners else None

    def __len__(self) -> int:
        return math.ceil(self.num_rows / self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        return self._batches(np.random.default_rng([self.seed, epoch]), self.num_rows)

    def sample(self, count: int) -> Iterator[Batch]:
        """Batches of ``count`` random rows at most, the same at every call, to measure on."""
        return self._batches(np.random.default_rng(self.seed), count)

    def _batches(self, rng: np.random.Generator, count: int) -> Iterator[Batch]:
        users, ends = self._drawn_rows(rng, count)
        lengths = np.minimum(ends, self.max_length)
        targets = lengths if self.prefixes is None else np.ones_like(lengths)
        mean_targets = targets.sum() / math.ceil(len(users) / self.batch_size)
        for start in range(0, len(users), self.batch_size):
            rows = slice(start, start + self.batch_size)
            weight = targets[rows].sum() / mean_targets
            yield self._batch(users[rows], ends[rows], lengths[rows], float(weight), rng)

    def _drawn_rows(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Users and, in their sequences, the positions of the targets: inputs end one before."""
        rows = rng.permutation(len(self.users))
        if self.prefixes is not None:
            rows = rows[:count]
            users = self.users[rows]
            return users, self.prefixes[rows] - self.split.sequences.offsets[users]
        users = self.users[rows]
        last = self.split.train_lengths[users] - 1
        earliest = np.minimum(last, self.max_length)
        anywhere = rng.integers(earliest, last + 1)
        ends = np.where(rng.random(len(users)) < self.random_windows, anywhere, last)
        return users[:count], ends[:count]

    def _batch(
        self,
        users: np.ndarray,
        ends: np.ndarray,
        lengths: np.ndarray,
        weight: float,
        rng: np.random.Generator,
    ) -> Batch:
        sequences = self.split.sequences
        target_positions = sequences.offsets[users] + ends
        batch: dict[str, Any] = {
            "inputs": gather_windows(sequences.items, target_positions, lengths),
            "targets": self._targets(target_positions, lengths),
            "lengths": torch.from_numpy(lengths),
            "weight": weight,
        }
        anchors = lengths
        if self.random_anchors:
            anchors = rng.integers(1, lengths + 1)
            batch["anchors"] = torch.from_numpy(anchors)
        anchor_positions = partner_positions = target_positions - lengths + anchors
        if self.index is not None:
            drawn, partner_users = self.index.sample(sequences.items[anchor_positions], users, rng)
            found = drawn >= 0
            partner_positions = np.where(found, drawn, anchor_positions)
            before = partner_positions - sequences.offsets[np.where(found, partner_users, users)]
            partner_lengths = np.minimum(np.where(found, before, anchors), self.max_length)
            batch["partner_inputs"] = gather_windows(sequences.items, partner_positions, partner_lengths)
            batch["partner_lengths"] = torch.from_numpy(partner_lengths)
        if sequences.planted is not None:
            both = np.concatenate([anchor_positions, partner_positions])
            batch["intents"] = torch.from_numpy(sequences.planted.intents[both].astype(np.int64))
        return Batch(**batch)

    def _targets(self, positions: np.ndarray, lengths: np.ndarray) -> Tensor:
        items = self.split.sequences.items
        if self.prefixes is not None:
            return torch.from_numpy(items[positions].astype(np.int64))
        return gather_windows(items, positions + 1, lengths)


def gather_windows(
    items: np.ndarray,  # (n,)
    ends: np.ndarray,  # (B,) one past each window's last position
    lengths: np.ndarray,  # (B,)
) -> Tensor:  # (B, longest) int64, a copy, padded on the right with 0
    """``items[end - length : end]`` of every row."""
    steps = np.arange(lengths.max(initial=0))
    real = steps < lengths[:, None]
    positions = np.where(real, (ends - lengths)[:, None] + steps, 0)
    return torch.from_numpy(np.where(real, items[positions], 0).astype(np.int64))


def history_batches(
    split: LeaveOneOut, stage: Stage, *, batch_size: int, max_length: int
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """What the model may see of each ranked user before the target of a stage, of similar lengths together.

    Yields:
        users ``(B,)`` int64, inputs ``(B, L)`` int64 padded on the right with 0, lengths ``(B,)``
        int64.
    """
    histories = split.history_lengths(stage)
    ends = split.sequences.offsets[split.eval_users] + histories
    lengths = np.minimum(histories, max_length)
    order = np.argsort(histories, kind="stable")  # whole ones, which the filter leaves out
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        inputs = gather_windows(split.sequences.items, ends[rows], lengths[rows])
        yield split.eval_users[rows], inputs, torch.from_numpy(lengths[rows])
