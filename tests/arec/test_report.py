"""What the figures show is what the logs hold, and what they cannot show is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import call

from arec import figures, report
from arec.config import Config
from arec.figures import FIGURES
from arec.runs import Run, alike, read_run
from arec.train import train

EPOCHS = 3


def record(epoch: int, config: Config) -> dict[str, Any]:
    """An epoch as a method of the configuration logs it on built-in data."""
    ranked = {
        name: {"NDCG@10": share * epoch, "Recall@10": 2 * share * epoch}
        for name, share in (("filtered", 0.02), ("unfiltered", 0.01))
    }
    logged: dict[str, Any] = {"epoch": epoch, "loss": 1.0, "valid": ranked}
    if config.contrastive:
        values = np.random.default_rng(epoch).normal(0.2, 0.2, size=1000).clip(-1, 1)
        counts, _ = np.histogram(values, bins=200, range=(-1, 1))
        logged |= {"similarity_histogram": counts.tolist()}
        logged |= {"alignment": 1 - 0.1 * epoch, "uniformity": -1 - epoch}
    if config.contrastive and config.method == "adaptiverec":
        found = {"precision": 0.5, "recall": 0.4, "base_rate": 0.1, "selected": 0.2}
        logged |= {"k_mean": 0.9 - epoch / 10, "k_std": 0.05, "k_stat": 0.7}
        logged |= {"false_negatives": found}
    return logged


def make(name: str, ndcg: float | None = 0.1, **settings) -> Run:
    config = Config(**settings)
    metrics = None
    if ndcg is not None:
        figure = {
            protocol: {"NDCG@10": ndcg * share, "Recall@10": 2 * ndcg * share}
            for protocol, share in (("filtered", 1), ("unfiltered", 0.5))
        }
        metrics = {"valid": figure, "test": figure}
    return Run(name, config, [record(epoch, config) for epoch in range(1, EPOCHS + 1)], metrics)


def write(folder: Path, made: Run) -> Path:
    folder.mkdir()
    (folder / "config.toml").write_text(made.config.to_toml())
    (folder / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in made.log))
    if made.metrics:
        (folder / "metrics.json").write_text(json.dumps(made.metrics))
    return folder


def curves(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


ALL = {
    "a": {},
    "b": {"lambda_reg": 0.0, "threshold_grad": 0.05},
    "c": {"quantile": 0.5},
    "d": {"hidden_size": 128},
    "e": {"method": "sasrec"},
}
CONTRASTIVE = {"validation.png", "similarity.png", "uniformity.png", "alignment-uniformity.png"}
THRESHOLD = CONTRASTIVE | {"simthres.png", "false-negatives.png"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("abcde", set(FIGURES)),
        ("a", THRESHOLD),
        ("ab", THRESHOLD | {"collapse.png"}),
        ("bc", THRESHOLD),
        ("ac", THRESHOLD | {"quantile.png"}),
        ("ad", THRESHOLD | {"widths.png"}),
        ("e", {"validation.png"}),
    ],
)
def test_figures_that_the_runs_can_give(names, expected) -> None:
    runs = [make(name, **ALL[name]) for name in names]
    shown = {file: plot.select(runs) for file, plot in FIGURES.items()}
    assert {file for file in FIGURES if shown[file]} == expected
    for file in expected:
        assert FIGURES[file].draw(shown[file]).axes


def test_draws_what_training_logs(tmp_path, monkeypatch, capsys) -> None:
    data = tmp_path / "walks.txt"
    data.write_text(
        "".join(f"u{u} " + " ".join(str((u + i) % 9) for i in range(8)) + "\n" for u in range(30))
    )
    settings = {"dataset": str(data), "hidden_size": 8, "feed_forward": 8, "epochs": 2}
    folders = []
    for method in ("sasrec", "cl4srec", "duorec", "adaptiverec"):
        folders.append(tmp_path / method)
        train(Config.from_settings(settings | {"method": method}), folders[-1])
    out = tmp_path / "out"
    call(report, monkeypatch, *folders, "--out", out)
    expected = CONTRASTIVE | {"simthres.png"}
    assert {path.name for path in out.glob("*")} == expected | {"results.md"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.glob("*.png"))
    rows = (out / "results.md").read_text().splitlines()
    assert [row.split(" | ")[:2] for row in rows[2:6]] == [[f"| {each.name}", "walks.txt"] for each in folders]
    lines = capsys.readouterr().out.splitlines()
    assert lines.pop(0) == f"wrote {out / 'results.md'} (test figures)"
    partly = [line for line in lines if line.startswith("left out of ")]
    assert partly[0] == (
        "left out of similarity.png: sasrec: it takes runs that log similarities (contrastive "
        "methods do)"
    )
    without = {line.split(": ")[0].split()[-1]: line.split(": ")[1] for line in partly}
    assert without == dict.fromkeys(CONTRASTIVE - {"validation.png"}, "sasrec") | {
        "simthres.png": "sasrec, cl4srec, duorec"
    }
    for file, line in zip(FIGURES, [line for line in lines if line not in partly], strict=True):
        if file in expected:
            assert line.startswith(f"wrote {out / file} (")
        else:
            assert line.startswith(f"left out: {file} (") and "): it takes " in line, "says why"


def test_sorted_similarities_are_quantiles() -> None:
    made = make("a")
    axes = figures.similarity([made]).axes[0]
    for line, each in zip(axes.get_lines(), made.log, strict=True):
        values = np.repeat(np.arange(200), each["similarity_histogram"]) / 100 - 0.995
        share, similarity = line.get_xydata().T
        assert share[0] == 0 and share[-1] == 1
        for q in (0.1, 0.5, 0.9, 0.99):
            expected = np.quantile(values, q)
            assert np.interp(q, share, similarity) == pytest.approx(expected, abs=0.02)
    colours = [np.array(line.get_color()) for line in axes.get_lines()]
    assert colours[0][1] > colours[0][0] and colours[-1][0] > colours[-1][1], "green to red"


def test_validation_is_of_both_rankings_in_one_colour_a_run() -> None:
    axes = figures.validation([make("a"), make("e", method="sasrec")]).axes[0]
    filtered, unfiltered, other, _ = axes.get_lines()
    for line, step in ((filtered, 0.02), (unfiltered, 0.01)):
        assert line.get_xydata() == pytest.approx(np.array([[1, step], [2, 2 * step], [3, 3 * step]]))
    assert (filtered.get_linestyle(), unfiltered.get_linestyle()) == ("-", ":")
    assert filtered.get_color() == unfiltered.get_color() != other.get_color()
    assert axes.get_legend_handles_labels()[1] == ["a", "e"]


def test_uniformity_has_the_paper_s_sign() -> None:
    axes = figures.uniformity([make("a"), make("b", quantile=0.5)]).axes[0]
    assert set(curves(axes)) == {"a", "b"}
    assert curves(axes)["b"].tolist() == [[1, 2], [2, 3], [3, 4]]


def test_simthres_stands_beside_the_statistical_one() -> None:
    axes = figures.simthres([make("a")]).axes
    k, k_stat = curves(axes[0]).values()
    assert k[:, 1] == pytest.approx([0.8, 0.7, 0.6])
    assert k_stat[:, 1] == pytest.approx([0.7] * 3)
    band = axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert [band.min(), band.max()] == pytest.approx([0.55, 0.85])


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({"regulariser": "paper"}, "statistical k̄, the quantile of the epoch"),
        ({"regulariser": "released"}, "statistical s̄, the mean over its batches"),
        ({"regulariser": "released", "simthres": "row"}, "statistical k̄, the quantile of the epoch"),
    ],
)
def test_the_statistical_simthres_has_the_name_of_what_it_is(settings, label) -> None:
    assert label in curves(figures.simthres([make("a", **settings)]).axes[0])


def test_quantiles_are_compared_over_seeds_and_nothing_else() -> None:
    runs = [
        make("a", 0.1, quantile=0.5),
        make("b", 0.3, quantile=0.5, seed=1),
        make("c", 0.4),
        make("d", 0.9, quantile=0.7, temperature=0.5),
        make("e", None, quantile=0.99),
    ]
    compared = FIGURES["quantile.png"].select(runs)
    assert [run.name for run in compared] == ["a", "b", "c"]
    axes = figures.quantile_sweep(compared).axes[0]
    for line in axes.get_lines()[::3]:
        assert line.get_xydata() == pytest.approx(np.array([[0.5, 0.2], [0.9, 0.4]]))
    assert FIGURES["quantile.png"].select(runs[2:]) == []


def test_two_sweeps_are_told_apart() -> None:
    runs = [make(f"{t}-{q}", temperature=t, quantile=q) for t in (0.5, 1.0) for q in (0.5, 0.9)]
    axes = figures.quantile_sweep(runs).axes[0]
    assert axes.get_legend_handles_labels()[1] == [
        f"{stage}, filtered, as {first}"
        for first in ("0.5-0.5", "1.0-0.5")
        for stage in ("validation", "test")
    ]


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["/runs/a", "/runs/b"], ["a", "b"]),
        (["/runs/a", "/short/a"], ["runs/a", "short/a"]),
        (["/x/runs/a", "/y/runs/a", "/b"], ["x/runs/a", "y/runs/a", "/b"]),
        (["/a", "/runs/a"], ["/a", "runs/a"]),
    ],
)
def test_runs_are_called_by_their_folders(folders, names) -> None:
    assert report.names(list(map(Path, folders))) == names


def test_legends_have_the_names_of_runs_and_what_is_compared() -> None:
    runs = [make(name, **settings) for name, settings in ALL.items()]
    legends = {
        file: [
            text.get_text()
            for text in FIGURES[file].draw(FIGURES[file].select(runs)).legends[0].get_texts()
        ]
        for file in ("uniformity.png", "collapse.png", "widths.png")
    }
    assert legends == {
        "uniformity.png": ["a", "b", "c", "d"],
        "collapse.png": ["b (without; gradient to k, h = 0.05)", "a (with; no gradient to k)"],
        "widths.png": ["a (hidden_size 64)", "d (hidden_size 128)"],
    }


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (lambda folder: folder / "nothing", "nothing: no run there"),
        (lambda folder: (folder / "config.toml").unlink(), "bad: no run there"),
        (lambda folder: (folder / "log.jsonl").unlink(), "log.jsonl: No such file"),
        (
            lambda folder: [(folder / name).unlink() for name in ("log.jsonl", "metrics.json")],
            "bad: no epoch is finished yet",
        ),
        (lambda folder: (folder / "log.jsonl").write_text(""), "no epoch is finished yet"),
        (lambda folder: (folder / "log.jsonl").write_text("{"), "log.jsonl, line 1, column 2: not JSON"),
        (lambda folder: (folder / "metrics.json").write_text("{"), "metrics.json, line 1, column 2: not JSON"),
        (lambda folder: (folder / "metrics.json").write_text("{"), "without it, arec.train --resume ranks again"),
        (lambda folder: (folder / "metrics.json").write_text("{}"),
         "metrics.json, line 1: not as arec.train writes it (valid: Field required)"),
        (lambda folder: (folder / "log.jsonl").write_text("[]"),
         "log.jsonl, line 1: not as arec.train writes it (expected an object)"),
        (
            lambda folder: (folder / "log.jsonl").write_text('{"epoch": 1, "loss": 2, "valid": {"filtered": 3}}'),
            "(valid.filtered: expected an object)",
        ),
        (
            lambda folder: (folder / "metrics.json").write_text(
                (folder / "metrics.json").read_text().replace('"NDCG@10": 0.1,', '"NDCG@10": "0.1",')
            ),
            ".filtered.NDCG@10: Input should be a valid number)",
        ),
        (
            lambda folder: (folder / "metrics.json").write_text(
                (folder / "metrics.json").read_text().replace('"Recall@10"', '"Recall"')
            ),
            ".filtered.Recall@10: Field required)",
        ),
        (lambda folder: (folder / "log.jsonl").write_text("9" * 5000),
         "log.jsonl, line 1: not as arec.train writes it"),
        (lambda folder: (folder / "metrics.json").write_text("[" * 100_000), "metrics.json, line 1: not as arec.train"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(breaks, message, tmp_path, refused) -> None:
    good, bad = (write(tmp_path / name, make(name)) for name in ("good", "bad"))
    changed = breaks(bad)
    bad = changed if isinstance(changed, Path) else bad
    error = refused(report, good, bad, "--out", tmp_path / "out")
    assert message in error
    assert error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


def test_alignment_stands_over_uniformity() -> None:
    figure = figures.alignment_uniformity([make("a"), make("b", quantile=0.5)])
    axes = figure.axes[0]
    assert axes.get_xlabel().startswith("uniformity") and axes.get_ylabel().startswith("alignment")
    assert len(axes.get_lines()) == len(axes.collections) == 2
    for line in axes.get_lines():
        assert line.get_xydata() == pytest.approx(np.array([[-2, 0.9], [-3, 0.8], [-4, 0.7]]))
    for points in axes.collections:
        assert points.get_offsets().data == pytest.approx(np.array([[-2, 0.9], [-3, 0.8], [-4, 0.7]]))
        first, _, last = points.get_facecolors()
        assert first[1] > first[0] and last[0] > last[1], "green to red"
    assert [handle.get_marker() for handle in figure.legends[0].legend_handles] == ["o", "s"]


def test_collapse_takes_thresholds_that_can_move() -> None:
    still = [make("a"), make("f", lambda_reg=0.0)]
    assert FIGURES["collapse.png"].select(still) == []


def test_collapse_shows_k_and_dashes_it_without_the_regulariser() -> None:
    runs = [make(name, **ALL[name]) for name in "ab"]
    runs += [make("f", lambda_reg=0.0), make("g", simthres="row", lambda_reg=0.0)]
    shown = FIGURES["collapse.png"].select(runs)
    assert [run.name for run in shown] == ["b", "f", "a"], "a statistical SimThres is never regularised"
    axes = figures.collapse(shown).axes[0]
    assert ["without" in line.get_label() for line in axes.get_lines()] == [True, True, False]
    for line in axes.get_lines():
        assert line.get_xydata() == pytest.approx(np.array([[1, 0.8], [2, 0.7], [3, 0.6]]))
        assert line.get_linestyle() == ("--" if "without" in line.get_label() else "-")


def test_widths_are_of_the_last_epoch() -> None:
    runs = [make("a"), make("b", hidden_size=128, feed_forward=512)]
    for made, patch in zip(runs, figures.widths(runs).axes[0].patches, strict=True):
        density, edges, _ = patch.get_data()
        counts = np.array(made.log[-1]["similarity_histogram"])
        assert density == pytest.approx(counts / counts.sum() * 100)
        assert edges == pytest.approx(np.linspace(-1, 1, 201))


@pytest.mark.parametrize("filter_history", [True, False])
def test_validation_and_test_and_their_deviation_over_seeds(filter_history) -> None:
    runs, share = [], {"filtered": 1 if filter_history else 9, "unfiltered": 9 if filter_history else 1}
    for seed, ndcg in enumerate((0.1, 0.4)):
        for quantile in (0.5, 0.9):
            run = make(
                f"{quantile}-{seed}", quantile=quantile, seed=seed, filter_history=filter_history
            )
            metrics = {
                stage: {ranking: {"NDCG@10": value * share[ranking]} for ranking in share}
                for stage, value in (("valid", ndcg), ("test", ndcg / 2))
            }
            runs.append(Run(run.name, run.config, run.log, metrics))
    axes = figures.quantile_sweep(runs).axes[0]
    for container, mean in zip(axes.containers, (0.25, 0.125), strict=True):
        assert container.get_label().startswith("validation" if mean == 0.25 else "test")
        line, _, (bars,) = container.lines
        assert line.get_ydata() == pytest.approx([mean] * 2)
        deviation = mean * 0.3 / 0.25 / 2**0.5
        for bar in bars.get_segments():
            assert bar[:, 1] == pytest.approx([mean - deviation, mean + deviation])


def test_false_negatives_are_what_their_labels_say() -> None:
    axes = figures.false_negatives([make("a")]).axes[0]
    values = {label.partition(":")[0]: line[-1, 1] for label, line in curves(axes).items()}
    assert values == {
        "precision of pairs above SimThres": 0.5, "precision of a random mask": 0.1,
        "recall of pairs above SimThres": 0.4, "recall of a random mask": 0.2,
    }  # fmt: skip


def test_of_no_pairs_there_is_no_precision() -> None:
    run = make("a")
    run.log[0]["false_negatives"] |= {"precision": 0.0, "recall": 0.0, "selected": 0.0}
    drawn = {label: line[0, 1] for label, line in curves(figures.false_negatives([run]).axes[0]).items()}
    assert np.isnan(drawn.pop("precision of pairs above SimThres"))
    assert not np.isnan([*drawn.values()]).any()


@pytest.mark.parametrize("file", ["similarity.png", "simthres.png", "false-negatives.png"])
def test_panels_have_the_names_of_their_runs(file) -> None:
    runs = [make(name) for name in "abcde"]
    figure = FIGURES[file].draw(runs)
    assert [axes.get_title() for axes in figure.axes[:5]] == list("abcde")
    assert len(figure.axes) == 5 + (file == "similarity.png"), "no empty panel; the colours of epochs"


def test_sorted_similarities_are_named() -> None:
    figure = figures.similarity([make("a")])
    assert figure.axes[0].get_xlabel() == "share of pairs below"
    assert figure.get_supylabel() == "cosine similarity"


def test_a_sweep_is_in_the_order_of_its_setting() -> None:
    runs = [make(str(size), hidden_size=size) for size in (128, 64, 256)]
    assert [run.name for run in FIGURES["widths.png"].select(runs)] == ["64", "128", "256"]


def test_a_folder_that_is_named_twice_is_one_run(tmp_path, monkeypatch) -> None:
    folder = write(tmp_path / "run", make("run"))
    monkeypatch.chdir(tmp_path)
    named = []
    monkeypatch.setattr(report, "names", lambda folders: named.extend(folders) or ["run"] * len(folders))
    call(report, monkeypatch, folder, "run", "--out", tmp_path / "out")
    assert named == [folder]


def test_a_run_is_drawn_before_it_has_finished(tmp_path, monkeypatch, capsys) -> None:
    folder = write(tmp_path / "run", make("run", ndcg=None))
    run = read_run(str(folder))
    assert len(run.log) == 3 and run.metrics is None
    call(report, monkeypatch, folder, "--out", tmp_path / "out")
    assert (tmp_path / "out/validation.png").exists() and not (tmp_path / "out/results.md").exists()
    assert "left out of results.md: run: it takes finished runs" in capsys.readouterr().out


def test_runs_of_other_seeds_are_a_row_of_the_table() -> None:
    runs = [
        make("a|0", 0.1), make("b", 0.2, quantile=0.5, dataset="/data/log.csv"), make("a|1", 0.3, seed=1)
    ]  # fmt: skip
    runs[1].metrics["most_positives_per_row"] = 0.004
    lines = report.results_table(runs).splitlines()
    assert lines[0] == (
        "| test | data | settings in which runs differ "
        "| NDCG@10 filtered | NDCG@10 unfiltered | Recall@10 filtered | Recall@10 unfiltered |"
    )
    assert lines[2:4] == [
        (
            r"| a\|0, a\|1 | builtin | quantile 0.9 "
            "| 0.2000 ± 0.1414 | 0.1000 ± 0.0707 | 0.4000 ± 0.2828 | 0.2000 ± 0.1414 |"
        ),
        "| b | log.csv | quantile 0.5 | 0.2000 | 0.1000 | 0.4000 | 0.2000 |",
    ]
    assert "In 1 of 1 runs of AdaptiveRec at most 0.004 pairs a row" in lines[-1]


def test_the_table_has_no_settings_without_effect() -> None:
    runs = [make("a"), make("b", quantile=0.5), make("c", method="duorec")]
    rows = report.results_table(runs).splitlines()[2:5]
    assert [row.split(" | ")[2] for row in rows] == [
        "method adaptiverec, quantile 0.9", "method adaptiverec, quantile 0.5", "method duorec"
    ]  # fmt: skip


def test_runs_on_other_data_are_no_row_of_the_table() -> None:
    runs = [make(name, 0.1, dataset="log.csv", seed=seed) for seed, name in enumerate("abc")]
    for run, data in zip(runs, ("as it was", "as it was", "grown")):
        run.metrics["data"] = data
    rows = report.results_table(runs).splitlines()[2:4]
    assert [row.split("|")[1].strip() for row in rows] == ["a, b", "c"]


def test_an_unfinished_run_is_compared_with_a_finished_one_on_the_same_data() -> None:
    runs = [make("a", dataset="log.csv"), make("b", None, dataset="log.csv"), make("c", None, dataset="log.csv")]
    for run, data in zip(runs, ("as it was", "as it was", "grown")):
        run.log[-1]["data"] = data
        if run.metrics:
            run.metrics["data"] = data
    assert [[run.name for run in group] for group in alike(runs)] == [["a", "b"], ["c"]]


def test_built_in_data_that_their_seed_made_are_the_same_data() -> None:
    runs = [make(name, seed=seed) for seed, name in enumerate("ab")]
    for run in runs:
        run.metrics["data"] = run.name
    assert report.results_table(runs).splitlines()[2].startswith("| a, b |")


def test_runs_of_one_seed_are_no_seeds() -> None:
    said = "Of a, b several have the same seed"
    assert said in report.results_table([make("a"), make("b")])
    assert said not in report.results_table([make("a"), make("b", seed=1)])
    assert "Of a, b, c several" in report.results_table([make("a"), make("b"), make("c", seed=1)])


def test_many_runs_look_different_and_are_named_whole() -> None:
    runs = [make(f"a-run-with-a-very-long-name-{'of-many-words-' * 8}{i}", seed=i) for i in range(24)]
    for figure in (figures.validation(runs), figures.uniformity(runs)):
        (legend,) = figure.legends
        looks = {(each.get_color(), each.get_marker()) for each in legend.legend_handles}
        assert len(looks) == len(runs)
        figure.draw_without_rendering()
        box, page = legend.get_window_extent(), figure.bbox
        assert page.x0 <= box.x0 and box.x1 <= page.x1, "cut off"
        plot = figure.axes[0].get_window_extent()
        assert plot.height > 250, "squeezed by the legend"
    markers = {each.get_marker() for each in figures.alignment_uniformity(runs[:20]).legends[0].legend_handles}
    assert len(markers) == 20


def test_colours_reach_to_the_last_epoch_of_all_runs() -> None:
    runs = [make("a"), make("b", quantile=0.5)]
    runs[0].log.pop()
    for draw in (figures.similarity, figures.alignment_uniformity):
        assert draw(runs).axes[-1].get_ylim() == (1, 3)
