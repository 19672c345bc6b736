from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
import torch
from tiny import histories, sequences_of

from arec.data.batches import TrainingBatches, history_batches
from arec.data.builtin import PlantedTruth
from arec.data.split import LeaveOneOut
from arec.errors import DataError

MAX_LENGTH = 6


@pytest.fixture(scope="module")
def split() -> LeaveOneOut:
    rng = np.random.default_rng(0)
    lengths = np.array([0, 1, 2, 3, 4, 8, 9, 12, *rng.integers(3, 20, size=80)])
    items = rng.integers(1, 31, size=lengths.sum()).astype(np.int32)
    return LeaveOneOut(sequences_of(*np.split(items, lengths.cumsum()[:-1]), num_items=30))


def batches(split: LeaveOneOut, **settings) -> TrainingBatches:
    settings = {"batch_size": 16, "max_length": MAX_LENGTH, "partners": True} | settings
    return TrainingBatches(split, **settings)


def training_windows(split: LeaveOneOut) -> set[tuple[int, ...]]:
    """Every window of inputs with its next item, over all training parts."""
    found = set()
    for user in range(split.sequences.num_users):
        items = split.sequences[user][: split.train_lengths[user]].tolist()
        for end in range(1, len(items)):
            found.add(tuple(items[max(0, end - MAX_LENGTH) : end + 1]))
    return found


def test_windows_come_from_the_training_part_and_targets_are_next(split: LeaveOneOut) -> None:
    known = training_windows(split)
    for batch in batches(split).epoch(0):
        for inputs, targets, length in zip(batch.inputs, batch.targets, batch.lengths):
            window = inputs[:length].tolist()
            assert not inputs[length:].any() and not targets[length:].any()
            assert targets[: length - 1].tolist() == window[1:]
            assert (*window, targets[length - 1].item()) in known


def test_every_user_once_an_epoch_also_in_the_last_incomplete_batch(split: LeaveOneOut) -> None:
    loader = batches(split)
    sizes = [len(batch.inputs) for batch in loader.epoch(3)]
    assert len(sizes) == len(loader)
    assert sum(sizes) == (split.train_lengths >= 2).sum()
    assert sum(sizes) % 16, "the case is one with an incomplete batch"


def test_a_batch_holds_windows_of_all_lengths(split: LeaveOneOut) -> None:
    loader = batches(split, random_windows=0.0)
    means = [batch.lengths.float().mean() for e in range(10) for batch in loader.epoch(e)]
    lengths = np.minimum(split.train_lengths[split.train_lengths >= 2] - 1, MAX_LENGTH)
    # Sorted by length, means of batches would spread like the lengths themselves; 1/4 of that is
    # what independent draws leave of it in batches of 16.
    assert np.std(means) < 0.5 * lengths.std()


@pytest.mark.parametrize(
    "settings", [{"rows": "prefix"}, {"anchors": "last"}, {"anchors": "random"}], ids=str
)
def test_partners_are_somebody_else_before_the_same_target(split: LeaveOneOut, settings) -> None:
    known = training_windows(split)
    for batch in batches(split, **settings).epoch(1):
        targets, lengths = batch.anchor_targets.tolist(), batch.anchor_lengths.tolist()
        for row, length in enumerate(batch.partner_lengths):
            window = batch.partner_inputs[row, :length].tolist()
            assert (*window, targets[row]) in known
            assert window != batch.anchor_inputs[row, : lengths[row]].tolist()


def test_random_anchors_are_all_positions_alike(split: LeaveOneOut) -> None:
    loader = batches(split, anchors="random")
    counts = torch.zeros(MAX_LENGTH, dtype=torch.int64)
    for epoch in range(100):
        for batch in loader.epoch(epoch):
            for row, length in enumerate(batch.anchor_lengths):
                window = batch.inputs[row, : batch.lengths[row]]
                following = [*window[1:].tolist(), batch.last_targets[row].item()]
                inputs = batch.anchor_inputs[row]
                assert torch.equal(inputs[:length], window[:length]) and not inputs[length:].any()
                assert batch.anchor_targets[row] == following[length - 1]
            full = batch.anchors[batch.lengths == MAX_LENGTH]
            counts += torch.bincount(full - 1, minlength=MAX_LENGTH)
    expected = counts.sum() / MAX_LENGTH
    assert ((counts - expected).square() / expected).sum() < 25, "chi-squared, 5 degrees: p = 1e-4"


def test_anchors_of_prefixes_are_their_last_positions(split: LeaveOneOut) -> None:
    for batch in batches(split, rows="prefix", anchors="random").epoch(0):
        assert torch.equal(batch.anchor_lengths, batch.lengths)


def test_latest_windows_without_random_ones(split: LeaveOneOut) -> None:
    latest = {
        tuple(split.sequences[u][: split.train_lengths[u]][-MAX_LENGTH - 1 :].tolist())
        for u in range(split.sequences.num_users)
        if split.train_lengths[u] >= 2
    }
    for batch in batches(split, random_windows=0.0).epoch(0):
        for inputs, target, length in zip(batch.inputs, batch.last_targets, batch.lengths):
            assert (*inputs[:length].tolist(), target.item()) in latest


def test_random_windows_reach_every_position(split: LeaveOneOut) -> None:
    loader = batches(split, random_windows=1.0)
    seen = {
        (*inputs[:length].tolist(), target.item())
        for epoch in range(200)
        for batch in loader.epoch(epoch)
        for inputs, target, length in zip(batch.inputs, batch.last_targets, batch.lengths)
    }
    long = np.flatnonzero(split.train_lengths > MAX_LENGTH + 1)
    for user in long:
        items = split.sequences[user][: split.train_lengths[user]].tolist()
        for end in range(MAX_LENGTH, len(items)):
            assert tuple(items[end - MAX_LENGTH : end + 1]) in seen


def test_epochs_differ_and_repeat(split: LeaveOneOut) -> None:
    loader = batches(split)
    first, again, other = (
        torch.cat([batch.inputs.flatten() for batch in loader.epoch(epoch)]) for epoch in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_rows_of_prefixes_are_all_prefixes_once(split: LeaveOneOut) -> None:
    loader = batches(split, rows="prefix")
    seen = []
    for batch in loader.epoch(0):
        assert batch.targets.shape == batch.lengths.shape
        assert torch.equal(batch.anchor_targets, batch.targets)
        for inputs, target, length in zip(batch.inputs, batch.targets, batch.lengths):
            assert not inputs[length:].any()
            seen.append((*inputs[:length].tolist(), target.item()))
    expected = []
    for user in range(split.sequences.num_users):
        items = split.sequences[user][: split.train_lengths[user]].tolist()
        expected += [tuple(items[max(0, i - MAX_LENGTH) : i + 1]) for i in range(1, len(items))]
    assert sorted(seen) == sorted(expected)
    assert len(loader) == -(-len(expected) // 16)


def test_without_two_training_items_there_is_nothing_to_learn() -> None:
    with pytest.raises(DataError, match="threes: no user has 2 items to train with"):
        batches(LeaveOneOut(sequences_of(*[[1, 2, 3]] * 3, name="threes")))


def test_a_prefix_costs_an_index_and_no_copy() -> None:
    users, length = 10_000, 102  # 990,000 prefixes, as many as MovieLens 1M has
    items = np.random.default_rng(0).integers(1, 3001, (users, length))
    split = LeaveOneOut(sequences_of(*items, num_items=3000))
    tracemalloc.start()
    loader = batches(split, rows="prefix", batch_size=1024, max_length=50)
    epoch = loader.epoch(0)
    next(epoch)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(loader.users) == 990_000
    assert held < 65e6, "with the index of same-target partners"


@pytest.mark.parametrize("rows", ["all-positions", "prefix"])
def test_a_sample_is_of_training_windows_and_always_the_same(split: LeaveOneOut, rows: str) -> None:
    known = training_windows(split)
    loader = batches(split, rows=rows)
    sample = list(loader.sample(40))
    assert [len(batch.inputs) for batch in sample] == [16, 16, 8]
    for batch, again in zip(sample, loader.sample(40), strict=True):
        assert torch.equal(batch.inputs, again.inputs)
        assert torch.equal(batch.partner_inputs, again.partner_inputs)
        for inputs, length, target in zip(batch.inputs, batch.lengths, batch.last_targets):
            assert (*inputs[:length].tolist(), target.item()) in known
    assert sum(len(batch.inputs) for batch in loader.sample(10**6)) == len(loader.users)


def test_a_seed_has_a_sample_of_its_own(split: LeaveOneOut) -> None:
    one, other = (next(batches(split, seed=seed).sample(16)).inputs for seed in (0, 1))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("stage", ["valid", "test"])
def test_histories_are_the_latest_items_before_the_target(split: LeaveOneOut, stage: str) -> None:
    known = dict(zip(split.eval_users.tolist(), split.history_lengths(stage).tolist()))
    seen = []
    for users, inputs, lengths in history_batches(split, stage, batch_size=7, max_length=MAX_LENGTH):
        for user, items, length in zip(users, inputs, lengths):
            history = split.sequences[user][: known[user]]
            assert items[:length].tolist() == history[-MAX_LENGTH:].tolist()
            assert not items[length:].any()
        seen += users.tolist()
    assert sorted(seen) == sorted(known)


@pytest.mark.parametrize("rows", ["all-positions", "prefix"])
def test_weights_let_a_target_count_the_same_in_every_batch(split: LeaveOneOut, rows: str) -> None:
    epoch = list(batches(split, rows=rows, batch_size=20).epoch(0))
    targets = np.array([(batch.targets > 0).sum().item() for batch in epoch])
    assert len(set(targets)) > 1
    weights = [batch.weight for batch in epoch]
    assert weights == pytest.approx(targets / targets.mean())


@pytest.mark.parametrize("rows", ["all-positions", "prefix"])
def test_intents_are_of_the_anchor_s_and_of_the_partner_s_target(split, rows) -> None:
    items = split.sequences.items
    places = np.arange(len(items), dtype=np.int16)  # every interaction an intent of its own
    truth = PlantedTruth(places, *np.zeros((3, 1)))
    planted = LeaveOneOut(dataclasses.replace(split.sequences, planted=truth))
    for batch in batches(planted, rows=rows).epoch(0):
        own, partner = batch.intents.unflatten(0, (2, -1)).tolist()
        assert items[own].tolist() == items[partner].tolist() == batch.anchor_targets.tolist()
        for at, inputs, length in zip(own, batch.anchor_inputs, batch.anchor_lengths):
            assert inputs[:length].tolist() == items[at - length : at].tolist()
        for at, inputs, length in zip(partner, batch.partner_inputs, batch.partner_lengths):
            assert inputs[:length].tolist() == items[at - length : at].tolist()


def test_no_two_epochs_of_any_seed_are_alike(split) -> None:
    orders = {
        str([batch.inputs.tolist() for batch in batches(split, seed=seed).epoch(epoch)])
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


@pytest.mark.parametrize("rows", ["all-positions", "prefix"])
def test_rows_that_do_not_divide_are_others_each_time(rows) -> None:
    loader = TrainingBatches(histories(), batch_size=20, random_windows=0.0, rows=rows, shares=20)
    left_out = len(loader.users) - loader.num_rows
    assert left_out
    seen = {
        (*inputs[:length].tolist(), target.item())
        for epoch in range(30)
        for batch in loader.epoch(epoch)
        for inputs, target, length in zip(batch.inputs, batch.last_targets, batch.lengths)
    }
    alone = TrainingBatches(histories(), batch_size=20, random_windows=0.0, rows=rows)
    whole = {
        (*inputs[:length].tolist(), target.item())
        for batch in alone.epoch(0)
        for inputs, target, length in zip(batch.inputs, batch.last_targets, batch.lengths)
    }
    assert seen == whole
