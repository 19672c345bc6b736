"""Keep what was measured, and show it in the README and in docs/.

    python bench/publish.py RUN [RUN ...]   runs of arec.train, on the machine where they were trained
                                            -> bench/results/<folder name>.json
    python bench/publish.py                 only render the pages' result sections again

Their sections between ``<!-- results:NAME -->`` marks hold nothing typed by hand. NAME is that of a
Markdown file in bench/results/, "curve-" and the name of a published run, "simthres", "commands", a table of the
paper and a data set, or part of the names of published runs, of which "recipes-" before it leaves
those that are recipes. A folder whose name ends in -seed-N is another run of what has the name
without that, with this seed.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from provenance import RESULTS, ROOT, commit, keep, machine

from arec.config import Config
from arec.tables import SUMMARY, TABLES, markdown_table, published, summary, to_markdown

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
RECIPES = ROOT / "arec" / "recipes"


def publish(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("similarity_histogram", None)  # long; `arec.report` draws it
        record.pop("data", None)  # as `metrics` has them
    del metrics["config"]["data_dir"]  # where the files lay says nothing of the run
    kept = {"machine": machine(), "published_at_commit": commit(), **metrics, "log": records}
    keep(run.name, kept)


def published_rows(dataset: str) -> list[dict]:
    """NDCG@10 in the literature: what, in which ranking."""
    others = published()
    if dataset not in others["table1"]:
        return []
    paper = others["table1"][dataset]
    rows = [
        {
            "what": f"{name}, Table 1 (Jeon et al., 2023)",
            "ranking": "unfiltered",
            "NDCG@10": paper[name.lower()]["NDCG@10"],
        }
        for name in ("AdaptiveRec", "DuoRec")
    ]
    return rows + others["elsewhere"][dataset]


def by_name(part: str) -> dict[str, list[dict]]:
    """Published runs with that part in their names, those of several seeds under one name."""
    runs = {}
    for path in sorted(RESULTS.glob(f"*-{part}*.json")):
        name = re.sub(r"-seed-\d+$", "", path.stem)
        runs.setdefault(name, []).append(json.loads(path.read_text()))
    return runs


def share_a_seed(runs: list[dict]) -> bool:
    return len({run["config"]["seed"] for run in runs}) < len(runs)


def of_one_seed(names: list[str]) -> list[str]:
    """A line on what shares a seed, where something does."""
    return [f"Not a deviation over seeds, since runs share one: {', '.join(names)}."] if names else []


def ranking_table(part: str, *, recipes: bool = False) -> str:
    """Test figures of the published runs with that part in their names, or of recipes among them.

    Where it is a data set's name, with the literature's NDCG@10.
    """
    head = [f"{part}, test", *map(" ".join, SUMMARY), "best epoch by", "runs", "epochs", "minutes"]
    rows, notes, several, same_seed = [], set(), False, []
    for name, runs in by_name(part).items():
        if recipes and not (RECIPES / f"{name}.toml").exists():
            continue
        notes |= {
            f"{run['machine']}, {run['threads']} thread{'s' * (run['threads'] > 1)} a run, "
            + run.get("precision", run["config"]["precision"])
            for run in runs
        }
        several |= len(runs) > 1
        if share_a_seed(runs):
            same_seed.append(f"`{name}`")
        chosen_by = {"filtered" if run["config"]["filter_history"] else "unfiltered" for run in runs}
        cells = [*summary(runs), " or ".join(sorted(chosen_by)), str(len(runs))]
        cells += [f"{np.mean([run[key] for run in runs]):.0f}" for key in ("epochs", "minutes")]
        rows.append([f"`{name}`", *cells])
    for row in published_rows(part):
        cells = [
            f"{row['NDCG@10']:.4f}" if column == ("NDCG@10", row["ranking"]) else ""
            for column in SUMMARY
        ]
        rows.append([row["what"], *cells, "", "", "", ""])
    lines = markdown_table(head, rows)
    lines += ["", f"Measured on {'; '.join(sorted(notes))}; the full records are in `bench/results/`."]
    if several:
        lines.append("Of several runs mean ± standard deviation; epochs and minutes are a run's, in the mean.")
    return "\n".join(lines + of_one_seed(same_seed))


def curve_table(name: str) -> str:
    """Validation figures of a published run by epoch."""
    result = json.loads((RESULTS / f"{name}.json").read_text())
    rows = []
    for record in result["log"]:
        filtered, unfiltered = (
            record["valid"][protocol]["NDCG@10"] for protocol in ("filtered", "unfiltered")
        )
        rows.append(
            [str(record["epoch"]), f"{record['loss']:.3f}", f"{filtered:.4f}", f"{unfiltered:.4f}"]
        )
    lines = markdown_table(["epoch", "training loss", "NDCG@10 filtered", "NDCG@10 unfiltered"], rows)
    return "\n".join([*lines, "", f"Validation figures of `{name}`."])


def simthres_table() -> str:
    """What k learned in the published runs that learn it; of several the mean."""
    head = [
        "run", "gradient to k", "k̄ of the last epoch (released: s̄)", "positives a row in it", "k",
        "its spread over rows", "spread of the rows' quantiles", "correlation",
    ]  # fmt: skip
    rows = []
    for name, runs in by_name("").items():
        if "simthres" in runs[0]:
            width = runs[0]["config"]["threshold_grad"]
            mean, std, quantile_std, correlation = (
                np.mean([run["simthres"][key] for run in runs])
                for key in ("mean", "std", "quantile_std", "correlation")
            )
            k_stat = np.mean([run["log"][-1]["k_stat"] for run in runs])
            positives = "masked"
            if runs[0]["config"]["positives"]:
                positives = f"{np.mean([run['log'][-1]['positives_per_row'] for run in runs]):.1f}"
            rows.append([
                f"`{name}`", "none" if width is None else f"h = {width}", f"{k_stat:.3f}",
                positives, f"{mean:.3f}", f"{std:.4f}", f"{quantile_std:.4f}", f"{correlation:.2f}",
            ])  # fmt: skip
    lines = markdown_table(head, rows)
    note = "k, spreads and correlation (of k with the row's quantile): the chosen checkpoint's, without dropout."
    lines += ["", note]
    return "\n".join(lines)


def commands_table() -> str:
    """How each published run that is no recipe was started: from the recipe that it differs least from."""
    recipes = {path.stem: Config.from_settings({}, path.stem) for path in RECIPES.glob("*.toml")}
    rows = []
    for name, runs in by_name("").items():
        if "config" not in runs[0] or name in recipes:
            continue
        config = Config.model_validate({**runs[0]["config"], "seed": 0, "device": "auto"})
        changes = {
            recipe: {key: value for key, value in config.model_dump().items() if value != getattr(usual, key)}
            for recipe, usual in recipes.items()
        }
        nearest = min(sorted(changes), key=lambda recipe: len(changes[recipe]))
        options = " ".join(_option(key, value) for key, value in changes[nearest].items())
        rows.append([f"`{name}`", f"`--config {nearest} {options}`"])
    return "\n".join(markdown_table(["run", "python -m arec.train"], rows))


def _option(name: str, value: Any) -> str:
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {'none' if value is None else value}"


def widths_table(name: str) -> str:
    """What the width of the rows changes, from a record of `bench/report_cpu.py`."""
    rows = json.loads((RESULTS / f"{name}.json").read_text())["benchmarks"]
    pairs = [row for row in rows if row.get("passes") == "forward+backward"]
    found = {(row["n"], row["d"], row["rival"]): row for row in pairs}
    widths = sorted({d for _, d, _ in found})

    def cell(n: int, d: int) -> str:
        ours = found[n, d, "ours"]
        ratios = (
            f"{found[n, d, rival]['seconds'] / ours['seconds']:.1f}" for rival in ("eager", "torch.compile")
        )
        return ", ".join([*ratios, f"{ours['fraction']:.2f}"])

    sizes = sorted({n for n, _, _ in found})
    head = ["N", *(f"D = {d}: × eager, × torch.compile, of the limit" for d in widths)]
    body = [[f"{n:,}", *(cell(n, d) for d in widths)] for n in sizes]
    return "\n".join(markdown_table(head, body))


def paper_table(name: str, dataset: str) -> str:
    """A table of the paper from the published runs of recipes, which may be on other view pairs."""
    runs = [run for seeds in by_name(dataset).values() for run in seeds]
    # Recipes leave the precision to the machine.
    same = {"seed": 0, "precision": "auto"}
    configs = [Config.model_validate({**run["config"], **same}) for run in runs]
    results, recipes = {}, {}
    for method, views in TABLES[name].runs():
        recipe = f"{method}-{dataset}"
        wanted = Config.from_settings({"views": views}, recipe)
        results[method, views] = [run for run, config in zip(runs, configs) if config == wanted]
        recipes.setdefault(recipe, []).append(str(len(results[method, views])))
    counts = ", ".join(f"`{recipe}` {'/'.join(of)}" for recipe, of in recipes.items())
    ours, paper = Config.from_settings({}, f"adaptiverec-{dataset}"), Config(method="adaptiverec")
    others = " and ".join(
        f"`{key}` {getattr(ours, key)} (the paper: {getattr(paper, key)})"
        for key in ("quantile", "partner_weight") if getattr(ours, key) != getattr(paper, key)
    )  # fmt: skip
    settings = f"Ours: recipes on the table's view pairs; runs of each: {counts}."
    if others:
        settings += f" AdaptiveRec's has {others}."
    text = to_markdown(name, dataset, results, settings)
    note = of_one_seed([" ".join(key) for key, found in results.items() if share_a_seed(found)])
    return "\n\n".join([*text.split("\n\n")[1:3], *note])  # the page has the heading and the literature


def render(page: Path) -> str:
    """A page with its result sections made anew from ``bench/results/``."""

    def fill(match: re.Match) -> str:
        file = RESULTS / f"{match[1]}.md"
        if file.exists():
            body = file.read_text().strip()
        elif match[1].startswith("curve-"):
            body = curve_table(match[1].removeprefix("curve-"))
        elif match[1].startswith("widths-"):
            body = widths_table(match[1].removeprefix("widths-"))
        elif match[1] == "simthres":
            body = simthres_table()
        elif match[1] == "commands":
            body = commands_table()
        elif match[1].startswith(tuple(TABLES)):
            body = paper_table(*match[1].split("-", 1))
        else:
            part = match[1].removeprefix("recipes-")
            body = ranking_table(part, recipes=part != match[1])
        if page.parent != ROOT:
            body = body.replace("](bench/", "](../bench/")
        return f"<!-- results:{match[1]} -->\n{body}\n<!-- /results:{match[1]} -->"

    pattern = r"<!-- results:([\w-]+) -->\n.*?<!-- /results:\1 -->"
    return re.sub(pattern, fill, page.read_text(), flags=re.DOTALL)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        publish(Path(argument))
    for page in PAGES:
        page.write_text(render(page))
