"""Pictures of many runs, after the paper's figures 2, 4 and 5; plain numbers in, a matplotlib figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedgh.plot.picture import BLUE, COLOURS, FAINT, GRID, INK, TITLE, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW_ROUNDS = 25  # up to which every round is a dot


@dataclass(frozen=True)
class Curve:
    """A number per round, over seeds.

    Attributes:
        label: What it is of; curves of one colour may share what stands before the comma.
        rounds: ``(rounds,)``, ascending.
        values: One row per seed, ``(seeds, rounds)``; NaN where it was not measured.
        colour: Index into the palette.
        dashed: For the one that another is compared with.
    """

    label: str
    rounds: Sequence[int]
    values: NDArray[np.float64]
    colour: int = 0
    dashed: bool = False

    def mean(self) -> NDArray[np.float64]:
        """Return the mean over seeds, ``(rounds,)``."""
        return np.asarray(np.mean(self.values, axis=0), dtype=float)

    def spread(self) -> NDArray[np.float64]:
        """Return the standard deviation over seeds, n - 1, ``(rounds,)``; zero for one seed."""
        values = np.asarray(self.values, dtype=float)
        return np.std(values, axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])


def curves_figure(panels: Sequence[tuple[str, str, Sequence[Curve]]]) -> Figure:
    """Draw curves over rounds: the mean over seeds, and a band of one standard deviation.

    Args:
        panels: Title, what the vertical axis says, and curves; those of one label share an entry in the legend.
    """
    figure = new_figure(5.2 * len(panels) + 0.3, 4.3)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, label, curves) in zip(grid, panels, strict=True):
        _draw(axes, curves)
        axes.set_xlabel("Round", color=INK)
        axes.set_ylabel(label, color=INK)
        axes.set_title(title, **TITLE)
    _legend(figure, grid)
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
        plain(axes)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.axhline(0, color=INK, linewidth=0.9)
        for colour, sets in zip(COLOURS, splits.values(), strict=False):
            for values in sets:
                ordered = np.sort(np.asarray(values, dtype=float))
                ordered = ordered[np.isfinite(ordered)]
                style = {"marker": "o", "markersize": 3} if len(ordered) <= 60 else {}
                axes.plot(np.arange(1, len(ordered) + 1), ordered, color=colour, linewidth=1.5, alpha=0.85, **style)
        axes.set_title(title, **TITLE)
        axes.set_xlabel("Pair of clients, sorted by cosine", color=INK)
        axes.set_ylabel("Cosine of two updates", color=INK)
        axes.locator_params(axis="x", integer=True)
    for axes, curves in zip(below, ratios.values(), strict=True):
        _draw(axes, curves)
        top = max(5.0, 1.06 * axes.get_ylim()[1])
        axes.set_ylim(-0.02 * top, top)
        axes.set_xlabel("Round", color=INK)
        axes.set_ylabel("Pairs in conflict (%)", color=INK)
    _legend(figure, below)
    return figure


def gains_figure(rows: Sequence[tuple[str, float, float, float, float | None]]) -> Figure:
    """Draw gains with their 95 % intervals, ours and the paper's beside each other.

    Args:
        rows: Label, our gain, lower and upper end of its interval (NaN for one seed), and the paper's gain or None; in
            points, from top to bottom.
    """
    figure = new_figure(8.0, 1.2 + 0.26 * len(rows))
    axes = figure.subplots()
    plain(axes)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
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
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _draw(axes: Axes, curves: Sequence[Curve]) -> None:
    plain(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    for curve in curves:
        mean, spread, rounds = curve.mean(), curve.spread(), np.asarray(curve.rounds)
        known = np.isfinite(mean)
        colour = COLOURS[curve.colour % len(COLOURS)]
        style: dict[str, Any] = {"linestyle": (0, (4, 2))} if curve.dashed else {}
        if known.sum() <= FEW_ROUNDS:
            style |= {"marker": "o", "markersize": 3, "markerfacecolor": "white" if curve.dashed else colour}
        axes.plot(rounds[known], mean[known], color=colour, label=curve.label, linewidth=1.7, **style)
        axes.fill_between(rounds, mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0)
    axes.locator_params(axis="x", integer=True)


def _legend(figure: Figure, grid: Sequence[Axes]) -> None:
    """Name every curve once, above all panels."""
    handles = {handle.get_label(): handle for axes in grid for handle in axes.get_legend_handles_labels()[0]}
    if handles:
        figure.legend(
            handles=list(handles.values()),
            loc="outside upper left",
            ncols=4,
            frameon=False,
            fontsize=9,
            labelcolor=INK,
        )
