"""The family of rules at a glance: what each makes of the same updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedgh.plot.style import BLUE, COLOURS, FAINT, GRID, INK, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ORANGE = COLOURS[1]
_NAMES = {"cosine_min": "lowest", "cosine_mean": "mean", "coefficient_sum": "sum", "coefficient_max": "largest"}
_MOST = 5.0  # what is beyond is drawn at the edge, with its number


def family_figure(rows: Sequence[Mapping[str, Any]], highlight: Sequence[str] = ("fedgh",)) -> Figure:
    """Draw one line per rule: cosines to the clients, length against the mean, coefficients.

    Rules are sorted by the cosine to the client they oppose most; right of zero nobody is opposed.

    Args:
        rows: What :func:`fedgh.recording.family.family_table` returns. NaN (coefficients of a coordinate-wise rule) is
            left out.
        highlight: Rules whose name is set in colour.
    """
    rows = sorted(rows, key=lambda row: np.nan_to_num(row["cosine_min"], nan=-2.0))
    figure = new_figure(9.5, 1.3 + 0.27 * len(rows))
    cosines, norms, coefficients = figure.subplots(1, 3, sharey=True, gridspec_kw={"width_ratios": [1.5, 1, 1]})
    _range(cosines, rows, ("cosine_min", "cosine_mean"), zero=0.0)
    left, right = cosines.get_xlim()
    cosines.axvspan(-2, 0, color=ORANGE, alpha=0.06, linewidth=0)  # here somebody is opposed
    cosines.set_xlim(min(left, -0.05), right)
    cosines.set_xlabel("Cosine to the clients' updates", color=INK)
    _range(norms, rows, ("norm_ratio",), zero=1.0)
    norms.set_xlabel("Length, the mean's being 1", color=INK)
    _range(coefficients, rows, ("coefficient_max", "coefficient_sum"), zero=1.0, log=True)
    coefficients.set_xlabel("Coefficients", color=INK)
    cosines.set_yticks(range(len(rows)), [str(row["rule"]) for row in rows])
    cosines.set_ylim(-0.6, len(rows) - 0.4)
    for label in cosines.get_yticklabels():
        if label.get_text() in highlight:
            label.set(color=BLUE, fontweight="bold")
    return figure


def _range(
    axes: Axes, rows: Sequence[Mapping[str, Any]], keys: tuple[str, ...], zero: float, log: bool = False
) -> None:
    """Draw one or two measures per rule as dots, joined, around a line that means nothing has changed.

    A logarithmic axis has room for all positive values and none for the others.
    """
    plain(axes)
    axes.axvline(zero, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    values = np.array([[float(row[key]) for key in keys] for row in rows]).reshape(len(rows), len(keys))
    shown = np.where(values > 0, values, np.nan) if log else np.clip(values, -_MOST, _MOST)
    if log:
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    height = np.arange(len(rows))
    axes.hlines(height, np.minimum(shown.min(1), zero), np.maximum(shown.max(1), zero), color=GRID, linewidth=0.8)
    axes.hlines(height, shown.min(1), shown.max(1), color=FAINT, linewidth=2.0, alpha=0.6, zorder=2)
    for column, (key, colour) in enumerate(zip(keys, (ORANGE, BLUE) if len(keys) > 1 else (BLUE,), strict=True)):
        axes.scatter(shown[:, column], height, s=30, color=colour, label=_NAMES.get(key), zorder=3, linewidths=0)
        for at, value in enumerate(values[:, column]):
            if abs(value) > _MOST and not log:
                axes.annotate(
                    f"{value:.3g}",
                    (shown[at, column], at),
                    (-6, 0),
                    textcoords="offset points",
                    ha="right",
                    va="center",
                    fontsize=8,
                    color=INK,
                    bbox={"facecolor": "white", "linewidth": 0, "pad": 1},
                )
    if len(keys) > 1:
        handles = axes.get_legend_handles_labels()
        axes.legend(
            *handles,
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=2,
            frameon=False,
            fontsize=9,
            labelcolor=INK,
            handletextpad=0.1,
            columnspacing=1.0,
            borderpad=0,
        )
