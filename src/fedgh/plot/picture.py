"""Pictures of partitions, conflicts and runs.

Every function returns a matplotlib ``Figure`` with its own canvas: nothing global is touched, no window opens, and the
figure can go to a file, a notebook or a logger. Matplotlib is imported only when a picture is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
MOST_BUBBLES = 400  # clients times classes; more become a heat map
MOST_NUMBERS = 12  # clients up to which each cosine is written out
MOST_CLIENTS = 30  # clients with a line of their own; of more, the worst


def partition_figure(class_counts: ArrayLike) -> Figure:
    """Draw who holds which classes: one column per client, one row per class, and the client sizes above.

    Small federations become bubbles whose area is the number of samples, large ones a heat map.

    Args:
        class_counts: Samples of each class at each client, ``(clients, classes)``.
    """
    counts = np.asarray(class_counts)
    num_clients, num_classes = counts.shape
    width = float(np.clip(0.24 * num_clients + 2.5, 6.5, 14))
    height = float(np.clip(0.24 * num_classes + 2.6, 4.6, 9))
    figure = new_figure(width, height)
    sizes, grid = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1, max(2.6, height - 2)]})
    _draw_sizes(sizes, counts.sum(axis=1))
    draw = _draw_bubbles if counts.size <= MOST_BUBBLES else _draw_heat
    draw(figure, grid, counts)
    _ticks(grid.xaxis, np.arange(num_clients))
    _ticks(grid.yaxis, np.arange(num_classes))
    grid.set(xlabel="Client", ylabel="Class", xlim=(-0.7, num_clients - 0.3), ylim=(num_classes - 0.4, -0.6))
    sizes.set_title(f"{counts.sum():,} samples of {num_classes} classes over {num_clients} clients", **TITLE)
    figure.align_ylabels()
    return figure


def cosine_figure(cosines: ArrayLike, client_ids: Sequence[int], label_shares: ArrayLike | None = None) -> Figure:
    """Draw the cosines between client updates: blue agrees, white is orthogonal, red is in conflict.

    Args:
        cosines: Cosine of each pair of updates, ``(clients, clients)``, in [-1, 1]; NaN (an update of length zero) is
            shown grey.
        client_ids: Ids of these clients, in the order of the rows.
        label_shares: Each client's label distribution, ``(clients, classes)``, drawn beside its row.
    """
    values = np.ma.masked_invalid(np.asarray(cosines, dtype=float))
    side = float(np.clip(0.26 * len(client_ids) + 2.2, 4.8, 11))
    shares = None if label_shares is None else np.asarray(label_shares, dtype=float)
    if shares is None:
        figure = new_figure(side + 0.9, side)
        axes = figure.subplots()
    else:
        ratio = float(np.clip(shares.shape[1] / max(len(client_ids), 1), 0.22, 0.5))
        figure = new_figure(side * (1 + ratio) + 1.1, side)
        labels, axes = figure.subplots(1, 2, gridspec_kw={"width_ratios": [ratio, 1]})
        _draw_labels(labels, shares, client_ids)
    plain(axes)
    image = axes.imshow(values, cmap=_colour_map("RdBu"), vmin=-1, vmax=1, interpolation="nearest")
    _bar(figure, axes, image, "Cosine of two updates", "{:+.2f}")
    if len(client_ids) <= MOST_NUMBERS:
        _write_numbers(axes, values)
    for axis in (axes.xaxis, axes.yaxis):
        _ticks(axis, np.asarray(client_ids))
    off_diagonal = values[np.triu_indices(len(client_ids), k=1)].compressed()
    share = f"{np.mean(off_diagonal < 0):.0%}" if off_diagonal.size else "none"
    axes.set(xlabel="Client", ylabel="Client" if shares is None else "")
    axes.set_title(f"{share} of {off_diagonal.size:,} pairs in conflict", **TITLE)
    return figure


def sorted_cosines_figure(curves: Mapping[str, ArrayLike], title: str = "") -> Figure:
    """Draw the cosines of all pairs of clients in ascending order (the paper's figures 2a and 2c).

    Args:
        curves: Label -> cosines in any order; NaN is left out, and so is a curve equal to the one before it.
        title: What and when.
    """
    figure = new_figure(7.5, 3.9)
    axes = figure.subplots()
    plain(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    drawn: list[tuple[str, NDArray[Any]]] = []
    for label, values in curves.items():
        ordered = np.sort(np.asarray(values, dtype=float))
        ordered = ordered[np.isfinite(ordered)]
        same = drawn and len(drawn[-1][1]) == len(ordered) and np.allclose(drawn[-1][1], ordered, atol=1e-6)
        if ordered.size and not same:
            drawn.append((label, ordered))
    for (label, ordered), colour in zip(drawn, (RED, *COLOURS), strict=False):
        index = np.arange(1, len(ordered) + 1)
        name = f"{label}: {np.mean(ordered < 0):.0%} in conflict, least {ordered[0]:+.2f}"
        marker = "o" if len(ordered) <= 60 else ""
        axes.plot(index, ordered, color=colour, linewidth=1.9, marker=marker, markersize=3, label=name)
        axes.fill_between(index, ordered, 0, where=ordered < 0, color=colour, alpha=0.12, linewidth=0, interpolate=True)
    axes.axhline(0, color=INK, linewidth=0.9)
    axes.set_xlabel("Pair of clients, sorted by cosine", color=INK)
    axes.set_ylabel("Cosine of two updates", color=INK)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.2g}" if value else "0")
    if title:
        axes.set_title(title, **TITLE)
    if drawn:
        axes.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=INK)
    return figure


def cosine_history_figure(rounds: Sequence[int], edges: ArrayLike, histograms: Mapping[str, ArrayLike]) -> Figure:
    """Draw how the cosines are distributed, round by round: a column a round, dark where many pairs are.

    Args:
        rounds: Rounds finished, ascending.
        edges: Of the bins, ``(bins + 1,)``, from -1 to 1.
        histograms: Label -> pairs per bin and round, ``(bins, rounds)``; a panel each.
    """
    borders = np.asarray(edges, dtype=float)
    panels = {label: np.asarray(counts, dtype=float) for label, counts in histograms.items()}
    figure = new_figure(9.5, 1.2 + 2.5 * len(panels))
    grid = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    filled = np.flatnonzero(np.sum([counts.sum(axis=1) for counts in panels.values()], axis=0))
    low, high = (borders[filled[0]], borders[filled[-1] + 1]) if filled.size else (-1.0, 1.0)
    shares = {label: counts / np.maximum(counts.sum(axis=0), 1) for label, counts in panels.items()}
    most = max((float(share.max(initial=0)) for share in shares.values()), default=0) or 1.0
    for axes, (label, share) in zip(grid, shares.items(), strict=True):
        plain(axes)
        image = axes.pcolormesh(
            np.arange(len(rounds) + 1) - 0.5,
            borders,
            np.ma.masked_equal(100 * share, 0),
            cmap=_colour_map("YlGnBu").with_extremes(bad="white"),
            vmin=0,
            vmax=100 * most,
        )
        axes.axhline(0, color=RED, linewidth=1.1, linestyle=(0, (4, 3)))
        axes.set_ylabel("Cosine", color=INK)
        axes.set_ylim(min(low, 0) - 0.02, max(high, 0) + 0.02)
        axes.set_title(label, **TITLE)
        _bar(figure, axes, image, "Pairs (%)", "{:.3g}")
    _ticks(grid[-1].xaxis, np.asarray(rounds))
    grid[-1].set_xlabel("Round", color=INK)
    return figure


def layer_figure(rounds: Sequence[int], layers: Sequence[str], ratio: ArrayLike, cosine_mean: ArrayLike) -> Figure:
    """Draw conflict in every layer over the rounds: the share of pairs in conflict, and the mean cosine.

    Args:
        rounds: Rounds finished, ascending.
        layers: Names, from the input to the output.
        ratio: ``(layers, rounds)``, in [0, 1]; NaN is shown grey.
        cosine_mean: ``(layers, rounds)``, in [-1, 1].
    """
    height = float(np.clip(0.24 * len(layers), 1.0, 5.0))
    width = float(np.clip(0.07 * max(map(len, layers), default=0), 0.3, 2.5))
    figure = new_figure(9 + width, 1.5 + 2 * (height + 0.45))
    upper, lower = figure.subplots(2, 1, sharex=True)
    means = np.asarray(cosine_mean, dtype=float)
    most = float(np.nanmax(np.abs(means), initial=0.05))
    for axes, values, colours, low, high, label, number in (
        (upper, 100 * np.asarray(ratio, dtype=float), "OrRd", 0, 100, "Pairs in conflict (%)", "{:.0f}"),
        (lower, means, "RdBu", -most, most, "Mean cosine", "{:+.2f}"),
    ):
        plain(axes)
        image = axes.imshow(
            np.ma.masked_invalid(values).reshape(len(layers), len(rounds)),
            cmap=_colour_map(colours),
            vmin=low,
            vmax=high,
            aspect="auto",
            interpolation="nearest",
        )
        axes.set_title(label, **TITLE)
        _ticks(axes.yaxis, np.asarray(layers))
        _bar(figure, axes, image, "", number)
    _ticks(lower.xaxis, np.asarray(rounds))
    lower.set_xlabel("Round", color=INK)
    return figure


def projection_figure(counts: ArrayLike, client_ids: Sequence[int]) -> Figure:
    """Draw who was projected against whom, how often.

    Args:
        counts: Rounds in which the client of the row was projected against that of the column, ``(clients, clients)``.
        client_ids: Ids of these clients, in the order of the rows.
    """
    values = np.asarray(counts, dtype=float)
    side = float(np.clip(0.26 * len(client_ids) + 2.2, 4.8, 11))
    figure = new_figure(side + 0.9, side)
    axes = figure.subplots()
    plain(axes)
    colours = _colour_map("Purples").with_extremes(bad="white")
    image = axes.imshow(np.ma.masked_equal(values, 0), cmap=colours, vmin=0, vmax=values.max(initial=1))
    axes.set_facecolor("white")
    _bar(figure, axes, image, "Rounds", "{:.0f}")
    for axis in (axes.xaxis, axes.yaxis):
        _ticks(axis, np.asarray(client_ids))
    axes.set(xlabel="... against the update of client", ylabel="Update of client projected ...")
    axes.set_title(f"{values.sum():,.0f} projections in all", **TITLE)
    return figure


def harm_figure(
    client_ids: Sequence[int], under_mean: ArrayLike, under_chosen: ArrayLike, name: str, title: str = ""
) -> Figure:
    """Draw by how much every client's loss on its own data changed in a round; right of zero it was harmed.

    Args:
        client_ids: Who.
        under_mean: Change of the loss had the mean been taken, ``(clients,)``.
        under_chosen: Change of the loss under what was taken.
        name: Of what was taken.
        title: When.
    """
    mean, chosen = np.asarray(under_mean, dtype=float), np.asarray(under_chosen, dtype=float)
    order = np.argsort(-chosen, kind="stable")[:MOST_CLIENTS]
    places = np.arange(len(order))
    figure = new_figure(7.5, float(np.clip(0.2 * len(order) + 1.6, 3, 9.5)))
    axes = figure.subplots()
    plain(axes)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.hlines(places, mean[order], chosen[order], color=GRID, linewidth=2.2, zorder=1)
    axes.scatter(mean[order], places, s=30, color="white", edgecolors=FAINT, linewidths=1.3, label="Mean", zorder=2)
    colours = np.where(chosen[order] > 0, RED, BLUE)
    axes.scatter(chosen[order], places, s=34, color=colours, zorder=3)
    for colour, label in ((BLUE, name), (RED, f"{name}, harmed")):
        axes.scatter([], [], s=34, color=colour, label=label)
    axes.axvline(0, color=INK, linewidth=0.9)
    _ticks(axes.yaxis, np.asarray(client_ids)[order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlabel("Change of the loss on its own training data", color=INK)
    axes.set_ylabel("Client")
    harmed = f"{int((chosen > 0).sum())} of {len(chosen)} clients harmed, {int((mean > 0).sum())} under the mean"
    axes.set_title(f"{title}: {harmed}" if title else harmed, **TITLE)
    axes.legend(loc="lower right", frameon=False, fontsize=9, labelcolor=INK)
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
    for axes, column, name in (
        (accuracy, "accuracy", "Test accuracy (%)"),
        (conflict, "conflict_ratio", "Pairs in conflict (%)"),
    ):
        plain(axes)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_ylabel(name, color=INK)
        for index, (label, columns) in enumerate(runs.items()):
            _line(axes, columns, column, label, COLOURS[index % len(COLOURS)])
    conflict.set_ylim(0, 1.06 * conflict.get_ylim()[1])
    conflict.set_xlabel("Round", color=INK)
    conflict.locator_params(axis="x", integer=True)
    if len(runs) == 1:
        accuracy.set_title(next(iter(runs)), **TITLE)
    elif runs:
        handles = accuracy.get_lines()
        figure.legend(handles=handles, loc="outside upper left", ncols=4, frameon=False, fontsize=10, labelcolor=INK)
    figure.align_ylabels()
    return figure


def save_png(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG at 150 dots per inch, making the folder where it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=150, facecolor="white")


TITLE: dict[str, Any] = {"loc": "left", "fontsize": 11, "color": INK, "pad": 10}


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """Draw a figure once and return its pixels, ``(height, width, 3)``, at 100 dots per inch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, inches, that lays itself out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08, compress=True)  # inches; square panels keep their labels
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Axes) -> None:
    """Take away what carries no information."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.set_axisbelow(True)


def _ticks(axis: Any, names: NDArray[Any]) -> None:
    """Name every position where there is room, else every second, fifth, tenth, ..."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if len(names) / step <= 30)
    axis.set_ticks(np.arange(0, len(names), step), [str(name) for name in names[::step]])
    axis.label.set_color(INK)


def _colour_map(name: str) -> Any:
    """Return a colour map that shows missing values grey."""
    from matplotlib import colormaps

    return colormaps[name].with_extremes(bad="#c9cfd4")


def _bar(figure: Figure, axes: Axes, image: Any, label: str, number: str) -> None:
    """Add the colour scale, its numbers written by a format such as ``"{:.1f}"``."""
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.02, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.tick_params(which="both", length=0, labelsize=9, labelcolor=INK)
    bar.ax.yaxis.set_major_formatter(lambda value, _: number.format(value))
    bar.ax.yaxis.set_minor_formatter("")
    bar.set_label(label, color=INK, fontsize=9)


def _draw_sizes(axes: Axes, sizes: NDArray[Any]) -> None:
    """Draw samples per client as columns, with the mean as a line."""
    plain(axes)
    axes.bar(np.arange(len(sizes)), sizes, width=0.72, color=BLUE)
    axes.axhline(sizes.mean(), color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_ylabel("Samples", color=INK)
    axes.tick_params(axis="x", labelbottom=False)
    axes.locator_params(axis="y", nbins=3)


def _draw_bubbles(figure: Figure, axes: Axes, counts: NDArray[Any]) -> None:
    """Draw each count as a disc whose area is the number of samples."""
    plain(axes)
    num_clients, num_classes = counts.shape
    clients, classes = np.nonzero(counts)
    axes.grid(color=GRID, linewidth=0.7)
    cell = 72 * min(figure.get_figwidth() / (num_clients + 3), figure.get_figheight() / (num_classes + 6))  # points
    areas = (0.95 * cell) ** 2 * counts[clients, classes] / counts.max()
    axes.scatter(clients, classes, s=np.maximum(areas, 2.0), color=BLUE, alpha=0.85, linewidths=0)
    axes.set_title(f"largest disc: {counts.max():,} samples", loc="right", fontsize=9, color=FAINT)


def _draw_heat(figure: Figure, axes: Axes, counts: NDArray[Any]) -> None:
    """Draw counts as colours on a logarithmic scale; white is none."""
    from matplotlib.colors import LogNorm

    plain(axes)
    norm = LogNorm(vmin=1, vmax=max(2, int(counts.max())))
    values = np.ma.masked_equal(counts.T, 0)
    colours = _colour_map("YlGnBu").with_extremes(bad="white")
    image = axes.imshow(values, cmap=colours, norm=norm, aspect="auto", interpolation="nearest")
    _bar(figure, axes, image, "Samples", "{:,.0f}")


def _draw_labels(axes: Axes, shares: NDArray[Any], client_ids: Sequence[int]) -> None:
    """Draw each client's label distribution as a row of greys."""
    plain(axes)
    axes.spines["bottom"].set_visible(False)
    axes.imshow(shares, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    _ticks(axes.yaxis, np.asarray(client_ids))
    _ticks(axes.xaxis, np.arange(shares.shape[1]))
    axes.set(xlabel="Class", ylabel="Client")
    axes.set_title("Labels", **TITLE)


def _write_numbers(axes: Axes, values: Any) -> None:
    """Write each cosine into its cell, white on dark."""
    for (row, column), value in np.ndenumerate(np.ma.filled(values, np.nan)):
        text = "–" if np.isnan(value) else f"{value:.2f}"
        colour = "white" if abs(value) > 0.55 else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)


def _line(axes: Axes, columns: Mapping[str, ArrayLike], column: str, label: str, colour: str) -> None:
    """Draw one column of one run against the round, in percent, without its missing values."""
    rounds, values = np.asarray(columns["round"], dtype=float), np.asarray(columns[column], dtype=float)
    known = np.isfinite(values)
    marker = "o" if known.sum() <= 25 else ""
    axes.plot(
        rounds[known], 100 * values[known], color=colour, label=label, linewidth=1.8, marker=marker, markersize=3.5
    )
