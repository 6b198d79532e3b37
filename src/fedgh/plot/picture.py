"""Pictures of partitions and conflicts; plain numbers in, a matplotlib ``Figure`` out. See :mod:`fedgh.plot.style`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedgh.plot.curves import draw_sorted
from fedgh.plot.curves import run_figure as run_figure
from fedgh.plot.style import (
    BLUE,
    COLOURS,
    FAINT,
    GRID,
    INK,
    LEGEND,
    RED,
    TITLE,
    colour_bar,
    colour_map,
    name_ticks,
    new_figure,
    plain,
)
from fedgh.plot.style import pixels as pixels
from fedgh.plot.style import save_png as save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BUBBLES = 400  # clients times classes; more become a heat map
MOST_BARS = 100  # clients with a bar of their own; more are one outline
MOST_COLUMNS = 300  # clients that a picture of a partition shows
MOST_NUMBERS = 12  # clients up to which each cosine is written out
MOST_CLIENTS = 30  # clients with a line of their own; of more, the worst


def partition_figure(class_counts: ArrayLike) -> Figure:
    """Draw who holds which classes: one column per client, one row per class, and the client sizes above.

    Small federations become bubbles whose area is the number of samples, large ones a heat map; of more clients than
    ``MOST_COLUMNS`` as many are drawn, evenly spaced by id, and the title says so.

    Args:
        class_counts: Samples of each class at each client, ``(clients, classes)``.
    """
    counts = np.asarray(class_counts)
    num_clients, num_classes = counts.shape
    title = f"{counts.sum():,} samples of {num_classes} classes over {num_clients:,} clients"
    mean, clients = counts.sum(axis=1).mean(), np.arange(num_clients)
    if num_clients > MOST_COLUMNS:
        clients = np.linspace(0, num_clients - 1, MOST_COLUMNS).round().astype(int)
        counts = counts[clients]
        title += f"; {MOST_COLUMNS} of them, evenly spaced"
    columns = len(clients)
    width = float(np.clip(0.24 * columns + 2.5, 6.5, 14))
    height = float(np.clip(0.24 * num_classes + 2.6, 4.6, 9))
    figure = new_figure(width, height)
    sizes, grid = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1, max(2.6, height - 2)]})
    _draw_sizes(sizes, counts.sum(axis=1), mean)
    draw = _draw_bubbles if counts.size <= MOST_BUBBLES else _draw_heat
    draw(figure, grid, counts)
    name_ticks(grid.xaxis, clients)
    name_ticks(grid.yaxis, np.arange(num_classes))
    grid.set(xlabel="Client", ylabel="Class", xlim=(-0.7, columns - 0.3), ylim=(num_classes - 0.4, -0.6))
    sizes.set_title(title, **TITLE)
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
    image = axes.imshow(values, cmap=colour_map("RdBu"), vmin=-1, vmax=1, interpolation="nearest")
    colour_bar(figure, axes, image, "Cosine of two updates", "{:+.2f}")
    if len(client_ids) <= MOST_NUMBERS:
        _write_numbers(axes, values)
    for axis in (axes.xaxis, axes.yaxis):
        name_ticks(axis, np.asarray(client_ids))
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
    plain(axes, "y")
    before: NDArray[Any] = np.zeros(0)
    for (label, values), colour in zip(curves.items(), (RED, *COLOURS), strict=False):
        known = np.sort(np.asarray(values, dtype=float))
        known = known[np.isfinite(known)]
        if not known.size or (len(before) == len(known) and np.allclose(before, known, atol=1e-6)):
            continue
        name, before = f"{label}: {np.mean(known < 0):.0%} in conflict, least {known[0]:+.2f}", known
        place, ordered = draw_sorted(axes, known, colour, linewidth=1.9, label=name)
        axes.fill_between(place, ordered, 0, where=ordered < 0, color=colour, alpha=0.12, linewidth=0, interpolate=True)
    axes.axhline(0, color=INK, linewidth=0.9)
    axes.set_xlabel("Pair of clients, sorted by cosine", color=INK)
    axes.set_ylabel("Cosine of two updates", color=INK)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.2g}" if value else "0")
    if title:
        axes.set_title(title, **TITLE)
    if before.size:
        axes.legend(loc="upper left", **LEGEND)
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
            cmap=colour_map("YlGnBu").with_extremes(bad="white"),
            vmin=0,
            vmax=100 * most,
        )
        axes.axhline(0, color=RED, linewidth=1.1, linestyle=(0, (4, 3)))
        axes.set_ylabel("Cosine", color=INK)
        axes.set_ylim(min(low, 0) - 0.02, max(high, 0) + 0.02)
        axes.set_title(label, **TITLE)
        colour_bar(figure, axes, image, "Pairs (%)", "{:.3g}")
    name_ticks(grid[-1].xaxis, np.asarray(rounds))
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
            cmap=colour_map(colours),
            vmin=low,
            vmax=high,
            aspect="auto",
            interpolation="nearest",
        )
        axes.set_title(label, **TITLE)
        name_ticks(axes.yaxis, np.asarray(layers))
        colour_bar(figure, axes, image, "", number)
    name_ticks(lower.xaxis, np.asarray(rounds))
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
    colours = colour_map("Purples").with_extremes(bad="white")
    image = axes.imshow(np.ma.masked_equal(values, 0), cmap=colours, vmin=0, vmax=values.max(initial=1))
    axes.set_facecolor("white")
    colour_bar(figure, axes, image, "Rounds", "{:.0f}")
    for axis in (axes.xaxis, axes.yaxis):
        name_ticks(axis, np.asarray(client_ids))
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
    plain(axes, "x")
    axes.hlines(places, mean[order], chosen[order], color=GRID, linewidth=2.2, zorder=1)
    axes.scatter(mean[order], places, s=30, color="white", edgecolors=FAINT, linewidths=1.3, label="Mean", zorder=2)
    colours = np.where(chosen[order] > 0, RED, BLUE)
    axes.scatter(chosen[order], places, s=34, color=colours, zorder=3)
    for colour, label in ((BLUE, name), (RED, f"{name}, harmed")):
        axes.scatter([], [], s=34, color=colour, label=label)
    axes.axvline(0, color=INK, linewidth=0.9)
    name_ticks(axes.yaxis, np.asarray(client_ids)[order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlabel("Change of the loss on its own training data", color=INK)
    axes.set_ylabel("Client")
    harmed = f"{int((chosen > 0).sum())} of {len(chosen)} clients harmed, {int((mean > 0).sum())} under the mean"
    axes.set_title(f"{title}: {harmed}" if title else harmed, **TITLE)
    axes.legend(loc="lower right", **LEGEND)
    return figure


def _draw_sizes(axes: Axes, sizes: NDArray[Any], mean: float) -> None:
    """Draw samples per client as columns, with the mean over all clients as a line."""
    plain(axes)
    if len(sizes) <= MOST_BARS:
        axes.bar(np.arange(len(sizes)), sizes, width=0.72, color=BLUE)
    else:  # one outline: a patch a client takes seconds
        axes.stairs(sizes, np.arange(len(sizes) + 1) - 0.5, fill=True, color=BLUE)
    axes.axhline(mean, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
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
    colours = colour_map("YlGnBu").with_extremes(bad="white")
    image = axes.imshow(values, cmap=colours, norm=norm, aspect="auto", interpolation="nearest")
    bar = colour_bar(figure, axes, image, "Samples", "{:,.0f}")
    bar.set_ticks([step * 10**power for power in range(7) for step in (1, 2, 5) if step * 10**power <= norm.vmax])


def _draw_labels(axes: Axes, shares: NDArray[Any], client_ids: Sequence[int]) -> None:
    """Draw each client's label distribution as a row of greys."""
    plain(axes)
    axes.spines["bottom"].set_visible(False)
    axes.imshow(shares, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    name_ticks(axes.yaxis, np.asarray(client_ids))
    name_ticks(axes.xaxis, np.arange(shares.shape[1]))
    axes.set(xlabel="Class", ylabel="Client")
    axes.set_title("Labels", **TITLE)


def _write_numbers(axes: Axes, values: Any) -> None:
    """Write each cosine into its cell, white on dark."""
    for (row, column), value in np.ndenumerate(np.ma.filled(values, np.nan)):
        text = "–" if np.isnan(value) else f"{value:.2f}"
        colour = "white" if abs(value) > 0.55 else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
