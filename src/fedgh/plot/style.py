"""How our pictures look: colours, empty figures, legends that fit, and ways out of matplotlib.

Every figure has its own canvas: nothing global is touched, no window opens, and the figure can go to a file, a notebook
or a logger. Matplotlib is imported only when a picture is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#22303c"
FAINT = "#8a97a3"
GRID = "#e3e8ec"
BLUE = "#2b6ca3"
RED = "#c0392b"
# Told apart by colour-blind readers too (Okabe and Ito), without the yellow that vanishes on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#22303c")
DASHES: tuple[tuple[int, ...], ...] = ((), (7, 4), (2, 3), (8, 3, 2, 3), (1, 2))
"""Strokes and gaps in multiples of the line's width, as methods get them; the first is a solid line."""
TITLE: dict[str, Any] = {"loc": "left", "fontsize": 11, "color": INK, "pad": 10}
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": INK}
_LETTER, _KEY, _LINE = 0.078, 0.6, 0.2
"""Inches: a letter of a legend, the key before a name with the gap behind it, and the height of a line."""


def style_of(index: int) -> tuple[str, int]:
    """Return a colour and an index into ``DASHES`` for the n-th of many: colours first, then dashes."""
    return COLOURS[index % len(COLOURS)], index // len(COLOURS) % len(DASHES)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, inches, that lays itself out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08, compress=True)  # inches; square panels keep their labels
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Axes, grid: Literal["", "x", "y"] = "") -> None:
    """Take away what carries no information; ``grid`` (``x`` or ``y``) draws the lines of one axis."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.8)


def legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Name every curve once above all panels: in as many columns as the width has room for, in a figure made taller."""
    handles = {str(handle.get_label()): handle for axes in panels for handle in axes.get_legend_handles_labels()[0]}
    if not handles:
        return
    width, height = figure.get_size_inches()
    names = [fill(name, max(20, int((width - _KEY - 0.3) / _LETTER))) for name in handles]
    column = max(max(map(len, name.split("\n"))) for name in names) * _LETTER + _KEY
    columns = max(1, min(len(names), int((width - 0.2) / column)))
    rows = [names[start :: -(-len(names) // columns)] for start in range(-(-len(names) // columns))]
    lines = sum(max(name.count("\n") + 1 for name in row) for row in rows)
    figure.set_size_inches(width, height + _LINE * (lines - 1))
    figure.legend(list(handles.values()), names, loc="outside upper left", ncols=columns, handlelength=2.6, **LEGEND)


def name_ticks(axis: Any, names: NDArray[Any], most: int = 30) -> None:
    """Name every position where there is room for ``most``, else every second, fifth, tenth, ..."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if len(names) / step <= most)
    axis.set_ticks(np.arange(0, len(names), step), [str(name) for name in names[::step]])
    axis.label.set_color(INK)


def colour_map(name: str) -> Any:
    """Return a colour map that shows missing values grey."""
    from matplotlib import colormaps

    return colormaps[name].with_extremes(bad="#c9cfd4")


def colour_bar(figure: Figure, axes: Axes, image: Any, label: str, number: str) -> Any:
    """Add the colour scale and return it, its numbers written by a format such as ``"{:.1f}"``."""
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.02, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.tick_params(which="both", length=0, labelsize=9, labelcolor=INK)
    bar.ax.yaxis.set_major_formatter(lambda value, _: number.format(value))
    bar.ax.yaxis.set_minor_formatter("")
    bar.set_label(label, color=INK, fontsize=9)
    return bar


def save_png(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG at 150 dots per inch, making the folder where it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(figure))


def png(figure: Figure) -> bytes:
    """Return a figure as PNG at 150 dots per inch."""
    buffer = io.BytesIO()
    literally(figure).savefig(buffer, format="png", dpi=150, facecolor="white")
    return buffer.getvalue()


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """Draw a figure once and return its pixels, ``(height, width, 3)``, at 100 dots per inch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(literally(figure))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def literally(figure: Figure) -> Figure:
    """Let a figure show names letter by letter; a user's ``$`` would be read as mathematics, and fail if it is none."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure
