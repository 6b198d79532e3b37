"""The paper's figures from our runs: which curves go where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedgh.core.errors import DataError
from fedgh.plot.curves import ACCURACY, Curve, conflict_figure, curves_figure, gains_figure
from fedgh.plot.style import style_of
from fedgh.report.cells import Result
from fedgh.report.cost import reach
from fedgh.report.paper import NAMES, as_published, column_name, published_gain, row_name, split_name
from fedgh.storage.run import Run, aligned
from fedgh.storage.tables import read_rounds, read_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED_LEAST = {(5, "α 0.1"): -0.06, (5, "α 0.01"): -0.12, (10, "α 0.01"): -0.22}
"""Least cosines that the text reads off figure 2, by number of clients and split."""
PUBLISHED_REACH = {"fedavg": 75, "feddecorr": 78}
"""Percent of the rounds that FedGH needs to the baseline's final level in figure 4."""

Table = tuple[list[str], list[list[str]]]
"""Head and rows."""


def last_cosines(run: Run) -> NDArray[np.float64] | None:
    """Return the cosines of all pairs in a run's last round, or None where the observatory's table is not there."""
    folder = run.path / "conflict" / "pairs"
    rounds = read_rounds(folder)
    try:
        return np.asarray(read_rows(folder, rounds[-1], ["cosine"])["cosine"], dtype=float) if rounds else None
    except DataError:
        return None


def curve(result: Result, metric: str, label: str, colour: int, scale: float = 1.0) -> Curve | None:
    """Return a metric per round over the seeds that have it, for the rounds common to them; None without any."""
    found = aligned(result.runs.values(), metric)
    if found is None:
        return None
    rounds, values = found
    return Curve(label, rounds, scale * values, (style_of(colour)[0], int(result.baseline is None)))


def figure2(results: Sequence[Result]) -> tuple[Figure | None, Table]:
    """Draw conflict in FedAvg: sorted cosines of the last round, and conflict ratio over rounds, by split and K.

    Returns:
        The figure, None without any curve; and a table with the least cosine beside the paper's.
    """
    cosines: dict[str, dict[str, list[NDArray[np.float64]]]] = {}
    ratios: dict[str, list[Curve]] = {}
    rows = []
    splits = list(dict.fromkeys(split_name(as_published(result)) for result in results))
    for result in results:
        paper = as_published(result)
        clients, split = paper.settings["partition.num_clients"], split_name(paper)
        panel, colour = f"K = {clients}", splits.index(split)
        sets = [values for values in map(last_cosines, result.runs.values()) if values is not None]
        cosines.setdefault(panel, {})[split] = sets
        ratio = curve(result, "conflict/ratio", split, colour, scale=100)
        ratios.setdefault(panel, [])
        if ratio is not None:
            ratio = Curve(split, ratio.rounds, ratio.values, style_of(colour))
            ratios[panel].append(ratio)
        known = [values[np.isfinite(values)] for values in sets if np.isfinite(values).any()]
        published = PUBLISHED_LEAST.get((clients, split))
        rows.append(
            [
                f"K {clients}, {split}",
                f"{np.mean([values.min() for values in known]):+.2f}" if known else "missing",
                "" if published is None else f"{published:+.2f}",
                f"{100 * np.mean([np.mean(values < 0) for values in known]):.0f}" if known else "missing",
                f"{ratio.mean().mean():.0f}" if ratio else "missing",
                str(len(result.runs)),
            ]
        )
    head = ["FedAvg", "least cosine", "paper", "pairs in conflict, last round (%)", "all rounds (%)", "seeds"]
    return (conflict_figure(cosines, ratios) if any(ratios.values()) else None), (head, rows)


def figure4(results: Sequence[Result]) -> tuple[Figure | None, Table]:
    """Draw accuracy and loss of the global model over rounds, with and without FedGH.

    Returns:
        The figure, None without any curve; and a table of the rounds until the baseline's final level is reached.
    """
    accuracy, loss, rows = list[Curve](), list[Curve](), []
    for result, colour in _coloured(results):
        label = _label(result)
        accuracy += _known(curve(result, "global/test/acc", label, colour, scale=100))
        loss += _known(curve(result, "global/test/loss", label, colour))
        if result.baseline is not None:
            rows.append([label, *reach_cells(result), f"{PUBLISHED_REACH[result.cell.row]} %"])
    panels = [("", ACCURACY, accuracy), ("", "Test loss", loss)]
    head = ["", "baseline's final level (%)", "rounds to it", "of its rounds", "paper"]
    return (curves_figure([panels]) if accuracy else None), (head, rows)


def figure5(results: Sequence[Result]) -> Figure | None:
    """Draw accuracy over rounds where every client holds some classes, a panel a data set; None without any curve."""
    panels: dict[str, list[Curve]] = {}
    for result, colour in _coloured(results):
        paper = as_published(result)
        title = column_name(paper, [paper])
        panels.setdefault(title, []).extend(_known(curve(result, "global/test/acc", _label(result), colour, scale=100)))
    shown = [(title, ACCURACY, curves) for title, curves in panels.items() if curves]
    return curves_figure([shown]) if shown else None


def gains(results: Sequence[Result]) -> Figure | None:
    """Draw every gain of FedGH in the paper's tables, ours and the paper's; None without any."""
    rows = []
    for result in results:
        gain, paper = result.gain(), as_published(result)
        if gain.pairs and result.cell.place.startswith("table"):
            others = [as_published(other) for other in results if other.cell.place == result.cell.place]
            row = row_name(paper).replace("+ FedGH", NAMES[result.cell.row])
            label = f"{paper.place.replace('table', 'T')}  {column_name(paper, others)}  {row}"
            rows.append((label, gain.mean, gain.low, gain.high, published_gain(result)))
    return gains_figure(rows) if rows else None


def reach_cells(result: Result) -> list[str]:
    """Return the baseline's final level, the rounds to it, and their share of all rounds."""
    baseline = result.baseline
    if baseline is None or not baseline.runs or not result.runs:
        return ["missing", "missing", "missing"]
    soon, total = reach(result.runs, baseline.runs), next(iter(baseline.runs.values())).summary["rounds"]
    level = f"{baseline.score().mean:.2f}"
    if not soon.seeds:
        return [level, "not reached" if any(run.rows for run in result.runs.values()) else "not known", ""]
    of = "" if soon.seeds == len(result.runs) else f" ({soon.seeds} of {len(result.runs)} seeds)"
    return [level, f"{soon.mean:.1f}{of}", f"{100 * soon.mean / total:.0f} %"]


def _label(result: Result) -> str:
    name = NAMES[result.cell.row]
    return name if result.baseline is None else f"{name} + FedGH"


def _coloured(results: Sequence[Result]) -> Iterator[tuple[Result, int]]:
    """Give every method a colour; with and without FedGH share it."""
    rows = list(dict.fromkeys(result.cell.row for result in results))
    return ((result, rows.index(result.cell.row)) for result in results)


def _known(found: Curve | None) -> list[Curve]:
    return [] if found is None else [found]
