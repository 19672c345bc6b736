"""The built-in data set: made in memory from a seed, its latent intents known.

Every user follows one intent at a time and turns to another of their taste now and then. An intent
prefers a few dozen items, most of which one or two other intents prefer too; popularity has a long
tail; the followers of the previous item are pulled ahead a little; nobody consumes an item twice
(as in MovieLens). So a sequential model beats popularity, and two things are known that no real
data can tell: which sequences continue with the same intent, and how well the next item can be
ranked by one who knows the state of the generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arec.data.interactions import Sequences
from arec.data.prepare import k_core_mask
from arec.errors import DataError

_INTENTS_OF_AN_ITEM = (0.4, 0.4, 0.2)  # probability of one, two, three
_POPULARITY_SHIFT = 25  # popularity of the r-th item is 1 / (r + shift)
_STRAY = 0.04  # share of an intent's preference that is spread evenly over all items
_MEDIAN_LENGTH, _LENGTH_SPREAD = 26, 0.6  # lognormal
_LENGTHS = (5, 100)
_TASTE_CONCENTRATION = 0.2  # Dirichlet: a user turns to some four intents most of the time
_DWELL = 8  # mean number of items before a user turns to another intent
_FOLLOWERS = 3  # of each item
_PULL = 8.0  # a follower of the previous item is so much more likely


@dataclass(frozen=True, eq=False)
class PlantedTruth:
    """State and parameters of the generator, aligned with `Sequences`. Read-only.

    The target of a history of u of length l is interaction `offsets[u] + l`. Two histories are true
    false negatives of each other when `intents` of their targets are the same.
    """

    intents: np.ndarray  # (n,) int16, the intent that made each interaction
    preference: np.ndarray  # (Z, V + 1) float64, P(item | intent); column 0 is 0
    followers: np.ndarray  # (V + 1, 3) int64, items pulled ahead by the previous item
    tastes: np.ndarray  # (U, Z) float64, P(intent | user) when the user turns to another

    def __post_init__(self) -> None:
        for array in vars(self).values():
            array.setflags(write=False)

    def next_item_probabilities(
        self,
        sequences: Sequences,
        users: np.ndarray,  # (B,) int64
        history_lengths: np.ndarray,  # (B,) int64, at least 1
    ) -> np.ndarray:
        """(B, V + 1) float64, P(next item | history, its last intent, the user's taste).

        Exact: the generator draws the next item from it. Ranking by it is the best anybody can
        expect in NDCG, MRR and Recall who knows the intent of the last item of the history, so it
        bounds from above what a model can expect, who has to guess that intent. It does not know
        the intent of the target itself. On a finite sample a figure can lie above by luck. Items
        of the history have probability 0, so that both ranking protocols agree.
        """
        consumed = np.zeros((len(users), self.preference.shape[1]), dtype=bool)
        for row, (user, length) in enumerate(zip(users, history_lengths, strict=True)):
            consumed[row, sequences[user][:length]] = True
        last = sequences.offsets[users] + history_lengths - 1
        tilt = _tilt(self.followers, sequences.items[last], consumed)  # (B, V + 1)

        intent = self.tastes[users] / _DWELL  # (B, Z), of the next item
        intent[np.arange(len(users)), self.intents[last]] += 1 - 1 / _DWELL
        mass = tilt @ self.preference.T  # (B, Z), so that each intent's weights add up to 1
        return (intent / mass) @ self.preference * tilt


def generate(
    seed: int = 0,
    k_core: int = 5,
    *,
    num_users: int = 2000,
    num_items: int = 600,
    num_intents: int = 24,
) -> Sequences:
    """The built-in data, with `planted` set. The same arguments make the same data.

    Raises:
        DataError: there are fewer items than the longest sequence has, 100; or a user or an item has
            fewer than `k_core` interactions. Filtering would bend the known probabilities, so the data
            is made to need none for 5 or fewer.
    """
    if num_items < _LENGTHS[1]:
        raise DataError(
            f"num_items: expected at least {_LENGTHS[1]}, as many as the longest sequence has, "
            f"got {num_items}"
        )
    rng = np.random.default_rng(seed)
    preference, followers = _catalogue(rng, num_items, num_intents)
    tastes = rng.dirichlet(np.full(num_intents, _TASTE_CONCENTRATION), size=num_users)
    lengths = np.exp(rng.normal(np.log(_MEDIAN_LENGTH), _LENGTH_SPREAD, size=num_users))
    lengths = np.clip(lengths.astype(np.int64), *_LENGTHS)

    # All users take a step at a time; the longest come first, so that the active ones are first.
    lengths = np.sort(lengths)[::-1]
    inside = np.arange(lengths[0]) < lengths[:, None]  # (U, longest)
    items = np.zeros(inside.shape, dtype=np.int32)
    intents = np.zeros(inside.shape, dtype=np.int16)
    consumed = np.zeros((num_users, num_items + 1), dtype=bool)
    for step in range(lengths[0]):
        active = np.count_nonzero(inside[:, step])
        intent = _draw(rng, tastes[:active])
        if step:
            stays = rng.random(active) >= 1 / _DWELL
            intent = np.where(stays, intents[:active, step - 1], intent)
        previous = items[:active, step - 1] if step else np.zeros(active, dtype=np.int32)
        item = _draw(rng, preference[intent] * _tilt(followers, previous, consumed[:active]))
        consumed[np.arange(active), item] = True
        items[:active, step], intents[:active, step] = item, intent

    # The order of users tells nothing: shuffle it.
    shuffled = rng.permutation(num_users)
    inside, tastes = inside[shuffled], tastes[shuffled]
    items, intents = items[shuffled][inside], intents[shuffled][inside]
    users = np.repeat(np.arange(num_users), inside.sum(axis=1))
    if not k_core_mask(users, items, k_core).all():
        raise DataError(f"the built-in data (seed {seed}) is no {k_core}-core; set k_core lower")
    return Sequences(
        name="builtin",
        items=items,
        offsets=np.concatenate([[0], np.cumsum(inside.sum(axis=1))]),
        item_ids=_names("item", num_items),
        user_ids=_names("user", num_users),
        planted=PlantedTruth(intents, preference, followers, tastes),
    )


def _catalogue(
    rng: np.random.Generator, num_items: int, num_intents: int
) -> tuple[np.ndarray, np.ndarray]:
    """`preference` and `followers` of `PlantedTruth`."""
    popularity = 1 / (rng.permutation(num_items) + 1.0 + _POPULARITY_SHIFT)
    count = 1 + _draw(rng, np.tile(_INTENTS_OF_AN_ITEM, (num_items, 1)))
    order = rng.permuted(np.tile(np.arange(num_intents), (num_items, 1)), axis=1)
    member = np.zeros((num_items, num_intents), dtype=bool)
    np.put_along_axis(member, order, np.arange(num_intents) < count[:, None], axis=1)

    weights = member.T * popularity * rng.lognormal(sigma=0.3, size=(num_intents, num_items))
    preference = np.zeros((num_intents, num_items + 1))
    preference[:, 1:] = (1 - _STRAY) * weights / weights.sum(axis=1, keepdims=True)
    preference[:, 1:] += _STRAY / num_items

    # Followers share the first intent of the item.
    followers = np.zeros((num_items + 1, _FOLLOWERS), dtype=np.int64)
    for item in range(num_items):
        others = member[:, order[item, 0]] & (np.arange(num_items) != item)
        followers[item + 1] = 1 + rng.choice(np.flatnonzero(others), _FOLLOWERS, replace=False)
    return preference, followers


def _tilt(followers: np.ndarray, previous: np.ndarray, consumed: np.ndarray) -> np.ndarray:
    """(B, V + 1) float64, by what the history multiplies the preference of the intent."""
    tilt = np.ones(consumed.shape)
    np.put_along_axis(tilt, followers[previous], _PULL, axis=1)
    tilt[consumed] = 0
    return tilt


def _draw(rng: np.random.Generator, weights: np.ndarray) -> np.ndarray:
    """(B,) int64, a column for each row of `weights` (B, C), as likely as its weight."""
    cumulative = np.cumsum(weights, axis=1)
    threshold = rng.random(len(weights)) * cumulative[:, -1]
    return (cumulative <= threshold[:, None]).sum(axis=1)


def _names(kind: str, count: int) -> np.ndarray:
    """Numbered from 1, in the order of the text."""
    digits = len(str(count))
    return np.array([f"{kind}-{i:0{digits}}" for i in range(1, count + 1)], dtype=object)
