"""Recommendations of a finished run."""

from __future__ import annotations

import csv
import gzip
import re
from collections import Counter

import numpy as np
import polars as pl
import pytest
import torch
from programs import SMALL, call
from tiny import histories, sequences_of

from arec import ranking, recommend, train
from arec.config import Config
from arec.objectives import build_objective


def test_the_usage_names_all_options(monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit):
        call(recommend, monkeypatch, "--help")
    usage, _, options = capsys.readouterr().out.partition("\n\n")
    named = set(re.findall(r"--\w+", options)) - {"--help"}
    assert named and named <= set(re.findall(r"--\w+", usage))


def test_recommend_names_new_items_in_order(log_file, tmp_path, monkeypatch, capsys) -> None:
    folder = tmp_path / "run"
    call(train, monkeypatch, "--dataset", log_file, "--run-dir", folder, "--epochs", 4, *SMALL)
    capsys.readouterr()
    call(recommend, monkeypatch, folder, "--top", 30, "--users", "user3", "user14")
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    with gzip.open(log_file, "rt") as file:
        histories = {line.split()[0]: set(line.split()[1:]) for line in file}
    films = {f"film{i}" for i in range(20)}
    for user in ("user3", "user14"):
        mine = [row for row in rows if row["user"] == user]
        assert {row["item"] for row in mine} == films - histories[user]
        assert [int(row["rank"]) for row in mine] == list(range(1, len(mine) + 1))
        scores = [float(row["score"]) for row in mine]
        assert scores == sorted(scores, reverse=True)

    call(recommend, monkeypatch, folder)
    users = [row["user"] for row in csv.DictReader(capsys.readouterr().out.splitlines())]
    assert Counter(users) == {user: min(10, 20 - len(items)) for user, items in histories.items()}

    call(recommend, monkeypatch, folder, "--top", 1, "--users= user3 ", "--users", "user14")
    table, silence = capsys.readouterr()
    firsts = list(csv.DictReader(table.splitlines()))
    assert not silence
    assert firsts == [row for row in rows if row["rank"] == "1"]

    call(recommend, monkeypatch, folder, "--top", 30, "--users", "nobody", "user14", "else",
         "user14")  # fmt: skip
    known, error = capsys.readouterr()
    expected = [row["item"] for row in mine]
    assert [row["item"] for row in csv.DictReader(known.splitlines())] == expected
    unknown, fewer = error.splitlines()
    assert "no user 'nobody', 'else'" in unknown
    assert fewer.endswith("1 of 1 users leave fewer than 30 items to recommend")
    with pytest.raises(SystemExit) as exit:
        call(recommend, monkeypatch, folder, "--users", "nobody")
    assert exit.value.code == 2
    nothing, error = capsys.readouterr()
    assert nothing == "" and "no user 'nobody'; there is, for example, 'user0'" in error


def test_recommends_after_the_latest_items_of_every_user(monkeypatch) -> None:
    monkeypatch.setattr(ranking, "_USERS", 3)
    sequences = histories(users=8).sequences
    config = Config(method="sasrec", hidden_size=8, feed_forward=8, max_length=4)
    torch.manual_seed(0)
    objective = build_objective(config, 20)
    users = np.array([5, 0, 7, 2, 3, 1, 6])
    got = list(recommend.recommend(objective, sequences, users, top=5))
    assert [user for user, *_ in got] == users.tolist()
    for user, items, scores in got:
        history = sequences[user].tolist()
        with torch.no_grad():
            expected = objective.score(torch.tensor([history[-4:]]), torch.tensor([4]))[0]
        expected[[0, *history]] = -torch.inf
        best = expected.topk(5)
        assert items.tolist() == best.indices.tolist()
        assert scores == pytest.approx(best.values.numpy(), rel=1e-4)


@pytest.mark.parametrize("user", [-1, 8, 1])
def test_users_that_are_not_there_or_have_nothing(user: int) -> None:
    sequences = sequences_of([1, 2], [], *([3, 4] for _ in range(6)), num_items=4)
    objective = build_objective(Config(method="sasrec", hidden_size=8, feed_forward=8), 4)
    message = f"^users: expected numbers from 0 to 7 of users with items, got {user}; of an id"
    with pytest.raises(ValueError, match=message):
        recommend.recommend(objective, sequences, [0, user], top=2)


@pytest.mark.parametrize("ids", [["2"], np.array(["2"], dtype=object), [2.0]])
def test_ids_are_no_numbers_of_users(ids) -> None:
    sequences = sequences_of(*([1, 2, 3] for _ in range(3)), num_items=4)
    objective = build_objective(Config(method="sasrec", hidden_size=8, feed_forward=8), 4)
    with pytest.raises(ValueError, match="^users: expected numbers from 0 to 2 of users"):
        recommend.recommend(objective, sequences, ids, top=2)


def test_scores_after_histories_of_nobody() -> None:
    torch.manual_seed(0)
    objective = build_objective(Config(method="bert4rec", hidden_size=8, feed_forward=8, max_length=4), 9)
    objective.train()
    small = np.array([7], np.uint8)
    first, second = recommend.score_histories(objective, iter([(3, 9, 1, 2, 5), small]))
    for scores, seen in ((first, [9, 1, 2, 5]), (second, [7])):
        with torch.no_grad():
            expected = objective.score(torch.tensor([seen]), torch.tensor([len(seen)]))[0]
        torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize(
    "wrong", [[[]], [[1], []], [[0]], [[10]], [[3, -1]], [3], ["1"], [["1"]], [[1.5]], [[2.0]]]
)
def test_histories_are_of_items_that_the_model_knows(wrong) -> None:
    objective = build_objective(Config(method="sasrec", hidden_size=8, feed_forward=8), 9)
    with pytest.raises(ValueError, match=f"^histories: .* from 1 to 9 .*, got {re.escape(repr(wrong[-1]))}$"):
        recommend.score_histories(objective, wrong)
    with pytest.raises(ValueError, match="^histories: expected at least one, got none$"):
        recommend.score_histories(objective, [])


def test_no_items_are_no_recommendation(tmp_path, refused) -> None:
    assert "--top: expected at least 1, got 0" in refused(recommend, tmp_path, "--top", 0)


def test_ids_of_parquet_keep_their_blanks(tmp_path, monkeypatch, capsys) -> None:
    """As databases pad them."""
    rows = [(f"u{user:<5}", f"i{(user + step) % 9}", step) for user in range(12) for step in range(5)]
    pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row").write_parquet(tmp_path / "log.parquet")
    call(train, monkeypatch, "--dataset", tmp_path / "log.parquet", "--run-dir", tmp_path / "run", "--epochs", 1,
         "--k-core", 1, *SMALL)  # fmt: skip
    capsys.readouterr()
    call(recommend, monkeypatch, tmp_path / "run", "--top", 1, "--users", "u3    ")
    table, said = capsys.readouterr()
    assert [row["user"] for row in csv.DictReader(table.splitlines())] == ["u3    "] and not said
