"""``python -m arec.recommend RUN``: what each user would choose next, as CSV with original ids."""

from __future__ import annotations

import csv
import operator
import reprlib
import sys
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from arec import parallel
from arec.checkpoint import load_run
from arec.cli import Parser, add_device, run_program
from arec.data.batches import gather_windows
from arec.data.interactions import Sequences
from arec.errors import RunError
from arec.files import user_path
from arec.objectives import Objective
from arec.ranking import top_items, users_at_once


def recommend(
    objective: Objective,
    sequences: Sequences,
    users: np.ndarray,  # (n,) numbers as in `sequences`, each with at least one item
    top: int,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The best items after everything a user has chosen so far, without what they have already.

    Example::

        import numpy as np
        import torch

        from arec.checkpoint import load_run
        from arec.recommend import recommend, score_histories

        config, split, objective = load_run("runs/mine")
        sequences = split.sequences
        users = np.flatnonzero(sequences.user_ids == "42")
        for user, items, scores in recommend(objective, sequences, users, top=10):
            print(sequences.user_ids[user], [sequences.item_ids[item - 1] for item in items])

    A history that is not in the run::

        number = {name: number for number, name in enumerate(sequences.item_ids, start=1)}
        # The k-core may have dropped items; a history of none is refused.
        history = [number[name] for name in ("17", "4", "99") if name in number]
        scores = score_histories(objective, [history])[0]
        scores[[0, *history]] = -torch.inf  # padding, and what the user has
        print([sequences.item_ids[item - 1] for item in scores.topk(10).indices])

    Raises:
        ValueError: a user that is not there or has no items.

    Yields:
        user, items ``(k,)`` int64 and scores ``(k,)`` float32, best first; k is less than ``top``
        where the user leaves fewer items.
    """
    users = np.asarray(users)
    there = np.isin(users, np.flatnonzero(sequences.lengths > 0)) & (users.dtype.kind in "iu")
    if unknown := users[~there].tolist():
        raise ValueError(
            f"users: expected numbers from 0 to {len(sequences.lengths) - 1} of users with items, "
            f"got {unknown[0]!r}; of an id, which is text, np.flatnonzero(sequences.user_ids == id) is the number"
        )
    return _best(objective, sequences, users, top)


@torch.no_grad()
def _best(
    objective: Objective, sequences: Sequences, users: np.ndarray, top: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    objective.eval()
    device = objective.device
    size = users_at_once(sequences.num_items, device.type)
    for start in range(0, len(users), size):
        batch = users[start : start + size]
        ends = sequences.offsets[batch + 1]
        lengths = ends - sequences.offsets[batch]
        history = gather_windows(sequences.items, ends, lengths)
        seen = np.minimum(lengths, objective.encoder.max_length)
        inputs = gather_windows(sequences.items, ends, seen)
        scores = objective.score(inputs.to(device), torch.from_numpy(seen).to(device))
        scores.scatter_(1, history.to(device), -torch.inf)  # in place: nothing else wants them
        best = top_items(scores, top)
        best_scores = scores.gather(1, best)
        for user, items, values in zip(batch, best.cpu().numpy(), best_scores.cpu().numpy()):
            kept = items > 0
            yield int(user), items[kept], values[kept]


@torch.no_grad()
def score_histories(
    objective: Objective,
    histories: Iterable[Iterable[int]],  # items 1..num_items of each, oldest first
) -> torch.Tensor:  # (n, num_items + 1); column 0 is padding and means nothing
    """How well each item would come after histories, which need not be of the run, all at once.

    Raises:
        ValueError: no history, an empty one, or an item that the model does not know.
    """
    encoder = objective.encoder
    seen = [_items(history, encoder.num_items)[-encoder.max_length :] for history in histories]
    if not seen:
        raise ValueError("histories: expected at least one, got none")
    objective.eval()
    inputs = pad_sequence([torch.tensor(items) for items in seen], batch_first=True)
    lengths = torch.tensor([len(items) for items in seen])
    return objective.score(inputs.to(objective.device), lengths.to(objective.device))


def _items(history: Iterable[int], known: int) -> list[int]:
    """Raises ValueError if it is no history of known items."""
    try:
        items = [operator.index(item) for item in history]
    except TypeError:
        items = []
    if not items or not 0 < min(items) <= max(items) <= known:
        raise ValueError(
            f"histories: expected lists of items, whole numbers from 1 to {known} and not their ids, "
            f"got {reprlib.repr(history)}"
        )
    return items


def main() -> None:
    with parallel.joined():  # only to write once what one process is enough for
        parallel.from_main(write_recommendations)


def write_recommendations() -> None:
    parser = Parser(
        "arec.recommend",
        "Recommend with the checkpoint of a run what comes after all items of a user, of those that "
        "the user has not; as CSV, in which the score is the logit.",
    )
    # argparse would put RUN last, where it would be taken for one of the ids.
    parser.usage = "%(prog)s RUN [-h] [--version] [--top K] [--users ID [ID ...]] [--device DEVICE]"
    parser.add_argument("run", type=user_path, metavar="RUN", help="folder of a run of arec.train")
    parser.add_argument("--top", type=int, default=10, metavar="K", help="items a user")
    parser.add_argument(
        "--users",
        nargs="+",
        action="extend",
        metavar="ID",
        help="ids as in the data set, of which unknown ones are named and passed over (one that "
        "begins with a hyphen: --users=ID, again for each); default: everybody",
    )
    add_device(parser)
    arguments = parser.parse_args()
    if arguments.top < 1:
        parser.error(f"--top: expected at least 1, got {arguments.top}")
    config, split, objective = load_run(arguments.run, arguments.device)
    sequences = split.sequences
    users = np.flatnonzero(sequences.lengths > 0)
    if arguments.users:
        number = {name: user for user, name in enumerate(sequences.user_ids)}
        # As text is read; ids of Parquet keep their blanks.
        asked = [name if name in number else name.strip() for name in arguments.users]
        unknown = [name for name in asked if name not in number]
        if unknown:
            named = ", ".join(map(repr, unknown))
            message = f"--users: {config.dataset} has, with k_core {config.k_core}, no user {named}"
            if len(unknown) == len(asked):
                raise RunError(f"{message}; there is, for example, {sequences.user_ids[users[0]]!r}")
            print(f"{parser.prog}: {message}", file=sys.stderr)
        known = dict.fromkeys(name for name in asked if name in number)
        users = np.array([number[name] for name in known])
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["user", "rank", "item", "score"])
    fewer = 0
    for user, items, scores in recommend(objective, sequences, users, arguments.top):
        fewer += len(items) < arguments.top
        for rank, (item, score) in enumerate(zip(items, scores), start=1):
            writer.writerow(
                [sequences.user_ids[user], rank, sequences.item_ids[item - 1], f"{score:.6g}"]
            )
    if fewer:
        print(
            f"{parser.prog}: {fewer} of {len(users)} users leave fewer than {arguments.top} items to "
            "recommend",
            file=sys.stderr,
        )


if __name__ == "__main__":
    run_program("arec.recommend", main)
