"""The paper's figures, and some of our own, from the logs of runs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from arec.config import PLACES, Config

_EPOCHS = LinearSegmentedColormap.from_list("epochs", ["#1a9850", "#e0a800", "#d73027"])
_MARKERS = "osD^vPX*<>"
# More differences than these say less than the run's name.
_MOST_DIFFERENCES = 3


class LeftOut(Exception):
    """The runs cannot give a figure; the message says what is missing."""


@dataclass(frozen=True)
class Run:
    """What a run folder tells."""

    name: str
    config: Config
    log: list[dict[str, Any]]  # a record an epoch
    metrics: dict[str, Any] | None  # of a finished run

    def curve(self, key: str) -> tuple[list[int], list[Any]]:
        """Epochs that have logged ``key``, and what they have."""
        records = [record for record in self.log if key in record]
        return [record["epoch"] for record in records], [record[key] for record in records]


def labels(runs: Sequence[Run]) -> list[str]:
    """The settings in which runs differ, or their names where those say less."""
    settings = [run.config.model_dump(exclude=PLACES) for run in runs]
    differing = [key for key in settings[0] if len({own[key] for own in settings}) > 1]
    if not 0 < len(differing) <= _MOST_DIFFERENCES:
        return [run.name for run in runs]
    found = [", ".join(_setting(key, own[key]) for key in differing) for own in settings]
    return found if len(set(found)) == len(runs) else [run.name for run in runs]


def _setting(name: str, value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)
    return text if name == "method" else f"{name} {text}"


def _holding(runs: Sequence[Run], key: str, what: str) -> list[Run]:
    """Runs that have logged ``key``."""
    found = [run for run in runs if run.curve(key)[0]]
    if not found:
        raise LeftOut(f"no run has logged {what}")
    return found


def _sweeps(runs: Sequence[Run], setting: str, *others: str) -> list[list[Run]]:
    """Groups of runs that differ in ``setting`` and, if at all, in the seed and ``others``."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        same = run.config.model_dump_json(exclude=PLACES | {"seed", setting, *others})
        groups.setdefault(same, []).append(run)
    for group in groups.values():
        group.sort(key=lambda run: getattr(run.config, setting))
    return [
        group
        for group in groups.values()
        if len({getattr(run.config, setting) for run in group}) > 1
    ]


def _panels(runs: Sequence[Run], title: str, x: str, y: str) -> Iterator[tuple[Figure, Axes, Run]]:
    """A panel a run, alike in scale."""
    columns = 2 if len(runs) == 4 else min(len(runs), 3)
    rows = math.ceil(len(runs) / columns)
    figure = Figure(figsize=(1 + 3.6 * columns, 0.8 + 3.2 * rows), layout="constrained")
    figure.suptitle(title)
    figure.get_layout_engine().set(wspace=0.06)
    figure.supylabel(y, fontsize="medium")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, run, label in zip(grid, runs, labels(runs)):
        axes.set_title(textwrap.fill(label, 40), fontsize="medium")
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(x)
        axes.grid(alpha=0.3)
        yield figure, axes, run
    for axes in grid[len(runs) :]:
        axes.remove()


def _single(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 5.2), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _legend(figure: Figure, handles: Sequence[Any] | None = None) -> None:
    """Under the plot, where it hides nothing."""
    if handles is None:
        handles = figure.axes[0].get_legend_handles_labels()[0]
    # In two columns where they take less height and no more than the width.
    inches = 0.09 * sum(sorted(len(handle.get_label()) + 8 for handle in handles)[-2:])
    columns = 2 if len(handles) > 3 and inches < figure.get_figwidth() else 1
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize="small")


def _epoch_colours(figure: Figure, runs: Sequence[Run]) -> ScalarMappable:
    last = max(record["epoch"] for run in runs for record in run.log)
    colours = ScalarMappable(Normalize(0, max(last, 1)), _EPOCHS)
    figure.colorbar(colours, ax=figure.axes, label="epoch")
    return colours


def _whole_epochs(axes: Axes) -> None:
    axes.xaxis.get_major_locator().set_params(integer=True)


def similarity(runs: Sequence[Run]) -> Figure:
    """Fig. 2: the sorted similarities are the quantile function, read off the histogram."""
    runs = _holding(runs, "similarity_histogram", "similarities (contrastive methods do)")
    title = "Similarities of negative pairs, sorted, by epoch (Fig. 2)"
    panels = list(_panels(runs, title, "share of pairs below", "cosine similarity"))
    figure = panels[0][0]
    colours = _epoch_colours(figure, runs)
    for _, axes, run in panels:
        for epoch, counts in zip(*run.curve("similarity_histogram")):
            below = np.concatenate([[0], np.cumsum(counts)]) / np.sum(counts)
            inside = slice(np.searchsorted(below, 0, "right") - 1, np.searchsorted(below, 1) + 1)
            edges = np.linspace(-1, 1, len(below))
            axes.plot(below[inside], edges[inside], color=colours.to_rgba(epoch), linewidth=1)
        axes.set_xlim(0, 1)
    return figure


def uniformity(runs: Sequence[Run]) -> Figure:
    """Fig. 3."""
    runs = _holding(runs, "uniformity", "uniformity (contrastive methods do)")
    figure, axes = _single(
        "Uniformity over training (Fig. 3)", "epoch", "−uniformity (nats), higher is better"
    )
    for run, label in zip(runs, labels(runs)):
        epochs, values = run.curve("uniformity")
        axes.plot(epochs, np.negative(values), marker=".", label=label)
    _whole_epochs(axes)
    _legend(figure)
    return figure


def alignment_uniformity(runs: Sequence[Run]) -> Figure:
    """Fig. 5."""
    runs = _holding(runs, "uniformity", "alignment and uniformity (contrastive methods do)")
    figure, axes = _single(
        "Alignment and uniformity, green to red over training (Fig. 5)",
        "uniformity (nats), lower is better",
        "alignment (squared distance), lower is better",
    )
    colours = _epoch_colours(figure, runs)
    handles = []
    for i, (run, label) in enumerate(zip(runs, labels(runs))):
        epochs, x = run.curve("uniformity")
        _, y = run.curve("alignment")
        marker = _MARKERS[i % len(_MARKERS)]
        axes.plot(x, y, color="0.7", linewidth=0.8, zorder=1)
        axes.scatter(x, y, c=colours.to_rgba(epochs), marker=marker, s=32)
        handles.append(Line2D([], [], color="0.3", marker=marker, linestyle="none", label=label))
    _legend(figure, handles)
    return figure


def simthres(runs: Sequence[Run]) -> Figure:
    """Fig. 4."""
    runs = _holding(runs, "k_mean", "SimThres (adaptiverec does)")
    panels = _panels(runs, "SimThres over training (Fig. 4)", "epoch", "cosine similarity")
    for figure, axes, run in panels:
        epochs, mean = map(np.array, run.curve("k_mean"))
        spread = np.array(run.curve("k_std")[1])
        axes.plot(epochs, mean, ".-", label="SimThres k, mean over rows")
        axes.fill_between(
            epochs, mean - spread, mean + spread, alpha=0.3, label="± its deviation over rows"
        )
        axes.plot(*run.curve("k_stat"), ".--", label="statistical k̄, the quantile of the epoch")
        _whole_epochs(axes)
    _legend(figure)
    return figure


def collapse(runs: Sequence[Run]) -> Figure:
    """Appendix A."""

    def unregularised(run: Run) -> bool:
        config = run.config
        free = config.regulariser == "paper" and config.lambda_reg == 0
        return free and config.threshold_grad is not None and config.simthres == "learnable"

    learnable = [run for run in runs if run.curve("k_mean")[0]]
    groups = _sweeps(learnable, "lambda_reg", "threshold_grad", "regulariser")
    compared = [run for group in groups if any(map(unregularised, group)) for run in group]
    if not compared:
        raise LeftOut(
            "it takes an adaptiverec run with lambda_reg 0 and a threshold_grad, and one that has "
            "the regulariser and is else the same"
        )
    figure, axes = _single(
        "SimThres with and without its regulariser (Appendix A)",
        "epoch",
        "SimThres k, mean over rows (cosine similarity)",
    )
    for run, label in zip(compared, labels(compared)):
        style = "--" if unregularised(run) else "-"
        axes.plot(*run.curve("k_mean"), style, marker=".", label=label)
    axes.set_ylim(-1.1, 1.1)
    _whole_epochs(axes)
    _legend(figure)
    return figure


def widths(runs: Sequence[Run]) -> Figure:
    """Appendix B."""
    counted = [run for run in runs if run.curve("similarity_histogram")[0]]
    groups = _sweeps(counted, "hidden_size", "heads", "feed_forward")
    compared = [run for group in groups for run in group]
    if not compared:
        raise LeftOut("it takes contrastive runs that differ in hidden_size and else are the same")
    figure, axes = _single(
        "Similarities in the last epoch by width of the features (Appendix B)",
        "cosine similarity",
        "density (share of pairs per unit of similarity)",
    )
    for run, label in zip(compared, labels(compared)):
        counts = np.array(run.curve("similarity_histogram")[1][-1])
        density = counts / counts.sum() * len(counts) / 2
        edges = np.linspace(-1, 1, len(counts) + 1)
        axes.stairs(density, edges, label=label, linewidth=1.5)
    axes.set_xlim(-1, 1)
    _legend(figure)
    return figure


def quantile_sweep(runs: Sequence[Run]) -> Figure:
    """The choice of k_stat (Sec. 3.2.1)."""
    finished = [run for run in runs if run.metrics and run.config.method == "adaptiverec"]
    groups = _sweeps(finished, "quantile")
    if not groups:
        raise LeftOut(
            "it takes finished adaptiverec runs that differ in quantile and else are the same"
        )
    figure, axes = _single(
        "Choice of the quantile of SimThres (Sec. 3.2.1)",
        "quantile: share of similarities below k̄",
        "NDCG@10, whole ranking; bars: deviation over seeds",
    )
    names = labels([group[0] for group in groups]) if len(groups) > 1 else [""]
    for i, (group, name) in enumerate(zip(groups, names)):
        protocol = "filtered" if group[0].config.filter_history else "unfiltered"
        quantiles = sorted({run.config.quantile for run in group})
        for stage, what, style in (("valid", "validation", "o--"), ("test", "test", "s-")):
            seeds = [
                [
                    run.metrics[stage][protocol]["NDCG@10"]
                    for run in group
                    if run.config.quantile == quantile
                ]
                for quantile in quantiles
            ]
            axes.errorbar(
                quantiles,
                [np.mean(each) for each in seeds],
                [np.std(each, ddof=len(each) > 1) for each in seeds],
                fmt=style,
                color=f"C{i}",
                capsize=3,
                label=f"{what}, {protocol}, {name}".rstrip(", "),
            )
    _legend(figure)
    return figure


def false_negatives(runs: Sequence[Run]) -> Figure:
    """Our own: what planted intents say about the pairs above SimThres."""
    runs = _holding(runs, "false_negatives", "false negatives (adaptiverec does on built-in data)")
    parts = {
        "precision": ("precision of pairs above SimThres", "C0-"),
        "base_rate": ("precision of a random mask: base rate", "C0:"),
        "recall": ("recall of pairs above SimThres", "C1-"),
        "selected": ("recall of a random mask: share above SimThres", "C1:"),
    }
    panels = _panels(runs, "Detected false negatives on planted data", "epoch", "share of pairs")
    for figure, axes, run in panels:
        epochs, found = run.curve("false_negatives")
        for key, (label, style) in parts.items():
            axes.plot(epochs, [each[key] for each in found], style, marker=".", label=label)
        axes.set_ylim(0, 1)
        _whole_epochs(axes)
    _legend(figure)
    return figure


# File name -> what it shows, and what draws it or raises LeftOut.
FIGURES: dict[str, tuple[str, Callable[[Sequence[Run]], Figure]]] = {
    "similarity.png": ("Fig. 2, sorted similarities", similarity),
    "uniformity.png": ("Fig. 3, uniformity", uniformity),
    "simthres.png": ("Fig. 4, SimThres", simthres),
    "alignment-uniformity.png": ("Fig. 5, alignment and uniformity", alignment_uniformity),
    "collapse.png": ("Appendix A, SimThres without regulariser", collapse),
    "widths.png": ("Appendix B, similarities by hidden_size", widths),
    "quantile.png": ("Sec. 3.2.1, choice of the quantile", quantile_sweep),
    "false-negatives.png": ("precision and recall of false negatives", false_negatives),
}
