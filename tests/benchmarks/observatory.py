"""What the default callbacks cost: pairs of rounds of W1 with and without them, and their pictures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from aggregation import RULE
from workloads import TEST_IMAGES, WORKLOADS, build

from fedgh import config
from fedgh.federation.loop import Schedule, describe
from fedgh.federation.round import Federation, initial_state, run_round
from fedgh.plot.picture import pixels
from fedgh.tracking.recorder import Row as Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmark import Bench, Row

HISTORY = 100
"""Rounds whose tables are there when the pictures are drawn, as in a run of the paper's length."""


def observatory(bench: Bench) -> Iterator[Row]:
    """Numbers and tables of every round, pictures of every so many, as shares of a round of W1 under FedGH."""
    workload = replace(WORKLOADS["W1"], num_examples=max(64, round(bench.scale * WORKLOADS["W1"].num_examples)))
    federation = replace(build(workload, "sequential", bench.device), aggregator=RULE)
    with TemporaryDirectory() as folder:
        callbacks = config.build_callbacks(config.compose([f"paths.output_dir={folder}"]))
        watched, ratio = bench.pair(watching(federation, callbacks), watching(federation, []))
        numbers, pictures = costs(bench, federation, callbacks)
    every = min(callback.every for callback in callbacks)
    yield "W1, observed", f"{watched:.3f} s a round", f"{ratio:.3f} of the round without, in pairs"
    yield "its numbers and tables", f"{numbers:.4f} s a round", f"{numbers / watched:.2%} of the round"
    yield (
        "its pictures, for W&B or TensorBoard",
        f"{pictures:.2f} s every {every} rounds",
        (f"{pictures / every / watched:.2%} of the rounds; all together {(numbers + pictures / every) / watched:.2%}"),
    )


def watching(federation: Federation, callbacks: Sequence[Any]) -> Callable[[], None]:
    """Return what runs one round more, as the training loop does, with these callbacks."""
    schedule = Schedule(1 << 30, 1, TEST_IMAGES, 1 << 30)
    state = [initial_state(federation.model)]

    def play() -> None:
        outcome = run_round(federation, state[0])
        row = describe(federation, outcome, schedule)
        for callback in callbacks:
            callback(federation, state[0], outcome, row)
        state[0] = outcome.server

    return play


def costs(bench: Bench, federation: Federation, callbacks: Sequence[Any]) -> tuple[float, float]:
    """Return the seconds of the callbacks on one round, and those of one set of all their pictures."""
    before = initial_state(federation.model)
    outcome = run_round(federation, before)

    def watch(number: int, *watchers: Any) -> Record:
        row = Record(number)
        for callback in watchers:
            callback(federation, before, outcome, row)
        return row

    numbers = [bench.seconds(lambda number=number: watch(number, *callbacks)) for number in range(1, HISTORY + 1)]
    drawn = watch(HISTORY, *(replace(callback, every=1) for callback in callbacks))
    pictures = [bench.seconds(lambda: [pixels(make()) for make in drawn.figures.values()]) for _ in range(bench.pairs)]
    return statistics.median(numbers), statistics.median(pictures)
