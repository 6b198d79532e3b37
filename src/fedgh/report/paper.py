"""The paper's tables with our numbers beside them: in its layout for readers, in long form for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any

from fedgh.paper.matrix import Cell, cells
from fedgh.report.cells import Result
from fedgh.report.compare import Gain, Score, paired_gain
from fedgh.report.cost import reach
from fedgh.report.groups import NAMES as DATASETS

TITLES = {
    "table1": "Table 1: CIFAR-10 and CIFAR-100",
    "table2": "Table 2: Tiny-ImageNet",
    "table3": "Table 3: number of clients K",
    "table4": "Table 4: number of local epochs E",
    "figure2": "Figure 2: conflict in FedAvg",
    "figure4": "Figure 4: CIFAR-100, α 0.01",
    "figure5": "Figure 5: clients split by class, last round",
    "matched_rate": "Variant: FedGH's direction or FedGH's step length?",
    "plain_dirichlet": "Variant: the guarded split of the released code against plain Dirichlet",
    "silent_mu": "Variant: FedProx as defined against mu = 0",
}
"""Of places; one that has none here goes by its own name."""

ROWS_OF = {"table3": ("K", "partition.num_clients"), "table4": ("E", "algorithm.local_epochs")}
"""Tables that print one of their settings in rows."""

NAMES = DATASETS | {
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "fednova": "FedNova",
    "feddecorr": "FedDecorr",
    "fedgh": "+ FedGH",
    "mean_at_gain": "FedAvg with FedGH's coefficient sum",
    "mean_at_norm": "FedAvg with FedGH's length",
    "fedgh_over_gain": "FedGH with the mean's coefficient sum",
    "fedgh_at_mean_norm": "FedGH with the mean's length",
    "guarded_mean": "guarded: FedAvg",
    "guarded_fedgh": "guarded: + FedGH",
    "plain_mean": "plain: FedAvg",
    "plain_fedgh": "plain: + FedGH",
    "mu0_mean": "mu = 0: FedProx",
    "mu0_fedgh": "mu = 0: + FedGH",
}
VERSUS = {"matched_rate": (("fedgh", "mean_at_gain"), ("fedgh", "mean_at_norm"))}
"""Arms of a variant that are compared with another arm than the plain mean, too."""

PUBLISHED_GAIN = {("figure5", "cifar100", "feddecorr"): 1.93, ("figure5", "tiny_imagenet", "feddecorr"): 1.77}
"""Gains that the text gives where the figure has no numbers."""


def as_published(result: Result) -> Cell:
    """Return the result's cell at the size of the paper."""
    of_paper = {(c.place, c.column, c.row, c.aggregator): c for c in cells("paper")}
    cell = result.cell
    return of_paper[cell.place, cell.column, cell.row, cell.aggregator]


def published_gain(result: Result) -> float | None:
    """Return the paper's gain in points, from its tables or from its text."""
    if result.baseline is None or result.cell.settings["aggregator"] != "fedgh":
        return None
    key = result.cell.place, str(as_published(result).settings["dataset"]), result.cell.row
    return PUBLISHED_GAIN.get(key, result.published_gain)


def split_name(cell: Cell) -> str:
    """Return how the data is split, in the paper's words."""
    alpha = cell.settings.get("partition.alpha")
    if alpha is not None:
        return f"α {alpha:g}"
    return {"iid": "IID", "classes": "by class"}.get(str(cell.settings["partition"]), str(cell.settings["partition"]))


def column_name(cell: Cell, others: Sequence[Cell]) -> str:
    """Name a column by data set, split, and whatever else sets the columns of its table apart."""
    parts = [NAMES.get(str(cell.settings["dataset"]), str(cell.settings["dataset"])), split_name(cell)]
    in_rows = ROWS_OF.get(cell.place, ("", ""))[1]
    for letter, key in (("K", "partition.num_clients"), ("C", "sampler.fraction"), ("E", "algorithm.local_epochs")):
        if key != in_rows and len({other.settings[key] for other in others}) > 1:
            parts.append(f"{letter} {cell.settings[key]:g}")
    return ", ".join(parts)


def row_name(cell: Cell) -> str:
    """Name a row by its method, and by the setting that its table prints in rows."""
    letter, key = ROWS_OF.get(cell.place, ("", ""))
    name = NAMES.get(cell.row if cell.aggregator == "mean" else cell.aggregator, cell.aggregator)
    return f"{letter} {cell.settings[key]:g}: {name}" if key else name


def grid(results: Sequence[Result]) -> tuple[list[str], list[list[list[str]]]]:
    """Lay the results of one place and preset out as the paper does, our number above its number.

    Returns:
        Head and rows; a cell is a list of lines. Below every method that was run and has a baseline stands its gain.
    """
    published = [as_published(result) for result in results]
    table: dict[tuple[str, str], dict[str, Result]] = {}
    for result, cell in zip(results, published, strict=True):
        table.setdefault((row_name(cell), cell.row), {})[column_name(cell, published)] = result
    columns = list(dict.fromkeys(column for line in table.values() for column in line))
    rows: list[list[list[str]]] = []
    for (name, _), line in table.items():  # the same columns in every row
        rows.append([[name], *(_accuracy(line[column]) for column in columns)])
        if any(result.baseline and result.runs for result in line.values()):
            rows.append([["gain in accuracy"], *(_gain(line[column]) for column in columns)])
    arms = {result.cell.aggregator: line for line in table.values() for result in line.values()}
    for ours, other in VERSUS.get(published[0].place, ()):
        pairs = [(arms[ours][column], arms[other][column]) for column in columns]
        tests = [_test(paired_gain(first.values(), second.values())) for first, second in pairs]
        rows.append([["FedGH", f"over {NAMES.get(other, other)}"], *tests])
    return ["", *columns], rows


def long_form(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Return one line per cell: accuracies in percent, gains in points; what is not known is None."""
    return [_line(result) for result in results]


def _line(result: Result) -> dict[str, Any]:
    cell, paper = result.cell, as_published(result)
    final, last10 = result.score(), result.score("last10")
    gain, gain10 = result.gain(), result.gain("last10")
    soon = reach(result.runs, result.baseline.runs) if result.baseline else Score.of([])
    curves = result.baseline is not None and any(run.rows for run in result.runs.values())
    line = {
        "preset": cell.preset,
        "table": cell.place,
        "column": cell.column,
        "row": cell.row,
        "aggregator": cell.aggregator,
        "dataset": paper.settings["dataset"],
        "split": split_name(paper),
        "clients": paper.settings["partition.num_clients"],
        "fraction": paper.settings["sampler.fraction"],
        "local_epochs": paper.settings["algorithm.local_epochs"],
        "ours": final.mean,
        "sd": final.sd,
        "seeds": final.seeds,
        "last10": last10.mean,
        "last10_sd": last10.sd,
        "paper": cell.published,
        "gain": gain.mean,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "p_value": gain.p_value,
        "pairs": gain.pairs if result.baseline else None,
        "gain_last10": gain10.mean,
        "p_value_last10": gain10.p_value,
        "paper_gain": published_gain(result),
        "rounds_to_baseline": soon.mean,
        "seeds_that_reached_it": soon.seeds if curves else None,
        "note": result.note,
        "runs": " ".join(str(run.path) for run in result.runs.values()),
    }
    return {key: None if isinstance(value, float) and not isfinite(value) else value for key, value in line.items()}


def size_note(results: Sequence[Result]) -> str:
    """Say in one line what a preset changed, and what may therefore be compared."""
    changed: dict[str, dict[str, None]] = {}
    for result in results:
        ours, paper = result.cell.settings, as_published(result).settings
        for key in paper:
            if key in ours and ours[key] != paper[key]:
                changed.setdefault(key, {})[f"{paper[key]} → {ours[key]}"] = None
    preset = results[0].cell.preset
    if not changed:
        return f"Preset `{preset}`: the sizes are the paper's."
    told = "; ".join(f"{key} {', '.join(pairs)}" for key, pairs in changed.items())
    return (
        f"Preset `{preset}` ({told}): these accuracies are not comparable with the paper's in absolute terms; what is "
        "compared are the gains."
    )


def _accuracy(result: Result) -> list[str]:
    published = [] if result.cell.published is None else [f"paper {result.cell.published:.2f}"]
    if not result.runs:
        return [result.note, *published]
    score = result.score()
    return [f"{_score(score)} ({score.seeds})", f"last ten {_score(result.score('last10'))}", *published]


def _gain(result: Result) -> list[str]:
    if result.baseline is None:
        return [""]
    published = published_gain(result)
    late = result.gain("last10")
    return [
        *_test(result.gain()),
        *([f"last ten {late.mean:+.2f}"] if late.pairs else []),
        *([] if published is None else [f"paper {published:+.2f}"]),
    ]


def _test(gain: Gain) -> list[str]:
    if gain.pairs == 0:
        return ["no pair of runs"]
    if gain.pairs == 1:
        return [f"{gain.mean:+.2f}", "one seed"]
    told = "no spread" if gain.p_value != gain.p_value else f"p = {gain.p_value:.2g}"
    return [f"{gain.mean:+.2f}", f"{gain.low:+.2f} to {gain.high:+.2f}", f"{told}, n = {gain.pairs}"]


def _score(score: Score) -> str:
    spread = f" ± {score.sd:.2f}" if score.seeds > 1 else ""
    return f"{score.mean:.2f}{spread}" if score.seeds else "not known"
