"""What it costs to combine a round's updates: time against the plain mean and Algorithm 1, its growth, memory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fedgh.aggregator.fedgh import FedGH
from fedgh.aggregator.projection import random_orders
from fedgh.core.types import Cohort
from fedgh.core.updates import UpdateMatrix
from fedgh.plot.picture import COLOURS, GRID, INK, new_figure, plain, save_png

if TYPE_CHECKING:
    from benchmark import Bench, Row
    from matplotlib.axes import Axes

RULE = FedGH(rescale="none", order="random", sweeps=1, scope="model", min_norm_ratio=0)
SIZES = ((10, 550_000), (20, 2_350_000), (50, 550_000), (100, 550_000), (20, 11_000_000))
MORE_CLIENTS = tuple((clients, 500_000) for clients in (10, 20, 50, 100, 200, 400))
MORE_PARAMS = tuple((20, params) for params in (100_000, 500_000, 2_350_000, 5_000_000, 11_000_000, 20_000_000))
PATIENCE = 60.0
"""Seconds beyond which Algorithm 1 is not run."""


@dataclass(frozen=True)
class Point:
    """What one matrix took; all in seconds.

    Attributes:
        clients: K.
        params: d.
        fedgh: Gram matrix, projections, weighted sum.
        mean: The weighted sum alone.
        read: One look at every number of the matrix, its sum.
        printed: Algorithm 1 as the paper prints it; None where it would have taken too long.
    """

    clients: int
    params: int
    fedgh: float
    mean: float
    read: float
    printed: float | None


def aggregation(bench: Bench) -> Iterator[Row]:
    """FedGH from the Gram matrix against Algorithm 1 as printed and against the plain mean."""
    for clients, params in SIZES:
        yield _row(measure(bench, clients, _scaled(bench, params)))


def growth(bench: Bench) -> Iterator[Row]:
    """The same over ever more clients, and over ever more parameters; drawn where a figure is asked for."""
    found: dict[str, list[Point]] = {}
    for axis, sizes in (("clients", MORE_CLIENTS), ("params", MORE_PARAMS)):
        pace = 0.0  # seconds per pair of clients and parameter
        for clients, params in sizes:
            params = _scaled(bench, params)
            point = measure(bench, clients, params, run_printed=pace * clients**2 * params < PATIENCE)
            pace = pace if point.printed is None else point.printed / (clients**2 * params)
            found.setdefault(axis, []).append(point)
            yield _row(point)
    if bench.figure:
        draw(found["clients"], found["params"], bench.figure)


def measure(bench: Bench, clients: int, params: int, run_printed: bool = True) -> Point:
    """Aggregate one random matrix in three ways."""
    rows = torch.empty(clients, params).normal_(generator=torch.Generator().manual_seed(0)).to(bench.device)
    updates, cohort = UpdateMatrix.of(rows), Cohort.of(torch.full((clients,), 1 / clients))
    seconds, ratio = bench.pair(
        lambda: RULE(updates, updates.gram(), cohort, {}), lambda: updates.combine(cohort.weights)
    )
    orders = random_orders(cohort).tolist()
    printed = bench.seconds(lambda: algorithm_1(rows, orders)) if run_printed else None
    read = statistics.median(bench.seconds(rows.sum) for _ in range(bench.pairs))
    return Point(clients, params, seconds, seconds / ratio, read, printed)


def algorithm_1(rows: torch.Tensor, orders: list[list[int]]) -> torch.Tensor:
    """Return FedGH's aggregate with equal weights as the paper prints it: float32, in place."""
    squared = rows.square().sum(1)
    total = torch.zeros_like(rows[0])
    for k, order in enumerate(orders):
        h = rows[k].clone()
        for j in order:
            s = h @ rows[j]
            if s < 0:
                h.sub_(rows[j] * (s / squared[j]))
        total.add_(h, alpha=1 / len(rows))
    return total


def _scaled(bench: Bench, params: int) -> int:
    return max(1, round(bench.scale * params))


def _row(point: Point) -> Row:
    printed = "Algorithm 1 would take too long"
    if point.printed is not None:
        printed = f"Algorithm 1 {point.printed:.3g} s, {point.printed / point.fedgh:.3g} times as long"
    return (
        f"FedGH, {point.clients} x {point.params:,}",
        f"{point.fedgh:.4f} s",
        f"{point.fedgh / point.mean:.1f} means, {point.fedgh / point.read:.1f} reads of the matrix; {printed}",
    )


def draw(more_clients: list[Point], more_params: list[Point], path: Path) -> None:
    """Draw seconds against clients and against parameters, both logarithmic."""
    figure = new_figure(9.5, 3.9)
    left, right = figure.subplots(1, 2, sharey=True)
    panels: tuple[tuple[Axes, list[Point], Callable[[Point], int], str], ...] = (
        (left, more_clients, lambda p: p.clients, f"Clients, {more_clients[0].params:,} parameters"),
        (right, more_params, lambda p: p.params, f"Parameters, {more_params[0].clients} clients"),
    )
    names = {"printed": "Algorithm 1 as printed", "fedgh": "FedGH from the Gram matrix", "mean": "Plain mean"}
    for axes, points, size, label in panels:
        plain(axes)
        axes.grid(color=GRID, linewidth=0.8)
        for (name, text), colour in zip(names.items(), (COLOURS[1], COLOURS[0], COLOURS[2]), strict=True):
            shown = [(size(p), value) for p in points if (value := getattr(p, name)) is not None]
            axes.plot(*zip(*shown, strict=True), color=colour, label=text, marker="o", markersize=4, linewidth=1.8)
        axes.set(xscale="log", yscale="log")
        axes.set_xlabel(label, color=INK)
        axes.minorticks_off()
    left.set_xticks(sizes := [p.clients for p in more_clients], [str(size) for size in sizes])
    right.set_xticks(sizes := [p.params for p in more_params], [_short(size) for size in sizes])
    left.set_ylabel("Seconds", color=INK)
    left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    handles = left.get_lines()
    figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False, fontsize=10, labelcolor=INK)
    save_png(figure, path)


def _short(params: int) -> str:
    """Return 2,350,000 as 2.35M."""
    return f"{params / 1e6:g}M" if params >= 1e5 else f"{params:,}"


def memory(bench: Bench) -> Iterator[Row]:
    """A thousand clients: what their matrix and everything done with it take, each in a process of its own."""
    script, params = Path(__file__).with_name("memory.py"), _scaled(bench, 500_000)
    for dtype in ("float32", "bfloat16"):
        found = {}
        for stage in ("gram", "combine", "all"):
            command = [sys.executable, str(script), "1000", str(params), dtype, stage]
            found[stage] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        matrix = found["all"]["matrix"]
        beyond = ", ".join(f"{stage} {peaks['peak'] / matrix - 1:.1%}" for stage, peaks in found.items())
        yield (
            f"memory, 1,000 x {params:,}, {dtype}",
            f"{found['all']['peak'] / 1e9:.3f} GB in all, matrix {matrix / 1e9:.3f} GB",
            f"beyond the matrix: {beyond}",
        )
