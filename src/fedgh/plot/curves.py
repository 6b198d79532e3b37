"""Numbers over rounds, by method and seed, and gains: plain numbers in, a matplotlib figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedgh.plot.style import BLUE, COLOURS, DASHES, FAINT, INK, LEGEND, TITLE, legend, new_figure, plain, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
FEW_ROUNDS = 25  # up to which every round is a dot
MOST_POINTS = 2000  # of a sorted curve; more are thinned evenly
ACCURACY, CONFLICT = "Test accuracy (%)", "Pairs in conflict (%)"


@dataclass(frozen=True, eq=False)
class Curve:
    """A number per round, over seeds.

    Attributes:
        label: What it is of; curves of one label share an entry in the legend.
        rounds: ``(rounds,)``, ascending.
        values: One row per seed, ``(seeds, rounds)``; NaN where it was not measured.
        style: A colour, and an index into ``DASHES``.
        method: Whose it is, by which an interactive page shows and hides it.
        ends: Lower and upper ends of bands, ``(rounds,)`` each, the innermost first; None: one standard deviation.
        thin: For a run that is not finished.
    """

    label: str
    rounds: Sequence[int]
    values: Array
    style: tuple[str, int] = (COLOURS[0], 0)
    method: int = 0
    ends: Sequence[tuple[Array, Array]] | None = None
    thin: bool = False

    def mean(self) -> Array:
        """Return the mean over seeds, ``(rounds,)``."""
        return np.asarray(np.mean(self.values, axis=0), dtype=float)

    def spread(self) -> Array:
        """Return the standard deviation over seeds, n - 1, ``(rounds,)``; zero for one seed."""
        values = np.asarray(self.values, dtype=float)
        return np.std(values, axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])

    def bands(self) -> Sequence[tuple[Array, Array]]:
        """Return lower and upper ends of what is shaded; nothing for one seed."""
        if self.ends is not None:
            return self.ends
        mean, spread = self.mean(), self.spread()
        return [(mean - spread, mean + spread)] if len(self.values) > 1 else []


def draw_curve(axes: Axes, curve: Curve) -> tuple[Any, list[Any]]:
    """Draw a curve without its missing rounds; return its line and its bands."""
    mean, rounds = curve.mean(), np.asarray(curve.rounds)
    known = np.isfinite(mean)
    colour, dash = curve.style
    style: dict[str, Any] = {"linestyle": (0, DASHES[dash]) if DASHES[dash] else "-"}
    if known.sum() <= FEW_ROUNDS and not curve.thin:
        style |= {"marker": "o", "markersize": 3, "markerfacecolor": "white" if dash else colour}
    width, alpha = (0.9, 0.65) if curve.thin else (1.7, 1.0)
    label = "" if curve.thin else curve.label
    (line,) = axes.plot(rounds[known], mean[known], color=colour, label=label, linewidth=width, alpha=alpha, **style)
    fills = [axes.fill_between(rounds, *ends, color=colour, alpha=0.12, linewidth=0) for ends in curve.bands()]
    return line, fills


def curves_figure(rows: Sequence[Sequence[tuple[str, str, Sequence[Curve]]]], height: float = 4.0) -> Figure:
    """Draw curves over rounds: the mean over seeds, and a band of one standard deviation; every curve is named.

    Args:
        rows: Of panels: title, what the vertical axis says, and curves; rows may differ in their number of panels.
        height: Of a row, in inches.
    """
    columns = max(map(len, rows))
    figure = new_figure(max(5.2 * columns + 0.3, 6.5), height * len(rows) + 0.3)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, panels in zip(grid, rows, strict=True):
        for axes, (title, label, curves) in zip(line, panels, strict=False):
            plain(axes, "y")
            for curve in curves:
                draw_curve(axes, curve)
            axes.locator_params(axis="x", integer=True)
            axes.set_xlabel("Round", color=INK)
            axes.set_ylabel(label, color=INK)
            axes.set_title(title, **TITLE)
        for axes in line[len(panels) :]:
            axes.set_axis_off()
    legend(figure, grid.ravel().tolist())
    return figure


def run_figure(runs: Mapping[str, Mapping[str, ArrayLike]]) -> Figure:
    """Draw one or several runs: test accuracy per round, and conflict ratio per round below.

    Args:
        runs: Label -> columns ``round``, ``accuracy`` (share of the test set, 0 to 1) and ``conflict_ratio`` (share of
            pairs with a negative cosine, 0 to 1), equally long. NaN marks a round without that measurement and is left
            out of the line.
    """
    figure = new_figure(7.5, 5.6)
    accuracy, conflict = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1.6, 1]})
    for axes, column, name in ((accuracy, "accuracy", ACCURACY), (conflict, "conflict_ratio", CONFLICT)):
        plain(axes, "y")
        axes.set_ylabel(name, color=INK)
        for index, (label, columns) in enumerate(runs.items()):
            values = 100 * np.asarray(columns[column], dtype=float)[None]
            draw_curve(axes, Curve(label, np.asarray(columns["round"]).tolist(), values, style_of(index)))
    conflict.set_ylim(0, 1.06 * conflict.get_ylim()[1])
    conflict.set_xlabel("Round", color=INK)
    conflict.locator_params(axis="x", integer=True)
    if len(runs) == 1:
        accuracy.set_title(next(iter(runs)), **TITLE)
    else:
        legend(figure, [accuracy])
    figure.align_ylabels()
    return figure


def conflict_figure(
    cosines: Mapping[str, Mapping[str, Sequence[ArrayLike]]], ratios: Mapping[str, Sequence[Curve]]
) -> Figure:
    """Draw the paper's figure 2: sorted cosines in the last round above, conflict ratio over rounds below.

    Args:
        cosines: Panel -> split -> one set of cosines per seed, in any order; NaN is left out.
        ratios: Panel -> share of pairs in conflict per round in percent, a curve a split; the same panels.
    """
    figure = new_figure(5.2 * len(ratios) + 0.3, 6.6)
    above, below = figure.subplots(2, len(ratios), squeeze=False, gridspec_kw={"height_ratios": [1.2, 1]})
    for axes, (title, splits) in zip(above, cosines.items(), strict=True):
        plain(axes, "y")
        axes.axhline(0, color=INK, linewidth=0.9)
        for index, sets in enumerate(splits.values()):
            for values in sets:
                draw_sorted(axes, values, style_of(index)[0], linewidth=1.5, alpha=0.85)
        axes.set_title(title, **TITLE)
        axes.set_xlabel("Pair of clients, sorted by cosine", color=INK)
        axes.set_ylabel("Cosine of two updates", color=INK)
        axes.locator_params(axis="x", integer=True)
    for axes, curves in zip(below, ratios.values(), strict=True):
        plain(axes, "y")
        for curve in curves:
            draw_curve(axes, curve)
        top = max(5.0, 1.06 * axes.get_ylim()[1])
        axes.set_ylim(-0.02 * top, top)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("Round", color=INK)
        axes.set_ylabel(CONFLICT, color=INK)
    legend(figure, below.tolist())
    return figure


def draw_sorted(axes: Axes, values: ArrayLike, colour: str, **style: Any) -> tuple[Array, Array]:
    """Draw numbers in ascending order, without NaN; of very many an even choice. Return what was drawn, x and y."""
    ordered = np.sort(np.asarray(values, dtype=float))
    ordered = ordered[np.isfinite(ordered)]
    place = np.arange(1, len(ordered) + 1)
    if len(ordered) > MOST_POINTS:
        kept = np.linspace(0, len(ordered) - 1, MOST_POINTS).round().astype(int)
        place, ordered = place[kept], ordered[kept]
    axes.plot(place, ordered, color=colour, marker="o" if len(ordered) <= 60 else "", markersize=3, **style)
    return place.astype(float), ordered


def gains_figure(rows: Sequence[tuple[str, float, float, float, float | None]]) -> Figure:
    """Draw gains in accuracy with their 95 % intervals, ours and the paper's beside each other.

    Args:
        rows: Label, our gain, lower and upper end of its interval (NaN for one seed), and the paper's gain or None; in
            points, from top to bottom.
    """
    figure = new_figure(8.0, 1.2 + 0.26 * len(rows))
    axes = figure.subplots()
    plain(axes, "x")
    axes.axvline(0, color=INK, linewidth=0.9)
    for height, (_, gain, low, high, published) in enumerate(rows):
        axes.hlines(height, low, high, color=BLUE, linewidth=2.2, alpha=0.45)
        axes.scatter([gain], [height], s=34, color=BLUE, zorder=3)
        if published is not None:
            axes.scatter([published], [height], s=30, color="white", edgecolors=FAINT, linewidths=1.4, zorder=2)
    points = [value for row in rows for value in (row[1], row[4]) if value is not None]
    reach, (left, right) = 3 * max(1.0, np.abs(points).max(initial=0)), axes.get_xlim()
    axes.set_xlim(max(left, -reach), min(right, reach))  # the interval of two seeds can be many times their gain
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("Gain in final accuracy (points)", color=INK)
    axes.scatter([], [], s=34, color=BLUE, label="ours, 95 % interval")
    axes.scatter([], [], s=30, color="white", edgecolors=FAINT, linewidths=1.4, label="paper")
    figure.legend(loc="outside upper left", ncols=2, **LEGEND)
    return figure
