"""Who is ranked against what: the rank of each target in each protocol.

"unfiltered" ranks the target among all items, "filtered" leaves out the items of the user's
history, "popular-100" and "random-100" rank it among sampled candidates. Ranking knows scores only:
a model, a baseline and the generator of the built-in data all give `evaluate_scores` a function from a
split to batches of (users, scores).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from arec import parallel
from arec.data.batches import gather_windows
from arec.data.split import LeaveOneOut, Stage
from arec.metrics import CUTOFFS, listed, metrics_from_lists, metrics_from_ranks

# Users (B,), numbered as in `Sequences`, and their scores (B, num_items + 1).
ScoreBatch = tuple[np.ndarray, torch.Tensor]
# Sampled candidates of ranked users by protocol, (E, 100) int32, filled up with 0.
Candidates = Mapping[str, np.ndarray]

SAMPLED = 100
SAMPLED_PROTOCOLS = (f"popular-{SAMPLED}", f"random-{SAMPLED}")
_TRIES = 2 * SAMPLED
_MOST_TRIES = 0.1  # an item of the catalogue: so many draws take longer than to put all items in order
_COLUMNS = 8192  # compared with the target at once
_BLOCK = 128  # scores that are searched, or left out, together
_FEWEST_BLOCKS = 20  # for each of the largest: with fewer it is slower
_USERS = 64
# On a CPU fewer where there are many items: 16 MB of scores stay in its cache, and in memory that the
# allocator keeps. From 32 MB on it maps each anew, which takes longer than to compute them.
_SCORES = 1 << 22


def users_at_once(num_items: int, device: str = "cpu") -> int:
    """How many users' scores of all items are computed and ranked together."""
    return max(1, min(_USERS, _SCORES // num_items)) if device == "cpu" else _USERS


def target_ranks(
    scores: torch.Tensor,  # (B, V + 1) float, column 0 is padding
    targets: torch.Tensor,  # (B,) int64, 1..V
    exclude: torch.Tensor | None = None,  # (B, H) int64, no candidates; filled up with 0
) -> torch.Tensor:
    """(B,) int64, 1 + the number of other candidates whose score is not below the target's.

    Ties count against the target. Nothing is below NaN and NaN is below nothing, so a target with
    NaN is last. Padding is never a candidate, the target always is, excluded or not.
    """
    own = scores.gather(1, targets.unsqueeze(1))  # (B, 1)
    # PyTorch widens bools before it sums them, so it gets columns enough to do that in a cache.
    pieces = scores[:, 1:].split(_COLUMNS, dim=1)
    below = sum((piece < own).sum(dim=1, dtype=torch.int32) for piece in pieces)
    ranks = scores.shape[1] - 1 - below.long()
    return ranks if exclude is None else ranks - _excluded_ahead(scores, targets, exclude)


def _excluded_ahead(
    scores: torch.Tensor,  # (B, V + 1) float
    targets: torch.Tensor,  # (B,) int64, 1..V
    exclude: torch.Tensor,  # (B, H) int64, with repetitions; filled up with 0
) -> torch.Tensor:
    """(B,) int64, how many candidates fewer are ahead of the targets without these items."""
    items = exclude.sort(dim=1).values
    first = items.diff(dim=1, prepend=torch.zeros_like(items[:, :1])) > 0  # no repetition, no 0
    others = items * (first & (items != targets.unsqueeze(1)))
    return sampled_ranks(scores, targets, others) - 1


def sampled_ranks(
    scores: torch.Tensor,  # (B, V + 1) float
    targets: torch.Tensor,  # (B,) int64, 1..V
    candidates: torch.Tensor,  # (B, C) int64, without the target; filled up with 0
) -> torch.Tensor:
    """(B,) int64, the ranks of the targets among their candidates, ties and NaN as above."""
    ahead = ~(scores.gather(1, candidates) < scores.gather(1, targets.unsqueeze(1)))
    return 1 + (ahead & (candidates > 0)).sum(dim=1)


def top_items(
    scores: torch.Tensor,  # (B, V + 1) float, column 0 is padding
    count: int,
    exclude: torch.Tensor | None = None,  # (B, H) int64, never recommended; filled up with 0
) -> torch.Tensor:
    """(B, min(count, V)) int64, the items of the highest scores, best first; 0 where none is left."""
    if exclude is not None:
        scores = scores.scatter(1, exclude, -torch.inf)
    values, indices = _largest(scores[:, 1:], min(count, scores.shape[1] - 1))
    return (indices + 1).masked_fill(values == -torch.inf, 0)


def _largest(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`scores.topk(count, dim=1)`, on a CPU from long rows without a search in all of them.

    The largest of a row are in those blocks of it whose maxima are largest: one pass of vectors.
    """
    blocks = scores.shape[1] // _BLOCK
    if scores.device.type != "cpu" or blocks < _FEWEST_BLOCKS * count:
        return scores.topk(count, dim=1)
    end = blocks * _BLOCK
    best = scores[:, :end].unflatten(1, (blocks, _BLOCK)).amax(dim=2).topk(count, dim=1).indices
    columns = (best.unsqueeze(2) * _BLOCK + torch.arange(_BLOCK)).flatten(1)
    rest = torch.arange(end, scores.shape[1]).expand(len(scores), -1)
    columns = torch.cat([columns, rest], dim=1)
    values, places = scores.gather(1, columns).topk(count, dim=1)
    return values, columns.gather(1, places)


def _top_with_and_without(
    scores: torch.Tensor,  # (B, V + 1) float, column 0 is padding
    count: int,
    exclude: torch.Tensor,  # (B, H) int64, filled up with 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """`top_items` of all items and of those that are left."""
    if exclude.shape[1] > 2 * count:
        return top_items(scores, count), top_items(scores, count, exclude)
    # One search, which is cheaper than two unless it has to go deep.
    best = top_items(scores, count + exclude.shape[1])
    excluded = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, exclude, True)
    out = excluded.gather(1, best)
    left = out.byte().argsort(dim=1, stable=True)[:, :count]
    return best[:, :count], best.gather(1, left).masked_fill(out.gather(1, left), 0)


def draw_candidates(
    split: LeaveOneOut, stage: Stage, seed: int, batch_size: int = 256
) -> dict[str, np.ndarray]:
    """100 items a user to rank the target against, none of them the target or in the history.

    They are drawn without replacement, for "popular-100" in proportion to how often an item occurs
    in the training part and for "random-100" uniformly.

    Returns:
        {"popular-100": (E, 100) int32, "random-100": (E, 100) int32} in the order of
        `split.eval_users`; the end of a row is 0 where there are fewer items to draw from.
    """
    rng = np.random.default_rng(seed)
    items = split.sequences.items
    starts = split.sequences.offsets[split.eval_users]
    ends = starts + split.history_lengths(stage) + 1  # the target stands behind the history
    popular = split.train_counts().astype(np.int64)
    uniform = np.ones_like(popular)
    uniform[0] = 0  # padding
    drawn = {}
    for name, weights in zip(SAMPLED_PROTOCOLS, (popular, uniform)):
        drawn[name] = rows_drawn = np.zeros((len(starts), SAMPLED), np.int32)
        cumulative = weights.cumsum()
        for rows in _slices(len(starts), batch_size):
            known = [items[start:end] for start, end in zip(starts[rows], ends[rows])]
            rows_drawn[rows] = _draw(rng, cumulative, known)
    return drawn


def _draw(
    rng: np.random.Generator,
    cumulative: np.ndarray,  # (V + 1,) int64, sums of the items' weights, of which the first is 0
    known: Sequence[np.ndarray],  # B times (H,) int32, of any length, never drawn
) -> np.ndarray:  # (B, SAMPLED) int64, filled up with 0
    """Items in proportion to their weights, one after the other, without replacement.

    Draws with replacement that leave out what has been drawn are that, and cost nothing for the items
    that are not drawn, of which there may be millions. Only where too many would be needed, all items
    that are left are put in order.
    """
    drawn = np.zeros((len(known), SAMPLED), np.int64)
    few, tries = np.arange(len(known)), _TRIES
    while len(few) and (tries == _TRIES or tries <= _MOST_TRIES * len(cumulative)):
        for rows in _slices(len(few), max(1, len(known) * _TRIES // tries)):
            some = few[rows]
            drawn[some] = _filled(rng, cumulative, [known[one] for one in some], drawn[some], tries)
        few, tries = few[drawn[few, -1] == 0], 2 * tries

    if len(few):
        with np.errstate(divide="ignore"):
            log_weights = np.log(np.diff(cumulative, prepend=0), dtype=np.float32)
    for one in few:
        # The largest of log w + Gumbel noise are a draw without replacement. A float32 draw may round
        # to 0, whose key would be infinite even for a weight of 0.
        noise = rng.standard_exponential(len(log_weights), dtype=np.float32)
        keys = log_weights - np.log(np.maximum(noise, 1e-30))
        left_out = np.concatenate([known[one], drawn[one]])
        more = top_items(torch.from_numpy(keys)[None], SAMPLED, torch.from_numpy(left_out)[None])
        count = np.count_nonzero(drawn[one])
        drawn[one, count : count + more.shape[1]] = more[0, : SAMPLED - count]
    return drawn


def _filled(
    rng: np.random.Generator,
    cumulative: np.ndarray,  # as in `_draw`, and the next one
    known: Sequence[np.ndarray],
    drawn: np.ndarray,  # (B, SAMPLED) int64, filled up with 0
    tries: int,
) -> np.ndarray:  # (B, SAMPLED) int64
    """`drawn` with what so many more draws with replacement add to each row."""
    counts = np.count_nonzero(drawn, axis=1)
    items = rng.integers(cumulative[-1], size=(len(known), tries))
    items = np.searchsorted(cumulative, items, side="right")
    row = np.arange(len(known)) * len(cumulative)
    pairs = row[:, None] + items  # of a row and an item
    new = np.zeros(items.shape, bool)
    new.flat[np.unique(pairs, return_index=True)[1]] = True
    of_known = np.repeat(row, [len(items) for items in known]) + np.concatenate(known)
    of_drawn = (row[:, None] + drawn)[drawn > 0]
    new &= ~np.isin(pairs, np.concatenate([of_known, of_drawn]))
    place = counts[:, None] + new.cumsum(axis=1) - 1
    new &= place < SAMPLED
    filled = drawn.copy()
    filled[new.nonzero()[0], place[new]] = items[new]
    return filled


def rank_targets(
    split: LeaveOneOut,
    stage: Stage,
    batches: Iterable[ScoreBatch],
    candidates: Candidates | None = None,
    top: int = 0,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Ranks of the targets of a stage, and the items recommended in their place.

    Args:
        batches: users and scores, together each of `split.eval_users` once, in any order; scores
            of any float dtype, on any device.
        candidates: more protocols, see `draw_candidates`.
        top: number of items recommended, at most.

    Returns:
        ranks {"filtered": (E,) int64, "unfiltered": (E,) int64, and one for each of `candidates`}
        and lists {"filtered": (E, top) int32, "unfiltered": (E, top) int32}, best first, filled up
        with 0; rows in the order of `split.eval_users`.

    Raises:
        ValueError: `batches` misses a user, repeats one, or holds one that is not ranked.
    """
    num_ranked = len(split.eval_users)
    targets, lengths = split.targets(stage), split.history_lengths(stage)
    candidates = candidates or {}
    whole = ("filtered", "unfiltered")
    ranks = {name: np.zeros(num_ranked, dtype=np.int64) for name in (*whole, *candidates)}
    lists = {name: np.zeros((num_ranked, top), dtype=np.int32) for name in whole}
    for users, scores in batches:
        rows = np.searchsorted(split.eval_users, users)
        if (rows == num_ranked).any() or (split.eval_users[rows] != users).any():
            raise ValueError("batches: holds a user that is not in split.eval_users")
        if any(ranks["filtered"][rows]) or len(np.unique(rows)) < len(rows):
            raise ValueError("batches: holds a user twice")
        target = torch.from_numpy(targets[rows].astype(np.int64)).to(scores.device)
        history = _histories(split, users, lengths[rows]).to(scores.device)
        # All scores are compared once.
        unfiltered = target_ranks(scores, target)
        ranks["unfiltered"][rows] = unfiltered.cpu().numpy()
        filtered = unfiltered - _excluded_ahead(scores, target, history)
        ranks["filtered"][rows] = filtered.cpu().numpy()
        if top:
            both = _top_with_and_without(scores, top, history)
            for name, best in zip(("unfiltered", "filtered"), both):
                lists[name][rows, : best.shape[1]] = best.cpu().numpy()
        for name, sampled in candidates.items():
            against = torch.from_numpy(sampled[rows].astype(np.int64)).to(scores.device)
            ranks[name][rows] = sampled_ranks(scores, target, against).cpu().numpy()
    missing = np.count_nonzero(ranks["filtered"] == 0)
    if missing:
        raise ValueError(f"batches: {missing} of {num_ranked} users are missing")
    return ranks, lists


def rank_shared(
    split: LeaveOneOut,
    stage: Stage,
    scores: Callable[[LeaveOneOut], Iterable[ScoreBatch]],
    candidates: Candidates | None = None,
    *,
    lists: bool = True,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The ranks of `rank_targets`, and what its lists hold: see `arec.metrics.listed`.

    Of several processes each ranks for a share of the users; all get the ranks and counts of all.

    Args:
        scores: the batches of `rank_targets` for the `eval_users` of a split.
        candidates: of the users of this process, see `parallel.scattered`.
        lists: without them there are no counts, and there is less to do.
    """
    part = split.for_users(split.eval_users[parallel.share(len(split.eval_users))])
    ranks, best = rank_targets(part, stage, scores(part), candidates, max(CUTOFFS) if lists else 0)
    given = {name: listed(items, split.sequences.num_items) for name, items in best.items() if lists}
    return parallel.concatenated(ranks), parallel.summed(given)


def evaluate_scores(
    split: LeaveOneOut,
    stage: Stage,
    scores: Callable[[LeaveOneOut], Iterable[ScoreBatch]],
    candidates: Candidates | None = None,
    *,
    lists: bool = True,
) -> dict[str, dict[str, float]]:
    """The metrics of each protocol: of ranks and, among all items, of lists too (`arec.metrics`).

    Args: see `rank_shared`.
    """
    return evaluate_ranks(split, stage, *rank_shared(split, stage, scores, candidates, lists=lists))


def evaluate_ranks(
    split: LeaveOneOut,
    stage: Stage,
    ranks: Mapping[str, np.ndarray],
    given: Mapping[str, np.ndarray],
) -> dict[str, dict[str, float]]:
    """`evaluate_scores` of what `rank_shared` returns."""
    metrics = {protocol: metrics_from_ranks(r) for protocol, r in ranks.items()}
    if given:
        targets, counts = split.targets(stage), split.train_counts()
        for protocol, times in given.items():
            metrics[protocol] |= metrics_from_lists(times, targets, counts)
    return metrics


def popularity_scores(split: LeaveOneOut) -> Iterator[ScoreBatch]:
    """The popularity baseline: every user gets the counts of the items in the training part."""
    counts = torch.from_numpy(split.train_counts()).to(torch.float64)
    for rows in _slices(len(split.eval_users), users_at_once(split.sequences.num_items)):
        users = split.eval_users[rows]
        yield users, counts.expand(len(users), -1)


def upper_bound_scores(split: LeaveOneOut, stage: Stage) -> Iterator[ScoreBatch]:
    """The upper bound of the built-in data, see `PlantedTruth.next_item_probabilities`.

    Raises:
        ValueError: the data has no planted truth.
    """
    planted = split.sequences.planted
    if planted is None:
        raise ValueError(f"split: expected the built-in data, got {split.sequences.name}")
    lengths = split.history_lengths(stage)
    for rows in _slices(len(split.eval_users), users_at_once(split.sequences.num_items)):
        users = split.eval_users[rows]
        scores = planted.next_item_probabilities(split.sequences, users, lengths[rows])
        yield users, torch.from_numpy(scores)


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, start + size)


def _histories(split: LeaveOneOut, users: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    """(B, longest) int64, the first `lengths` items of `users`, filled up with 0."""
    sequences = split.sequences
    return gather_windows(sequences.items, sequences.offsets[users] + lengths, lengths)
