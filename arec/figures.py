"""The paper's figures, and some of our own, from the logs of runs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from arec.runs import Run, alike

_EPOCHS = LinearSegmentedColormap.from_list("epochs", ["#1a9850", "#e0a800", "#d73027"])
_MARKERS = "osD^vPX*<>hp8dH1234+"


@dataclass(frozen=True)
class Plot:
    """A figure, and which runs it can show."""

    title: str
    takes: str  # what `select` looks for, after "it takes"
    select: Callable[[Sequence[Run]], list[Run]]
    draw: Callable[[Sequence[Run]], Figure]  # of selected runs, at least one
    made_of: Sequence[dict[str, Any]]  # the method and settings of the runs that reproduce it


def _logging(key: str) -> Callable[[Sequence[Run]], list[Run]]:
    """Selects the runs that have logged ``key``."""
    return lambda runs: [run for run in runs if run.curve(key)[0]]


def _sweeps(runs: Sequence[Run], setting: str, *others: str) -> list[list[Run]]:
    """Groups of runs that differ in ``setting`` and, if at all, in the seed and ``others``."""
    groups = alike(runs, setting, *others)
    for group in groups:
        group.sort(key=lambda run: getattr(run.config, setting))
    return [
        group
        for group in groups
        if len({getattr(run.config, setting) for run in group}) > 1
    ]


def _panels(
    runs: Sequence[Run], title: str, x: str, y: str
) -> tuple[Figure, list[tuple[Axes, Run]]]:
    """A panel a run, alike in scale."""
    columns = 2 if len(runs) == 4 else min(len(runs), 3)
    rows = math.ceil(len(runs) / columns)
    figure = Figure(figsize=(1 + 3.6 * columns, 0.8 + 3.2 * rows), layout="constrained")
    figure.suptitle(title)
    figure.get_layout_engine().set(wspace=0.06)
    figure.supylabel(y, fontsize="medium")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, run in zip(grid, runs):
        axes.set_title(textwrap.fill(run.name, 40), fontsize="medium")
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(x)
        axes.grid(alpha=0.3)
    for axes in grid[len(runs) :]:
        axes.remove()
    return figure, list(zip(grid, runs))


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
    character = 0.09  # inches
    for handle in handles:
        widest = int(figure.get_figwidth() / character) - 8
        handle.set_label(textwrap.fill(handle.get_label(), widest))
    # In two columns where they take less height and no more than the width.
    inches = character * sum(sorted(len(handle.get_label()) + 8 for handle in handles)[-2:])
    columns = 2 if len(handles) > 3 and inches < figure.get_figwidth() else 1
    lines = sum(1 + handle.get_label().count("\n") for handle in handles) / columns
    figure.set_figheight(figure.get_figheight() + 0.17 * max(0, lines - 4))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize="small")


def _look(i: int) -> dict[str, Any]:
    """Of the line of the i-th run: ten colours, then the same ones with another marker."""
    return {"color": f"C{i % 10}", "marker": ".sD^vPX*"[i // 10 % 8], "markersize": 6 if i < 10 else 4}


def _epoch_colours(figure: Figure, runs: Sequence[Run]) -> ScalarMappable:
    last = max(record["epoch"] for run in runs for record in run.log)
    colours = ScalarMappable(Normalize(1, max(last, 2)), _EPOCHS)
    _whole_epochs(figure.colorbar(colours, ax=figure.axes, label="epoch").ax.yaxis)
    return colours


def _whole_epochs(axis: Axis) -> None:
    axis.get_major_locator().set_params(integer=True)


def similarity(runs: Sequence[Run]) -> Figure:
    """Fig. 2: the sorted similarities are the quantile function, read off the histogram."""
    title = "Similarities of negative pairs, sorted, by epoch (Fig. 2)"
    figure, panels = _panels(runs, title, "share of pairs below", "cosine similarity")
    colours = _epoch_colours(figure, runs)
    for axes, run in panels:
        for epoch, counts in zip(*run.curve("similarity_histogram")):
            below = np.concatenate([[0], np.cumsum(counts)]) / np.sum(counts)
            inside = slice(np.searchsorted(below, 0, "right") - 1, np.searchsorted(below, 1) + 1)
            edges = np.linspace(-1, 1, len(below))
            axes.plot(below[inside], edges[inside], color=colours.to_rgba(epoch), linewidth=1)
        axes.set_xlim(0, 1)
    return figure


def validation(runs: Sequence[Run]) -> Figure:
    """What the checkpoint is chosen by, in both rankings."""
    figure, axes = _single(
        "Validation over training; solid: filtered, dotted: unfiltered",
        "epoch",
        "NDCG@10 among all items",
    )
    for i, run in enumerate(runs):
        epochs, figures = run.curve("valid")
        for protocol, style, label in (("filtered", "-", run.name), ("unfiltered", ":", None)):
            values = [each[protocol]["NDCG@10"] for each in figures]
            axes.plot(epochs, values, style, label=label, **_look(i))
    _whole_epochs(axes.xaxis)
    _legend(figure)
    return figure


def uniformity(runs: Sequence[Run]) -> Figure:
    """Fig. 3."""
    figure, axes = _single(
        "Uniformity over training (Fig. 3)", "epoch", "−uniformity (nats), higher is better"
    )
    for i, run in enumerate(runs):
        epochs, values = run.curve("uniformity")
        axes.plot(epochs, np.negative(values), label=run.name, **_look(i))
    _whole_epochs(axes.xaxis)
    _legend(figure)
    return figure


def alignment_uniformity(runs: Sequence[Run]) -> Figure:
    """Fig. 5."""
    figure, axes = _single(
        "Alignment and uniformity, green to red over training (Fig. 5)",
        "uniformity (nats), lower is better",
        "alignment (squared distance), lower is better",
    )
    colours = _epoch_colours(figure, runs)
    handles = []
    for i, run in enumerate(runs):
        epochs, x = run.curve("uniformity")
        _, y = run.curve("alignment")
        marker = _MARKERS[i % len(_MARKERS)]
        axes.plot(x, y, color="0.7", linewidth=0.8, zorder=1)
        axes.scatter(x, y, c=colours.to_rgba(epochs), marker=marker, s=32)
        handles.append(
            Line2D([], [], color="0.3", marker=marker, linestyle="none", label=run.name)
        )
    _legend(figure, handles)
    return figure


def simthres(runs: Sequence[Run]) -> Figure:
    """Fig. 4."""
    figure, panels = _panels(
        runs, "SimThres over training (Fig. 4)", "epoch", "cosine similarity"
    )
    for axes, run in panels:
        epochs, mean = map(np.array, run.curve("k_mean"))
        spread = np.array(run.curve("k_std")[1])
        axes.plot(epochs, mean, ".-", label="SimThres k, mean over rows")
        axes.fill_between(
            epochs, mean - spread, mean + spread, alpha=0.3, label="± its deviation over rows"
        )
        of_epoch = run.config.regulariser == "paper" or run.config.simthres == "row"
        label = "k̄, the quantile of the epoch" if of_epoch else "s̄, the mean over its batches"
        axes.plot(*run.curve("k_stat"), ".--", label=f"statistical {label}")
        _whole_epochs(axes.xaxis)
    _legend(figure)
    return figure


def _collapse_runs(runs: Sequence[Run]) -> list[Run]:
    learning = [run for run in _logging("k_mean")(runs) if run.config.simthres == "learnable"]
    groups = _sweeps(learning, "lambda_reg", "threshold_grad", "regulariser")
    return [
        run
        for group in groups
        if any(
            each.config.lambda_reg == 0 and each.config.threshold_grad is not None for each in group
        )
        for run in group
    ]


def collapse(runs: Sequence[Run]) -> Figure:
    """Appendix A."""
    figure, axes = _single(
        "SimThres with and without its regulariser (Appendix A)",
        "epoch",
        "SimThres k, mean over rows (cosine similarity)",
    )
    for i, run in enumerate(runs):
        style, what = ("--", "without") if run.config.lambda_reg == 0 else ("-", "with")
        h = run.config.threshold_grad
        gradient = "no gradient to k" if h is None else f"gradient to k, h = {h}"
        label = f"{run.name} ({what}; {gradient})"
        axes.plot(*run.curve("k_mean"), style, label=label, **_look(i))
    axes.set_ylim(-1.1, 1.1)
    _whole_epochs(axes.xaxis)
    _legend(figure)
    return figure


def _widths_runs(runs: Sequence[Run]) -> list[Run]:
    counted = _logging("similarity_histogram")(runs)
    return list(chain(*_sweeps(counted, "hidden_size", "heads", "feed_forward")))


def widths(runs: Sequence[Run]) -> Figure:
    """Appendix B."""
    figure, axes = _single(
        "Similarities in the last epoch by width of the features (Appendix B)",
        "cosine similarity",
        "density (share of pairs per unit of similarity)",
    )
    for run in runs:
        counts = np.array(run.curve("similarity_histogram")[1][-1])
        density = counts / counts.sum() * len(counts) / 2
        edges = np.linspace(-1, 1, len(counts) + 1)
        label = f"{run.name} (hidden_size {run.config.hidden_size})"
        axes.stairs(density, edges, label=label, linewidth=1.5)
    axes.set_xlim(-1, 1)
    _legend(figure)
    return figure


def _quantile_runs(runs: Sequence[Run]) -> list[Run]:
    finished = [run for run in runs if run.metrics and run.config.adaptive]
    return list(chain(*_sweeps(finished, "quantile")))


def quantile_sweep(runs: Sequence[Run]) -> Figure:
    """The choice of k_stat (Sec. 3.2.1)."""
    figure, axes = _single(
        "Choice of the quantile of SimThres (Sec. 3.2.1); bars: deviation over seeds",
        "quantile: share of similarities below k̄",
        "NDCG@10 among all items",
    )
    groups = _sweeps(runs, "quantile")
    for i, group in enumerate(groups):
        whose = f", as {group[0].name}" if len(groups) > 1 else ""
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
                label=f"{what}, {protocol}{whose}",
            )
    _legend(figure)
    return figure


def false_negatives(runs: Sequence[Run]) -> Figure:
    """Our own: what planted intents say about the pairs above SimThres."""
    parts = {
        "precision": ("precision of pairs above SimThres", "C0-"),
        "base_rate": ("precision of a random mask: base rate", "C0:"),
        "recall": ("recall of pairs above SimThres", "C1-"),
        "selected": ("recall of a random mask: share above SimThres", "C1:"),
    }
    figure, panels = _panels(
        runs, "Detected false negatives on planted data", "epoch", "share of pairs"
    )
    for axes, run in panels:
        epochs, found = run.curve("false_negatives")
        for key, (label, style) in parts.items():
            # The precision of no pair is none.
            shares = [each[key] if each["selected"] or key != "precision" else np.nan for each in found]
            axes.plot(epochs, shares, style, marker=".", label=label)
        axes.set_ylim(0, 1)
        _whole_epochs(axes.xaxis)
    _legend(figure)
    return figure


_ADAPTIVEREC = {"method": "adaptiverec"}
_METHODS = [{"method": "cl4srec", "views": "cl4srec"}, {"method": "duorec"}, _ADAPTIVEREC]
_WITH_DUOREC = [
    {"method": method, "views": views}
    for method in ("duorec", "adaptiverec")
    for views in ("us_x", "su", "un")
]
# The paper's, whatever a recipe has: with the released denominator a mask would change nothing.
_MASK_ONLY = {
    **_ADAPTIVEREC, "positives": False, "denominator": "negatives", "regulariser": "paper"
}  # fmt: skip
_GRADIENT = {"threshold_grad": 0.05}
_FREE = {"lambda_reg": 0.0, **_GRADIENT}

# By file name.
FIGURES = {
    "similarity.png": Plot(
        "Fig. 2, sorted similarities",
        "runs that log similarities (contrastive methods do)",
        _logging("similarity_histogram"),
        similarity,
        _METHODS,
    ),
    "uniformity.png": Plot(
        "Fig. 3, uniformity",
        "runs that log uniformity (contrastive methods do)",
        _logging("uniformity"),
        uniformity,
        _WITH_DUOREC,
    ),
    "simthres.png": Plot(
        "Fig. 4, SimThres",
        "runs that log SimThres (adaptiverec does)",
        _logging("k_mean"),
        simthres,
        [_ADAPTIVEREC],
    ),
    "alignment-uniformity.png": Plot(
        "Fig. 5, alignment and uniformity",
        "runs that log alignment and uniformity (contrastive methods do)",
        _logging("uniformity"),
        alignment_uniformity,
        _WITH_DUOREC,
    ),
    "collapse.png": Plot(
        "Appendix A, SimThres without regulariser",
        "an adaptiverec run with lambda_reg 0 and a threshold_grad, and one that has the "
        "regulariser and is else the same",
        _collapse_runs,
        collapse,
        [_MASK_ONLY, {**_MASK_ONLY, **_GRADIENT}, {**_MASK_ONLY, **_FREE}],
    ),
    "widths.png": Plot(
        "Appendix B, similarities by hidden_size",
        "contrastive runs that differ in hidden_size and else are the same",
        _widths_runs,
        widths,
        [{**_ADAPTIVEREC, "hidden_size": size} for size in (64, 128, 256)],
    ),
    "quantile.png": Plot(
        "Sec. 3.2.1, choice of the quantile",
        "finished adaptiverec runs that differ in quantile and else are the same",
        _quantile_runs,
        quantile_sweep,
        [{**_ADAPTIVEREC, "quantile": q} for q in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)],
    ),
    "validation.png": Plot(
        "validation by epoch",
        "runs that log validation figures (all do)",
        _logging("valid"),
        validation,
        _METHODS,
    ),
    "false-negatives.png": Plot(
        "precision and recall of false negatives",
        "runs that log false negatives (adaptiverec does on built-in data)",
        _logging("false_negatives"),
        false_negatives,
        [_ADAPTIVEREC],
    ),
}
