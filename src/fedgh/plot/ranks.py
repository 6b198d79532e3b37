"""Ranks with the difference that tells two of them apart, and accuracy by what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedgh.plot.curves import ACCURACY, Curve, draw_curve
from fedgh.plot.style import FAINT, INK, RED, TITLE, legend, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rank_figure(
    names: Sequence[str], ranks: Sequence[float], difference: float, bars: Sequence[tuple[int, int]]
) -> Figure:
    """Draw mean ranks as a critical-difference diagram: the best on top, bars join what is not told apart.

    Args:
        names: Of the ways.
        ranks: Mean rank of each, 1 the best.
        difference: The critical difference, drawn as a scale.
        bars: First and last place, in the order of rank, of what a bar joins.
    """
    order = np.argsort(ranks, kind="stable")
    figure = new_figure(7.5, 1.3 + 0.27 * len(names))
    axes = figure.subplots()
    plain(axes, "x")
    sorted_ranks = np.asarray(ranks, dtype=float)[order]
    axes.plot(sorted_ranks, range(len(names)), "o", color=INK, markersize=5)
    axes.set_yticks(range(len(names)), [f"{names[index]}  {ranks[index]:.2f}" for index in order])
    axes.plot([1, 1 + difference], [-0.9, -0.9], color=FAINT, linewidth=2, solid_capstyle="butt")
    axes.annotate(f" critical difference {difference:.2f}", (1 + difference, -0.9), va="center", fontsize=9, color=INK)
    for number, (first, last) in enumerate(bars):
        place = sorted_ranks[first] + (sorted_ranks[last] - sorted_ranks[first]) * (number + 1) / (len(bars) + 1)
        axes.plot([place, place], [first - 0.25, last + 0.25], color=RED, alpha=0.6, linewidth=3)
    axes.set_ylim(len(names) - 0.4, -1.5)
    axes.set_xlim(0.7, max(len(names), 1 + difference) + 0.3)
    axes.set_xlabel("Mean rank over seeds (1 is best)", color=INK)
    return figure


def cost_figure(
    panels: Sequence[tuple[str, Sequence[tuple[str, Sequence[float], Sequence[float], tuple[str, int]]]]],
) -> Figure:
    """Draw accuracy by what it costs, panels side by side.

    Args:
        panels: What the horizontal axis says, and curves: name, horizontal values, accuracy in percent, style.
    """
    figure = new_figure(5.2 * len(panels) + 0.3, 4.2)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (label, curves) in zip(grid, panels, strict=True):
        plain(axes, "y")
        for name, across, values, style in curves:
            line, _ = draw_curve(axes, Curve(name, list(map(int, range(len(values)))), np.asarray(values)[None], style))
            line.set_xdata(across)
        axes.relim()
        axes.autoscale_view()
        axes.set_xlabel(label, color=INK)
        axes.set_ylabel(ACCURACY, color=INK)
        axes.set_title("", **TITLE)
    legend(figure, grid.tolist())
    return figure
