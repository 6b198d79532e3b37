"""Turns finished runs into files that a reader opens: Markdown, one HTML page, CSV and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedgh.metric.summary import main_of
from fedgh.paper.matrix import places
from fedgh.plot.curves import ACCURACY, CONFLICT, Curve, curves_figure
from fedgh.report import paper_figures, seeds
from fedgh.report.cells import Result, begun, results
from fedgh.report.cost import cost_line
from fedgh.report.document import Document
from fedgh.report.groups import Group, Groups
from fedgh.report.paper import TITLES, grid, long_form, size_note
from fedgh.report.seeds import write_csv
from fedgh.storage.run import Run, aligned

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(runs: Sequence[Run], folder: Path, problems: Sequence[str] = ()) -> str:
    """Write ``report.md``, ``report.html``, ``runs.csv`` and whatever tables and pictures these runs give rise to.

    Args:
        runs: Finished ones, each once; there may be none.
        folder: Where the files go.
        problems: What was left out and why, a sentence each.

    Returns:
        The Markdown text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found, others, complaints = results(runs)
    document = Document(folder, "Runs beside the paper" if found else "Runs")
    problems = [*problems, *complaints]
    number = "1 finished run" if len(runs) == 1 else f"{len(runs)} finished runs"
    document.text(f"{number}. `runs.csv` has a line for each: settings, results, cost, commit, command.")
    if runs:
        commits = dict.fromkeys(str(run.provenance.get("commit") or "unknown") for run in runs)
        document.text(f"Commit{'s' * (len(commits) > 1)}: {', '.join(commits)}.")
    if problems:
        document.points(problems, kind="warning")
    if runs:
        write_csv(seeds.runs_table(runs), folder / "runs.csv")
    if found:
        _write_paper(document, found)
    if others:
        _write_others(document, others, apart=bool(found))
    return document.write()


def _write_paper(document: Document, found: Sequence[Result]) -> None:
    """Add the paper's tables and figures, preset by preset, with the cells that are missing."""
    folder = document.folder
    write_csv(long_form(found), folder / "paper_tables.csv")
    for preset in dict.fromkeys(result.cell.preset for result in found):
        shown = begun(found, preset)
        document.heading(f"The paper's experiments at preset {preset}")
        document.text(size_note([result for of in shown.values() for result in of]))
        document.text(
            "Accuracy of the global model on the official test split, in percent: after the last round, mean ± "
            "standard deviation over seeds (their number); and its mean over the last ten rounds. The paper gives one "
            "seed. Gains in accuracy are in points, paired by seed, with a 95 % interval and the p-value of a two-"
            "sided paired t-test."
        )
        _picture(document, f"gains_{preset}", "Gains of FedGH, ours and the paper's.", paper_figures.gains(_all(shown)))
        for place, of in shown.items():
            if place in ("figure2", "figure4"):
                continue
            document.heading(TITLES.get(place, place), 3)
            document.table(*grid(of))
            if place == "figure5":
                _picture(document, f"figure5_{preset}", _FIGURE5, paper_figures.figure5(of))
        for place, draw, caption in _FIGURES:
            if place in shown:
                figure, table = draw(shown[place])
                document.heading(TITLES[place], 3)
                _picture(document, f"{place}_{preset}", caption, figure)
                document.table(*table)
        not_run = [TITLES.get(place, place) for place in places() if place not in shown]
        if not_run:
            document.text(f"Not run at this preset: {'; '.join(not_run)}.")
        _write_cost(document, *_cost_of_cells(_all(shown)))


_FIGURES: tuple[tuple[str, Callable[[Sequence[Result]], tuple[Any, paper_figures.Table]], str], ...] = (
    (
        "figure2",
        paper_figures.figure2,
        "Above: cosines of all pairs of updates in the last round, ascending, a line a seed. Below: share of pairs "
        "with a negative cosine, mean over seeds and one standard deviation.",
    ),
    (
        "figure4",
        paper_figures.figure4,
        "Accuracy and loss of the global model on the test split; dashed without FedGH. Mean over seeds and one "
        "standard deviation. The table counts rounds until a run reaches what its baseline has after the last.",
    ),
)
_FIGURE5 = (
    "Accuracy where every client holds classes of its own; dashed without FedGH. Mean and one standard deviation."
)


def _cost_of_cells(found: Sequence[Result]) -> tuple[dict[str, Sequence[Run]], dict[str, list[str]]]:
    """Return every group of runs once, by the name of its directories, and the rounds to its baseline's level."""
    groups, soon = dict[str, Sequence[Run]](), dict[str, list[str]]()
    for result in (result for result in found if result.runs):
        name = result.cell.name.rpartition("/")[0]
        groups[name] = list(result.runs.values())
        soon[name] = paper_figures.reach_cells(result)[1:] if result.baseline else ["", ""]
    return groups, soon


def _write_cost(
    document: Document, groups: Mapping[str, Sequence[Run]], soon: Mapping[str, list[str]] | None = None
) -> None:
    """Add what runs cost, means over those alike; hardware in a column only where there are several."""
    document.heading("Cost", 3)
    lines = {name: cost_line(runs) for name, runs in groups.items()}
    hardware = {line["hardware"] for line in lines.values()}
    head = ["", "runs", "rounds", "training (s)", "aggregation (s)", "sample passes"]
    head += ["rounds to the baseline's final level", "of all"] * bool(soon) + ["hardware"] * (len(hardware) > 1)
    rows = []
    for name, line in lines.items():
        numbers = (line["rounds"], line["train_seconds"], line["aggregate_seconds"], line["samples"])
        told = [
            form.format(value) if isfinite(value) else "not known"
            for form, value in zip(("{:g}", "{:,.1f}", "{:,.2f}", "{:,.0f}"), numbers, strict=True)
        ]
        last = [line["hardware"]] * (len(hardware) > 1)
        rows.append([name, str(line["runs"]), *told, *(soon[name] if soon else []), *last])
    document.table(head, rows)
    if len(hardware) == 1:
        document.text(f"All on: {hardware.pop()}.")


def _write_others(document: Document, runs: Sequence[Run], apart: bool) -> None:
    """Add the runs that are no cell of the paper: a line a setting, gains over the mean, curves, cost."""
    folder, groups = document.folder, Groups.of(runs)
    document.heading("Other runs" if apart else "Over seeds")
    if not apart:
        document.text("None of these runs is a cell of the paper's tables; `fedgh-paper` runs those.")
    document.text(f"On {', '.join(groups.datasets)}. {seeds.EXPLAINED}")
    document.table(*seeds.over_seeds(groups))
    write_csv(seeds.of_groups(groups), folder / "seeds.csv")
    head, rows = seeds.gains_table(groups)
    if rows:
        write_csv(seeds.gain_lines(groups), folder / "gain.csv")
        document.heading("Gain in final accuracy over the plain mean", 3)
        document.text(
            "The same algorithm and settings with the mean as aggregator, paired by seed; with a 95 % interval and the "
            "p-value of a two-sided paired t-test."
        )
        document.table(head, rows)
    panels = curve_panels(groups)
    _picture(
        document,
        "curves",
        "Accuracy of the global model and share of pairs of clients in conflict, per round: mean over seeds and one "
        "standard deviation.",
        curves_figure(panels, 3.4) if panels else None,
    )
    _write_cost(document, {groups.name(group): group.finished for group in groups.members})


def curve_panels(groups: Groups) -> list[list[tuple[str, str, list[Curve]]]]:
    """Return the panels of every federation, accuracy above conflict, some federations side by side."""
    drawn: dict[int, list[tuple[str, str, list[Curve]]]] = {}
    for federation, name in enumerate(groups.federations):
        members = [group for group in groups.members if group.federation == federation]
        mains = {main for group in members for run in group.finished if (main := main_of(run.summary))} or {"acc"}
        scores = [(f"global/test/{main}", ACCURACY if main == "acc" else f"Test {main}") for main in sorted(mains)]
        for metric, label in (*scores, ("conflict/ratio", CONFLICT)):
            curves = [curve for group in members if (curve := curve_of(groups, group, metric)) is not None]
            if curves:
                drawn.setdefault(federation, []).append((name, label, curves))
    if len(drawn) == 1:
        return list(drawn.values())  # one beside the other
    rows, columns = [], 2 if len(drawn) == 4 else 3
    for start in range(0, len(drawn), columns):
        beside = list(drawn.values())[start : start + columns]
        rows += [[of[row] for of in beside if row < len(of)] for row in range(max(map(len, beside)))]
    return rows


def curve_of(groups: Groups, group: Group, metric: str) -> Curve | None:
    """Return a metric of the finished runs of a group, shares in percent; None where none has it."""
    found = aligned(group.finished, metric)
    if found is None:
        return None
    factor = 100 if metric in ("global/test/acc", "conflict/ratio") else 1
    return Curve(groups.methods[group.method], found[0], factor * np.asarray(found[1]), groups.styles[group.method])


def _picture(document: Document, name: str, caption: str, figure: Figure | None) -> None:
    """Add a picture, or say that there is nothing to draw."""
    if figure is None:
        document.text(f"{name}: missing; none of these runs has its rounds at hand.")
    else:
        document.picture(name, caption, figure)


def _all(places_with: Mapping[str, Sequence[Result]]) -> list[Result]:
    return [result for of in places_with.values() for result in of]
