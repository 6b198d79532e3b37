"""Small pictures as inline SVG, for pages that load nothing: curves over rounds, and heat maps with a column a round.

They are matplotlib's. What belongs to a method carries ``data-method``, by which a page shows and hides it.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedgh.plot.curves import Curve, draw_curve
from fedgh.plot.style import FAINT, GRID, INK, RED, literally, name_ticks, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 34
"""Margins in pixels: numbers of the vertical axis, air, title, rounds."""


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Numbers per row and round.

    Attributes:
        values: ``(rows, rounds)``, from top to bottom, 1 at the upper end of the colours; NaN is white.
        rounds: Of the columns, ascending.
        colours: Name of matplotlib's colour map.
        names: Of the rows; without them the vertical axis has numbers.
        ends: Lower and upper end of that axis.
    """

    values: Array
    rounds: Sequence[int]
    colours: str
    names: Sequence[str] = ()
    ends: tuple[float, float] = (0.0, 1.0)


def limits(curves: Sequence[Curve], within: tuple[float, float], least: float) -> tuple[float, float]:
    """Return the range of all curves and bands with some air: at least ``least`` high, but not beyond ``within``."""
    ends = [values for curve in curves for values in (curve.mean(), *(end for band in curve.bands() for end in band))]
    known = np.concatenate([values[np.isfinite(values)] for values in ends] or [np.zeros(0)])
    if not known.size:
        return within
    span = 1.1 * float(np.ptp(known))
    air = (max(span, least) - float(np.ptp(known))) / 2
    return max(within[0], float(known.min()) - air), min(within[1], float(known.max()) + air)


def line_panel(title: str, width: int, curves: Sequence[Curve], axis: tuple[float, float], height: int) -> str:
    """Return curves over rounds, with their numbers for the script of the page.

    Args:
        title: Above.
        width: In all, in pixels.
        curves: At least one round in all.
        axis: Ends of the vertical axis.
        height: Without what surrounds the curves, in pixels.
    """
    figure, axes = _panel(title, width, height, LEFT, "y")
    rounds = [number for curve in curves for number in curve.rounds]
    first, last = min(rounds), max(*rounds, min(rounds) + 1)
    axes.set_xlim(first, last)
    axes.set_ylim(*axis)
    axes.locator_params(axis="x", integer=True, nbins=max(3, width // 60))
    axes.locator_params(axis="y", nbins=5)
    if axis[0] < 0 < axis[1]:
        axes.axhline(0, color=FAINT, linewidth=0.8)
    for index, curve in enumerate(curves):
        line, fills = draw_curve(axes, curve)
        line.set_gid(f"curve-{index}")
        for fill in fills:
            fill.set_gid(f"band-{index}")
    told = [_told(curve) for curve in curves if not curve.thin]
    content = json.dumps(
        {"first": first, "last": last, "left": LEFT, "right": width - RIGHT, "lines": told}, separators=(",", ":")
    )
    cursor = f"<line class='cursor' y1='{TOP}' y2='{TOP + height}' x1='0' x2='0'/>"
    return _svg(figure, "lines", f" data-chart='{escape(content)}'", cursor, curves)


def heat_panel(title: str, width: int, of: HeatMap, height: int, zero: bool = False) -> str:
    """Return a picture with a column a round.

    Args:
        title: Above.
        width: In all, in pixels.
        of: What is shown.
        height: Of the map itself, in pixels.
        zero: Draw a dashed line where the vertical axis of numbers is zero.
    """
    from matplotlib import colormaps

    names = [_short(name) for name in of.names]
    left = max(LEFT, 14 + round(6.6 * max(map(len, names), default=0)))
    figure, axes = _panel(title, width, height, left)
    low, high = (len(names) - 0.5, -0.5) if names else of.ends
    axes.imshow(
        np.ma.masked_invalid(of.values),
        cmap=colormaps[of.colours].with_extremes(bad="white"),
        vmin=0,
        vmax=1,
        aspect="auto",
        interpolation="none",  # a pixel a number
        extent=(-0.5, len(of.rounds) - 0.5, low, high),
    )
    for side in ("top", "right", "left"):
        axes.spines[side].set(visible=True, color=GRID)
    name_ticks(axes.xaxis, np.asarray(of.rounds), max(3, width // 60))
    if names:
        name_ticks(axes.yaxis, np.asarray(names), 16)
    else:
        axes.locator_params(axis="y", nbins=5)
    if zero:
        axes.axhline(0, color=RED, linewidth=1.3, linestyle=(0, (4, 3)))
    return _svg(figure, "heat")


def scale(colours: str, low: str, high: str) -> str:
    """Return a colour scale as HTML."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    stops = ", ".join(to_hex(colormaps[colours](place)) for place in np.linspace(0, 1, 9))
    bar = f"<i style='background: linear-gradient(90deg, {stops})'></i>"
    return f"<p class='scale'>{escape(low)} {bar} {escape(high)}</p>"


def _panel(title: str, width: int, height: int, left: int, grid: Literal["", "y"] = "") -> tuple[Figure, Axes]:
    """Return a figure in which an inch is 72 pixels, and its axes at fixed margins."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    total = TOP + height + BOTTOM
    figure = Figure(figsize=(width / 72, total / 72), facecolor="none")
    FigureCanvasSVG(figure)
    axes = figure.add_axes((left / width, BOTTOM / total, (width - left - RIGHT) / width, height / total))
    axes.set_facecolor("none")
    plain(axes, grid)
    axes.tick_params(labelsize=12, pad=5, left=False, bottom=False)
    figure.text(left / width, 1 - 15 / total, title, color=INK, fontsize=13, fontweight="bold")
    figure.text(1 - RIGHT / width, 3 / total, "round", color=FAINT, fontsize=12, ha="right")
    return figure, axes


def _svg(figure: Figure, kind: str, more: str = "", last: str = "", curves: Sequence[Curve] = ()) -> str:
    """Return a figure as an element of a page, without what only a file of its own needs."""
    from matplotlib import rc_context

    def name(found: re.Match[str]) -> str:
        curve = curves[int(found[2])]
        if found[1] == "band":
            return f"<g class='band' data-method='{curve.method}'>"
        known = np.flatnonzero(np.isfinite(curve.mean()))
        said = f": {curve.mean()[known[-1]]:.4g} after round {curve.rounds[known[-1]]}" if len(known) else ""
        shape = "thin" if curve.thin else "line"
        return f"<g class='{shape}' data-method='{curve.method}'><title>{escape(curve.label + said)}</title>"

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fedgh"}):
        literally(figure).savefig(buffer, format="svg")
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r'<g id="(curve|band)-(\d+)">', name, text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"""(font: [\d.]+px|font-family:) '[^;"]*""", r"\1 system-ui, sans-serif", text)
    text = re.sub(r' (d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d)\d+", r"\1", found[0]), text)  # tenths of a pixel
    text = re.sub(r"\n\s*", " ", text.replace("base64,\n", "base64,"))
    body = text[text.index(">", text.index("<svg")) + 1 :].replace("</svg>", f"{last}</svg>")
    width, height = 72 * figure.get_size_inches()
    return f"<svg class='chart {kind}' role='img' viewBox='0 0 {width:g} {height:g}' width='{width:g}'{more}>{body}"


def _told(curve: Curve) -> dict[str, Any]:
    """Return what the page says where the reader points."""

    def numbers(values: Array) -> list[float | None]:
        return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values]

    return {
        "method": curve.method,
        "name": curve.label,
        "colour": curve.style[0],
        "rounds": list(curve.rounds),
        "values": numbers(curve.mean()),
        "ends": [numbers(end) for end in curve.bands()[0]] if curve.bands() else [],
    }


def _short(name: str, most: int = 20) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"
