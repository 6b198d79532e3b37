"""The charts of a dashboard: accuracy, conflict, cosines and layers over rounds, by method and federation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from html import escape

import numpy as np
from numpy.typing import NDArray

from fedgh.core.errors import DataError
from fedgh.metric.summary import main_of
from fedgh.plot.curves import Curve
from fedgh.plot.panel import HeatMap, heat_panel, limits, line_panel, scale
from fedgh.report.document import Document
from fedgh.report.groups import Group, Groups
from fedgh.report.page import BINS
from fedgh.storage.run import Run, aligned
from fedgh.storage.tables import layer_history, read_rounds, read_rows

MOST_PICTURES = 24  # heat maps of a kind
MOST_ROUNDS = 60  # columns of one, evenly spaced over the rounds
MANY_METHODS = 4  # more share a panel of full width
QUANTILES = (("conflict/cosine_q25", "conflict/cosine_q75"), ("conflict/cosine_q05", "conflict/cosine_q95"))

Array = NDArray[np.float64]


@dataclass
class Board(Document):
    """A page as it grows.

    Attributes:
        groups: What is shown.
        problems: What is not, a sentence each.
    """

    groups: Groups = field(kw_only=True)
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def tolerating(self) -> Iterator[None]:
        """Note what cannot be read, and go on without it."""
        try:
            yield
        except DataError as error:
            self.problems.append(str(error))

    def panels(self, drawn: Iterable[str]) -> None:
        """Add charts side by side."""
        self.html.append(f"<div class='panels'>{''.join(drawn)}</div>")

    def pictures(self, draw: Mapping[Group, Callable[[str, int], str]]) -> None:
        """Add a chart a group, those of one federation below its name; each is drawn by its title and width."""
        rows: dict[int, dict[Group, Callable[[str, int], str]]] = {}
        counts = Counter(group.federation for group in draw)
        for group, of in draw.items():
            rows.setdefault(group.federation if counts[group.federation] > 1 else -1, {})[group] = of
        width = {2: 535, 4: 260, 8: 260}.get(max(counts.values()), 353)
        for federation, row in rows.items():
            together = federation >= 0
            if together and len(self.groups.federations) > 1:
                name = escape(self.groups.federations[federation])
                self.html.append(f"<h4 data-federation='{federation}'>{name}</h4>")
            drawn = []
            for group, of in row.items():
                title = self.groups.methods[group.method] if together else self.groups.name(group)
                belongs = f"data-method='{group.method}' data-federation='{group.federation}'"
                drawn.append(f"<div {belongs}>{of(title, width if together else 353)}</div>")
            self.panels(drawn)


def curves(page: Board) -> None:
    """Add over rounds what the tasks are judged by, and conflict: the mean over seeds, and one standard deviation."""
    mains = {group: _main(group) for group in page.groups.members}
    conflict = "Share of client pairs whose updates oppose each other (%)"
    charts = [
        ("Accuracy over rounds", "global/test/acc", "Test accuracy of the global model, in percent")
        if main == "acc"
        else (f"{main} over rounds", f"global/test/{main}", f"Test {main} of the global model")
        for main in sorted(set(mains.values()))
    ]
    for heading, metric, told in (*charts, ("Conflict ratio over rounds", "conflict/ratio", conflict)):
        page.heading(heading)
        judged = [group for group in page.groups.members if metric in ("conflict/ratio", f"global/test/{mains[group]}")]
        thin = " Thin: a run that is not finished." * any(group.unfinished for group in judged)
        page.note(f"{told}: mean over seeds and one standard deviation.{thin}")
        share = metric in ("conflict/ratio", "global/test/acc")
        lines = [(group.federation, line) for group in judged for line in _lines(page, group, metric, share)]
        _draw(page, lines, metric == "conflict/ratio" or len(page.groups.datasets) == 1, share)


def _main(group: Group) -> str:
    """Return what the runs of a group are judged by: as the finished ones say, else as the rounds of the others do."""
    runs = [*group.finished, *group.unfinished]
    told = [main for run in runs if (main := main_of(run.summary))]
    rounds = [main for run in runs for main in ("acc", "r2") if any(f"global/test/{main}" in row for row in run.rows)]
    return next(iter([*told, *rounds]), "acc")


def _lines(page: Board, group: Group, metric: str, share: bool) -> list[Curve]:
    """Return the mean of the finished runs, and every unfinished one; a share in percent."""
    name, style = page.groups.methods[group.method], page.groups.styles[group.method]
    curves = []
    for runs, thin in ((group.finished, False), *(([run], True) for run in group.unfinished)):
        found = aligned(runs, metric)
        if found is not None:
            seeds = f"{len(found[1])} seeds" if len(found[1]) > 1 else f"seed {runs[0].seed}"
            label = f"{name}, {seeds}" + ", not finished" * thin
            values = 100 * found[1] if share else found[1]
            curves.append(Curve(label, found[0], values, style, group.method, thin=thin))
    return curves


def _draw(page: Board, lines: Sequence[tuple[int, Curve]], alike: bool, share: bool) -> None:
    """Draw a panel a federation, where many methods meet a wide one; ``alike``: on one vertical axis."""
    panels: dict[int, list[Curve]] = {}
    for federation, line in lines:
        panels.setdefault(federation, []).append(line)
    if not panels:
        page.text("No run has its rounds at hand.")
        return
    axis_of = partial(limits, within=(0.0, 100.0) if share else (-np.inf, np.inf), least=10.0 if share else 0.1)
    common = axis_of([line for _, line in lines])
    wide = {federation for federation, of in panels.items() if len({line.method for line in of}) > MANY_METHODS}
    narrow = {1: 1090, 2: 535, 4: 535}.get(len(panels) - len(wide), 353)
    drawn = []
    for federation in sorted(panels, key=lambda federation: federation not in wide):
        width, of = 1090 if federation in wide else narrow, panels[federation]
        axis = common if alike else axis_of(of)
        panel = line_panel(page.groups.federations[federation], width, of, axis, 240 if width > 353 else 180)
        drawn.append(f"<div data-federation='{federation}'>{panel}</div>")
    page.panels(drawn)


def cosines(page: Board) -> None:
    """Add how the cosines are distributed over the rounds: histograms, or quantiles where those are not kept."""
    page.heading("Cosines over rounds")
    found = {group: _histograms(page, group.finished or group.unfinished) for group in page.groups.members}
    pictures = {group: history for group, history in found.items() if history is not None and len(history[0]) > 1}
    if pictures:
        shown = dict(list(pictures.items())[:MOST_PICTURES])
        peaks = np.concatenate([shares.max(axis=0) for _, shares in shown.values()])
        most = float(np.quantile(peaks, 0.9))  # a few sharp rounds must not make all others pale
        filled = np.flatnonzero(np.sum([shares.sum(axis=1) for _, shares in shown.values()], axis=0))
        low, high = min(filled[0], len(BINS) // 2 - 1), max(filled[-1] + 1, len(BINS) // 2 + 1)
        ends = float(BINS[low]), float(BINS[high])
        page.note(
            "How the cosines of all pairs of updates are distributed, round by round: dark where many pairs are; below "
            f"the dashed line they are in conflict.{_left_out(pictures)}"
        )
        page.html.append(scale("YlGnBu", "0", f"{100 * most:.0f} % of the pairs, or more"))
        maps = {
            group: HeatMap(np.where(shares > 0, shares, np.nan)[low:high][::-1] / most, rounds, "YlGnBu", ends=ends)
            for group, (rounds, shares) in shown.items()
        }
        page.pictures({group: partial(heat_panel, of=of, height=150, zero=True) for group, of in maps.items()})
    others = {group: _quantiles(page, group) for group in page.groups.members if group not in pictures}
    fans = {group: line for group, line in others.items() if line is not None}
    if fans:
        page.note(
            "The median cosine of all pairs of updates, with the middle half and the middle nine tenths of them; below "
            f"zero they are in conflict. Histograms need the tables of callback=default.{_left_out(fans)}"
        )
        fans = dict(list(fans.items())[:MOST_PICTURES])
        axis = limits(list(fans.values()), (-1.0, 1.0), 0.2)
        page.pictures(
            {group: partial(line_panel, curves=[line], axis=axis, height=180) for group, line in fans.items()}
        )
    if not pictures and not fans:
        page.text("None of these runs recorded its cosines; `callback=default` does.")


def _histograms(page: Board, runs: Sequence[Run]) -> tuple[list[int], Array] | None:
    """Return rounds, and shares of pairs per bin, ``(bins, rounds)``, over all runs; None where they are not kept."""
    sums: dict[int, Array] = {}
    for run in runs:
        folder = run.path / "conflict" / "pairs"
        for number in thinned(read_rounds(folder)):
            with page.tolerating():
                counts = np.histogram(read_rows(folder, number, ["cosine"])["cosine"], bins=BINS)[0]
                sums[number] = sums.get(number, 0) + counts
        for number in thinned(sorted(run.cosines)):
            if len(run.cosines[number]) == len(BINS) - 1:
                sums[number] = sums.get(number, 0) + np.asarray(run.cosines[number], dtype=float)
    if not sums:
        return None
    rounds = sorted(sums)
    counts = np.array([sums[number] for number in rounds]).T
    return rounds, counts / np.maximum(counts.sum(axis=0), 1)


def thinned(rounds: Sequence[int]) -> list[int]:
    """Return at most so many rounds that a picture has columns for, the first and the last among them."""
    if len(rounds) <= MOST_ROUNDS:
        return list(rounds)
    return [rounds[index] for index in np.linspace(0, len(rounds) - 1, MOST_ROUNDS).round().astype(int)]


def _quantiles(page: Board, group: Group) -> Curve | None:
    """Return the median with bands, means over seeds; None where they are not known."""
    runs = group.finished or group.unfinished
    names = ("conflict/cosine_median", *(name for pair in QUANTILES for name in pair))
    known = [aligned(runs, name) for name in names]
    tables = [found for found in known if found is not None]
    if len(tables) < len(names) or any(rounds != tables[0][0] for rounds, _ in tables):
        return None
    median, *ends = (np.mean(values, axis=0) for _, values in tables)
    bands = [(ends[0], ends[1]), (ends[2], ends[3])]
    name, style = page.groups.methods[group.method], page.groups.styles[group.method]
    return Curve(name, tables[0][0], median[None], style, group.method, bands)


def layers(page: Board) -> None:
    """Add conflict per layer over rounds, where the tables are at hand."""
    page.heading("Layers")
    found = {group: _layer_shares(page, group.finished or group.unfinished) for group in page.groups.members}
    pictures = {group: history for group, history in found.items() if history is not None}
    if not pictures:
        page.text("None of these runs has the tables of its layers at hand; `callback=default` writes them.")
        return
    page.note(
        "Share of client pairs in conflict in every layer, from the input (top) to the output; mean over seeds."
        + _left_out(pictures)
    )
    page.html.append(scale("OrRd", "0", "100 % of the pairs"))
    shown = list(pictures.items())[:MOST_PICTURES]
    maps = {group: HeatMap(shares, rounds, "OrRd", names) for group, (rounds, names, shares) in shown}
    height = min(max(18 * max(len(of.values) for of in maps.values()), 60), 290)
    page.pictures({group: partial(heat_panel, of=of, height=height) for group, of in maps.items()})


def _layer_shares(page: Board, runs: Sequence[Run]) -> tuple[list[int], list[str], Array] | None:
    """Return rounds, layers, and the share of pairs in conflict, ``(layers, rounds)``, for the rounds of all runs."""
    histories = []
    for run in runs:
        folder = run.path / "conflict" / "layers"
        rounds = thinned(read_rounds(folder))
        with page.tolerating():
            histories += [layer_history(folder, rounds)] if rounds else []
    if not histories:
        return None
    names = histories[0]["layers"]
    rounds = sorted(set.intersection(*(set(history["rounds"]) for history in histories)))
    alike = [history for history in histories if history["layers"] == names]
    columns = [history["ratio"][:, [history["rounds"].index(number) for number in rounds]] for history in alike]
    return (rounds, names, np.mean(columns, axis=0)) if rounds else None


def _left_out(pictures: Mapping[Group, object]) -> str:
    total = len(pictures)
    return f" The first {MOST_PICTURES} of {total} groups; runs=<a part> shows others." if total > MOST_PICTURES else ""
