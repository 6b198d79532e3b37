"""FedGH against other simulators on W1 to W3: ``python tests/benchmarks/peers.py [W1 W2 W3] [--pairs N]``.

Same model, data, batches and steps on both sides, FedAvg, the global model evaluated on 2,000 images each round, on the
CPU. Rounds alternate within one run: so many of the peer's, so many of ours. A peer's first round, and so its
start-up, is not counted. It is checked that every round trains on all examples in as many steps as ours, and that both
sides learn. Peers are no dependencies of FedGH; install them into an environment of their own.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import statistics
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import torch
from benchmark import machine
from workloads import WORKLOADS, Workload, build, rounds

from fedgh.executor.vectorized import VectorizedExecutor

Round = Callable[[], dict[str, float]]


@dataclass
class Match:
    """A peer and FedGH on one workload; the peer calls :meth:`evaluated` and :meth:`trained` from its own loop.

    Attributes:
        workload: What both do.
        ours: Runs one round of FedGH, by executor.
        pairs: Measurements.
        times: Rounds in a measurement.
        theirs: Seconds a round of the peer, one per measurement.
        seconds: Seconds a round of ours, by executor, one per measurement.
        ratios: The peer's seconds over ours before and after, by executor, one per measurement.
        losses: Of the peer's global model on the test images; the first is before any training.
        our_losses: Of ours after its first round and after its last, by executor.
    """

    workload: Workload
    ours: dict[str, Round]
    pairs: int
    times: int
    theirs: list[float] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    our_losses: dict[str, list[float]] = field(default_factory=dict)
    finished: int = 0

    @property
    def num_rounds(self) -> int:
        """Rounds the peer has to play: the first is not counted."""
        return 1 + self.times * self.pairs

    def evaluated(self, loss: float) -> None:
        """Take note of the peer's loss on the test images."""
        self.losses.append(loss)

    def trained(self, examples: int, steps: int) -> None:
        """End a round of the peer, evaluation included; where a measurement ends, play as many rounds of ours.

        Args:
            examples: That the clients of the round have trained on, together.
            steps: That they have taken.
        """
        now, workload = perf_counter(), self.workload
        expected = workload.clients_per_round * workload.num_examples
        assert examples == expected, f"{examples} examples in a round, expected {expected}"
        expected = workload.clients_per_round * math.ceil(workload.num_examples / workload.batch_size)
        assert steps == expected, f"{steps} steps in a round, expected {expected}"
        self.finished += 1
        if self.finished == 1:  # warm up, and the first of ours that stands before one of theirs
            self._play(1)
            self._before = self._play(self.times)
            self._started = perf_counter()
        elif (self.finished - 1) % self.times == 0:
            self.theirs.append((now - self._started) / self.times)
            after = self._play(self.times)
            for name, mine in after.items():
                self.seconds.setdefault(name, []).append(mine)
                self.ratios.setdefault(name, []).append(2 * self.theirs[-1] / (self._before[name] + mine))
            self._before = after
            self._started = perf_counter()

    def _play(self, times: int) -> dict[str, float]:
        """Return the seconds a round of ours, by executor."""
        found = {}
        for name, play in self.ours.items():
            started = perf_counter()
            for _ in range(times):
                metrics = play()
            found[name] = (perf_counter() - started) / times
            self.our_losses.setdefault(name, []).append(metrics["global/test/loss"])
        return found

    def check(self) -> None:
        """Raise unless all was measured and both sides have learned."""
        assert len(self.theirs) == self.pairs, f"{len(self.theirs)} measurements instead of {self.pairs}"
        assert self.losses[-1] < self.losses[0], f"the peer's loss went from {self.losses[0]} to {self.losses[-1]}"
        for name, losses in self.our_losses.items():
            assert losses[-1] < self.losses[0], f"the loss of {name} is {losses[-1]}, untrained {self.losses[0]}"


@dataclass(frozen=True)
class Peer:
    """How to run a peer.

    Attributes:
        module: Beside this file; its ``play(match)`` runs the rounds, its ``VERSION`` is the peer's.
        install: What installs it.
        options: Further arguments of ``play``.
    """

    module: str
    install: str
    options: dict[str, Any] = field(default_factory=dict)

    def load(self) -> tuple[str, Callable[[Match], None]]:
        """Return the peer's version and what plays a match; an ``ImportError`` says why it cannot."""
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            raise ImportError(f"{error.name} is not installed: {self.install}") from error
        return module.VERSION, partial(module.play, **self.options)


FLOWER = partial(Peer, "peer_flower", "pip install 'flwr[simulation]'")
PEERS = {
    "pfl": Peer("peer_pfl", "pip install pfl"),
    "Flower (1 CPU a client)": FLOWER({"num_cpus": 1}),
    "Flower (2 CPUs a client)": FLOWER({"num_cpus": 2}),  # its default
}


def prepare(name: str, pairs: int) -> Match:
    """Build our side: the sequential executor, and the cohort executor where ``executor=auto`` picks it."""
    workload, device = WORKLOADS[name], torch.device("cpu")
    picked = build(workload, "auto", device).executor
    executors = ["sequential", "vectorized"] if isinstance(picked, VectorizedExecutor) else ["sequential"]
    ours = {e: rounds(build(workload, e, device, torch.channels_last)) for e in executors}  # as runs have it
    return Match(workload, ours, pairs, times=20 if name == "W3" else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", choices=[*WORKLOADS, []], help="default: all")
    parser.add_argument("--pairs", type=int, default=5, help="measurements of which the median is taken")
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    sys.stdout.write(f"{machine(torch.device('cpu'))}; medians of {options.pairs}\n\n")
    show("what", "seconds a round", "the peer takes")
    show("-" * 36, "-" * 46, "-" * 14)
    for title, peer in PEERS.items():
        try:
            version, play = peer.load()
        except ImportError as error:
            show(title, "", f"skipped: {error}")
            continue
        for name in options.workloads or WORKLOADS:
            match = prepare(name, options.pairs)
            play(match)
            match.check()
            ours = ", ".join(f"{executor} {statistics.median(s):.4f}" for executor, s in match.seconds.items())
            ratios = ", ".join(f"{statistics.median(r):.2f} times {executor}" for executor, r in match.ratios.items())
            show(f"{name}, {title} {version}", f"{statistics.median(match.theirs):.4f} s; FedGH {ours}", ratios)


def show(what: str, seconds: str, compared: str) -> None:
    sys.stdout.write(f"| {what:<36} | {seconds:<46} | {compared} |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
