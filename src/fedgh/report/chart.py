"""Charts as inline SVG, for pages that load nothing: lines over rounds with bands, and heat maps.

What belongs to a method carries ``data-method``, by which a page shows and hides it.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 34
"""Margins in pixels: numbers of the vertical axis, air, title, rounds."""
DASHES = ("", "7 4", "2 3")
FEW_ROUNDS = 25  # up to which every round is a dot


@dataclass(frozen=True)
class Line:
    """A number per round.

    Attributes:
        name: What it is of.
        method: Which entry of the legend.
        colour: As CSS says it.
        rounds: ``(rounds,)``, ascending.
        values: ``(rounds,)``; NaN where it was not measured.
        bands: Lower and upper ends, ``(rounds,)`` each, the innermost first.
        dash: Index into ``DASHES``.
        thin: For a run that is not finished.
    """

    name: str
    method: int
    colour: str
    rounds: Sequence[int]
    values: Array
    bands: Sequence[tuple[Array, Array]] = field(default_factory=list)
    dash: int = 0
    thin: bool = False


@dataclass(frozen=True)
class HeatMap:
    """Numbers per row and round.

    Attributes:
        values: ``(rows, rounds)``, from top to bottom, 1 at the upper end of the colours; NaN is white.
        rounds: Of the columns, ascending.
        marks: Of the vertical axis: place from the top in [0, 1], and text.
        colours: Name of matplotlib's colour map.
    """

    values: Array
    rounds: Sequence[int]
    marks: Sequence[tuple[float, str]]
    colours: str


def limits(lines: Sequence[Line], within: tuple[float, float], least: float) -> tuple[float, float]:
    """Return the range of all lines and bands with some air: at least ``least`` high, but not beyond ``within``."""
    ends = [values for line in lines for values in (line.values, *(end for band in line.bands for end in band))]
    known = np.concatenate([values[np.isfinite(values)] for values in ends] or [np.zeros(0)])
    if not known.size:
        return within
    span = 1.1 * float(np.ptp(known))
    air = (max(span, least) - float(np.ptp(known))) / 2
    return max(within[0], float(known.min()) - air), min(within[1], float(known.max()) + air)


def ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """Return round numbers between two, at most about ``most``."""
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(low, max(high, low + 1e-9))
    return [float(value) for value in found if low - 1e-9 <= value <= high + 1e-9]


def number(value: float, marks: Sequence[float]) -> str:
    """Return a mark with as many digits as its neighbours need."""
    digits = next((n for n in range(4) if all(abs(m - round(m, n)) < 1e-9 for m in marks)), 4)
    return f"{value:.{digits}f}".replace("-", "−")


def line_chart(title: str, width: int, lines: Sequence[Line], axis: tuple[float, float], height: int) -> str:
    """Return lines over rounds.

    Args:
        title: Above.
        width: In all, in pixels.
        lines: At least one round in all.
        axis: Ends of the vertical axis.
        height: Without what surrounds the lines, in pixels.
    """
    rounds = [number for line in lines for number in line.rounds]
    first, last = min(rounds), max(*rounds, min(rounds) + 1)
    right, bottom = width - RIGHT, TOP + height
    across, down = _Scale(first, last, LEFT, right), _Scale(*axis, bottom, TOP)
    parts = [_text(LEFT, 15, title, "title")]
    marks = ticks(*axis, 5)
    for value in marks:
        y = down(value)
        parts.append(f"<line class='grid{' zero' * (value == 0)}' x1='{LEFT}' x2='{right}' y1='{y}' y2='{y}'/>")
        parts.append(_text(LEFT - 7, y + 4, number(value, marks), "end"))
    for value in ticks(first, last, max(3, width // 60), whole=True):
        parts.append(_text(across(value), bottom + 17, f"{value:.0f}", "middle"))
    parts.append(_text(right, bottom + BOTTOM - 3, "round", "end faint"))
    parts += [_band(line, across, down) for line in lines] + [_stroke(line, across, down) for line in lines]
    parts.append(f"<line class='cursor' y1='{TOP}' y2='{bottom}' x1='0' x2='0'/>")
    said = [_told(line) for line in lines if not line.thin]
    told = {"first": first, "last": last, "left": LEFT, "right": right, "lines": said}
    return _svg(
        (width, bottom + BOTTOM), parts, "lines", f" data-chart='{escape(json.dumps(told, separators=(',', ':')))}'"
    )


def heat_map(title: str, width: int, of: HeatMap, height: int, zero: float | None = None) -> str:
    """Return a picture with a column a round.

    Args:
        title: Above.
        width: In all, in pixels.
        of: What is shown.
        height: Of the map itself, in pixels.
        zero: Place from the top of a dashed line, in [0, 1].
    """
    left = max(LEFT, 14 + round(6.6 * max(len(text) for _, text in of.marks)))
    inner, bottom = width - left - RIGHT, TOP + height
    parts = [_text(left, 15, title, "title")]
    parts.append(
        f"<image x='{left}' y='{TOP}' width='{inner}' height='{height}' preserveAspectRatio='none' "
        f"href='data:image/png;base64,{_png(of)}'/><rect class='frame' x='{left}' y='{TOP}' width='{inner}' "
        f"height='{height}'/>"
    )
    parts += [_text(left - 7, TOP + place * height + 4, text, "end") for place, text in of.marks]
    for value in ticks(of.rounds[0], of.rounds[-1], max(3, inner // 60), whole=True):
        column = float(np.interp(value, of.rounds, range(len(of.rounds))))
        x = left + (column + 0.5) * inner / len(of.rounds)
        parts.append(_text(round(x, 1), bottom + 17, f"{value:.0f}", "middle"))
    if zero is not None:
        y = round(TOP + zero * height, 1)
        parts.append(f"<line class='conflict' x1='{left}' x2='{left + inner}' y1='{y}' y2='{y}'/>")
    parts.append(_text(width - RIGHT, bottom + BOTTOM - 3, "round", "end faint"))
    return _svg((width, bottom + BOTTOM), parts, "heat")


def scale(colours: str, low: str, high: str) -> str:
    """Return a colour scale as HTML."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    stops = ", ".join(to_hex(colormaps[colours](place)) for place in np.linspace(0, 1, 9))
    bar = f"<i style='background: linear-gradient(90deg, {stops})'></i>"
    return f"<p class='scale'>{escape(low)} {bar} {escape(high)}</p>"


class _Scale:
    """Maps a range of numbers to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.start, self.slope = low, start, (end - start) / (high - low)

    def __call__(self, value: float) -> float:
        return round(self.start + self.slope * (value - self.low), 1)


def _svg(size: tuple[int, int], parts: Sequence[str], kind: str, more: str = "") -> str:
    return (
        f"<svg class='chart {kind}' role='img' viewBox='0 0 {size[0]} {size[1]}' width='{size[0]}'{more}>"
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f"<text class='{kind}' x='{x:g}' y='{y:g}'>{escape(text)}</text>"


def _band(line: Line, across: _Scale, down: _Scale) -> str:
    paths = []
    for low, high in line.bands:
        known = np.flatnonzero(np.isfinite(low) & np.isfinite(high)).tolist()
        there = [f"{across(line.rounds[i])},{down(high[i])}" for i in known]
        back = [f"{across(line.rounds[i])},{down(low[i])}" for i in known[::-1]]
        if len(known) > 1:
            paths.append(f"<polygon points='{' '.join(there + back)}' fill='{line.colour}'/>")
    return f"<g class='band' data-method='{line.method}'>{''.join(paths)}</g>"


def _stroke(line: Line, across: _Scale, down: _Scale) -> str:
    known = np.flatnonzero(np.isfinite(line.values)).tolist()
    points = [(across(line.rounds[i]), down(line.values[i])) for i in known]
    style = f" stroke-dasharray='{DASHES[line.dash]}'" * bool(line.dash)
    drawn = f"<polyline points='{' '.join(f'{x},{y}' for x, y in points)}' stroke='{line.colour}'{style}/>"
    if len(points) <= FEW_ROUNDS and not line.thin:
        drawn += "".join(f"<circle cx='{x}' cy='{y}' r='2' fill='{line.colour}'/>" for x, y in points)
    last = f": {line.values[known[-1]]:.4g} after round {line.rounds[known[-1]]}" if len(known) else ""
    name = f"<title>{escape(line.name + last)}</title>"
    return f"<g class='{'thin' if line.thin else 'line'}' data-method='{line.method}'>{name}{drawn}</g>"


def _told(line: Line) -> dict[str, object]:
    """Return what the page says where the reader points."""

    def numbers(values: Array) -> list[float | None]:
        return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values]

    ends = [numbers(end) for end in line.bands[0]] if line.bands else []
    return {
        "method": line.method,
        "name": line.name,
        "colour": line.colour,
        "rounds": list(line.rounds),
        "values": numbers(line.values),
        "ends": ends,
    }


def _png(of: HeatMap) -> str:
    from matplotlib import colormaps
    from PIL import Image

    shades = colormaps[of.colours].with_extremes(bad="white")(np.ma.masked_invalid(of.values), bytes=True)
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(shades)[..., :3]).save(buffer, format="png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
