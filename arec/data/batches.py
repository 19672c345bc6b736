"""Padded batches: windows of training sequences, their partners, and histories to rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from arec.data.split import LeaveOneOut, Stage
from arec.positives import TargetIndex

# Windows are sorted by length within a pool of so many batches: most padding goes, chance stays.
_POOL = 16


@dataclass(frozen=True)
class Batch:
    """B windows of training sequences, padded on the right with item 0.

    The contrastive anchor of a row is the last position of its window; its target is the next item.
    """

    inputs: Tensor  # (B, L) int64 items
    targets: Tensor  # (B, L) int64, the next item at each position
    lengths: Tensor  # (B,) int64
    partner_inputs: Tensor | None = None  # (B, L) a sequence before the same target; else the own
    partner_lengths: Tensor | None = None  # (B,)
    intents: Tensor | None = None  # (2B,) planted intent of the anchor's and the partner's target

    @property
    def anchor_targets(self) -> Tensor:  # (B,)
        return self.targets.gather(1, self.lengths[:, None] - 1).squeeze(1)

    def to(self, device: torch.device) -> Batch:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(
            **{
                name: None if value is None else value.to(device, non_blocking=True)
                for name, value in moved.items()
            }
        )


class TrainingBatches:
    """Windows of at most ``max_length`` training positions, all of which are trained in one pass.

    Each epoch visits every user with at least two training items once. Of a sequence longer than
    the window a user gives the latest window or, with probability ``random_windows``, one that
    ends anywhere. An epoch's batches depend on ``seed`` and the epoch's number only, so a resumed
    run sees what an uninterrupted one would have seen.
    """

    def __init__(
        self,
        split: LeaveOneOut,
        *,
        batch_size: int,
        max_length: int,
        random_windows: float = 0.5,
        partners: bool = False,
        seed: int = 0,
    ) -> None:
        self.split = split
        self.batch_size = batch_size
        self.max_length = max_length
        self.random_windows = random_windows
        self.seed = seed
        self.users = np.flatnonzero(split.train_lengths >= 2)
        self.index = TargetIndex(split) if partners else None

    def __len__(self) -> int:
        return -(-len(self.users) // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        rng = np.random.default_rng([self.seed, epoch])
        users = rng.permutation(self.users)
        # Positions are those of the targets: the window's inputs end one before.
        last = self.split.train_lengths[users] - 1
        earliest = np.minimum(last, self.max_length)
        anywhere = rng.integers(earliest, last + 1)
        ends = np.where(rng.random(len(users)) < self.random_windows, anywhere, last)
        lengths = np.minimum(ends, self.max_length)

        pool = self.batch_size * _POOL
        order = np.concatenate(
            [
                start + np.argsort(lengths[start : start + pool], kind="stable")
                for start in range(0, len(users), pool)
            ]
        )
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        for i in rng.permutation(len(batches)):
            rows = batches[i]
            yield self._batch(users[rows], ends[rows], lengths[rows], rng)

    def _batch(
        self, users: np.ndarray, ends: np.ndarray, lengths: np.ndarray, rng: np.random.Generator
    ) -> Batch:
        sequences = self.split.sequences
        width = int(lengths.max())
        target_positions = sequences.offsets[users] + ends
        batch = {
            "inputs": gather_windows(sequences.items, target_positions, lengths, width),
            "targets": gather_windows(sequences.items, target_positions + 1, lengths, width),
            "lengths": torch.from_numpy(lengths),
        }
        partner_positions = target_positions
        if self.index is not None:
            drawn, partner_users = self.index.sample(sequences.items[target_positions], users, rng)
            found = drawn >= 0
            partner_positions = np.where(found, drawn, target_positions)
            before = partner_positions - sequences.offsets[np.where(found, partner_users, users)]
            partner_lengths = np.minimum(np.where(found, before, lengths), width)
            batch["partner_inputs"] = gather_windows(
                sequences.items, partner_positions, partner_lengths, width
            )
            batch["partner_lengths"] = torch.from_numpy(partner_lengths)
        if sequences.planted is not None:
            both = np.concatenate([target_positions, partner_positions])
            batch["intents"] = torch.from_numpy(sequences.planted.intents[both].astype(np.int64))
        return Batch(**batch)


def gather_windows(
    items: np.ndarray,  # (n,)
    ends: np.ndarray,  # (B,) one past each window's last position
    lengths: np.ndarray,  # (B,)
    width: int,
) -> Tensor:  # (B, width) int64, a copy, padded on the right with 0
    """``items[end - length : end]`` of every row."""
    steps = np.arange(width)
    real = steps < lengths[:, None]
    positions = np.where(real, (ends - lengths)[:, None] + steps, 0)
    return torch.from_numpy(np.where(real, items[positions], 0).astype(np.int64))


def history_batches(
    split: LeaveOneOut, stage: Stage, *, batch_size: int, max_length: int
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """What the model may see of each ranked user, of similar lengths together.

    Yields:
        users ``(B,)`` int64, inputs ``(B, L)`` int64 padded on the right with 0, lengths ``(B,)``
        int64.
    """
    ends = split.sequences.offsets[split.eval_users] + split.history_lengths(stage)
    lengths = np.minimum(split.history_lengths(stage), max_length)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        inputs = gather_windows(split.sequences.items, ends[rows], lengths[rows], lengths[rows].max())
        yield split.eval_users[rows], inputs, torch.from_numpy(lengths[rows])
