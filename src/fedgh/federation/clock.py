"""A simulated clock: clients take their time, and the server moves whenever enough of them are back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm
from fedgh.core.errors import ConfigurationError
from fedgh.core.seeding import numpy_generator
from fedgh.core.types import CohortResult, GlobalModel, ServerState
from fedgh.executor.base import Executor

STALENESS = ("constant", "polynomial", "hinge")


@dataclass(frozen=True)
class Clock:
    """``concurrency`` clients are always at work; a round is ``buffer_size`` arrivals.

    Local training is a function of the version that a client received and of an address, so it is computed when the
    client *arrives*; versions that somebody still works from live in the server's state. FedGH and its kin see the
    arrivals of a round, stale ones among them.

    Args:
        concurrency: Clients at work at any time, M.
        buffer_size: Arrivals that a server step waits for, K; 1 is FedAsync, more is FedBuff.
        interval: A round is everything that arrives in so much time instead (FedFix), and no shorter than until
            somebody does; None for ``buffer_size``.
        spread: Standard deviation of the logarithm of a client's speed, 0 or more; 0: all are alike. A client's job
            takes ``exp(spread z_k) (1 + u/4)``, z_k standard normal and fixed, u uniform in [0, 1) and new each job.
        staleness: How an arrival counts that is s versions old: ``constant`` 1; ``polynomial`` ``(1 + s)^-power``;
            ``hinge`` 1 up to ``bound``, ``1 / (power (s - bound) + 1)`` beyond it.
        power: See there, 0 or more.
        bound: See there.
        mixing: What every weight is multiplied with, in (0, 1]: FedAsync's alpha.
        rebase: Make updates relative to the current model, as FedAsync does: ``w <- (1 - a) w + a theta_k``; false:
            to the one received, as FedBuff does.

    Reference:
        Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022, algorithm 1. Xie,
        Koyejo, Gupta, "Asynchronous Federated Optimization", 2019, section 5.2 (staleness functions). Fraboni et al.,
        "A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients Updates" (FedFix).
    Departures:
        FedBuff divides by K whatever the clients hold; here ``client_weights`` are taken as they are, with n_k/n over
        the arrivals by default.
    """

    concurrency: int
    buffer_size: int
    interval: float | None
    spread: float
    staleness: str
    power: float
    bound: int
    mixing: float
    rebase: bool

    def __post_init__(self) -> None:
        for name in ("concurrency", "buffer_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"clock.{name} must be a positive integer, got {value!r}; try 10")
        if self.buffer_size > self.concurrency:
            raise ConfigurationError(
                f"clock.buffer_size={self.buffer_size} arrivals would be waited for for ever with "
                f"clock.concurrency={self.concurrency} clients at work; raise clock.concurrency"
            )
        if self.interval is not None and not self.interval > 0:
            raise ConfigurationError(f"clock.interval must be null or positive, got {self.interval!r}; try 1.0")
        if self.staleness not in STALENESS:
            raise ConfigurationError(f"clock.staleness must be one of {', '.join(STALENESS)}, got {self.staleness!r}")
        for name in ("spread", "power", "bound"):
            if not getattr(self, name) >= 0:
                raise ConfigurationError(f"clock.{name} must be 0 or more, got {getattr(self, name)!r}")
        if not 0 < self.mixing <= 1:
            raise ConfigurationError(f"clock.mixing must be above 0 and at most 1, got {self.mixing!r}; try 0.6")

    def collect(self, executor: Executor, server: ServerState) -> tuple[CohortResult, ServerState]:
        """Train the next arrivals, each from the version that it received; they are no longer at work then."""
        clock, t = server.clock, server.round_index
        by_arrival = sorted(range(len(clock["ids"])), key=lambda i: (float(clock["back"][i]), int(clock["ids"][i])))
        arrivals, now = self.buffer_size, float(clock["back"][by_arrival[self.buffer_size - 1]])
        if self.interval is not None:
            waited = float(clock["back"].min()) - float(clock["now"])
            now = float(clock["now"]) + self.interval * max(1, math.ceil(waited / self.interval))
            arrivals = int((clock["back"] <= now).sum())
        back, left = by_arrival[:arrivals], torch.tensor(sorted(by_arrival[arrivals:])).long()
        version_of = {int(clock["ids"][i]): int(clock["versions"][i]) for i in back}
        kept = clock["kept"].tolist()
        versions = {k: _version(server, kept.index(version)) for k, version in version_of.items()}
        result = executor(list(versions), server, versions)
        staleness = torch.tensor([t - version_of[k] for k in result.client_ids])
        if self.rebase:
            for row, k in zip(result.updates.rows, result.client_ids, strict=True):
                row += (versions[k].params - server.params).to(row.dtype)
        clock = {**clock, **{name: clock[name][left] for name in ("ids", "versions", "back")}}
        clock["now"] = torch.tensor(now, dtype=torch.float64)
        return replace(result, staleness=staleness), replace(server, clock=clock)

    def dispatch(self, algorithm: Algorithm, server: ServerState, num_clients: int, seed: int) -> ServerState:
        """Set other clients to work in the free places, from the current version."""
        if self.concurrency > num_clients:
            raise ConfigurationError(
                f"clock.concurrency={self.concurrency}, but there are {num_clients} clients; lower it, or raise "
                "partition.num_clients"
            )
        clock, t = server.clock or _stopped(server), server.round_index
        busy, now = clock["ids"].tolist(), float(clock["now"])
        order = numpy_generator(seed, "arrivals", t).permutation(num_clients).tolist()
        new = [k for k in order if k not in busy][: self.concurrency - len(busy)]
        back = [now + self._duration(seed, t, k) for k in new]
        versions = torch.cat([clock["versions"], torch.full((len(new),), t)])
        used = [place for place, version in enumerate(clock["kept"].tolist()) if version in versions and version != t]
        sent = algorithm.broadcast(server, sorted(new)).params
        current = {
            "params": server.params if sent is None else sent,
            "buffers": server.buffers,
            "counters": server.counters,
        }
        tables = {n: torch.cat([clock[n][used], c.detach().cpu()[None]]) for n, c in current.items()}
        after = {
            "now": torch.tensor(now, dtype=torch.float64),
            "ids": torch.cat([clock["ids"], torch.tensor(new, dtype=torch.int64)]),
            "versions": versions,
            "back": torch.cat([clock["back"], torch.tensor(back, dtype=torch.float64)]),
            "kept": torch.cat([clock["kept"][used], torch.tensor([t])]),
            **tables,
        }
        return replace(server, clock=after)

    def discounted(self, weights: Tensor, result: CohortResult) -> Tensor:
        """Return the weights ``(clients,)`` of arrivals, the less the staler."""
        if result.staleness is None:
            return weights
        s = result.staleness.to(torch.float64)
        if self.staleness == "polynomial":
            factor = (1 + s) ** -self.power
        elif self.staleness == "hinge":
            factor = torch.where(s <= self.bound, 1.0, 1 / (self.power * (s - self.bound).clamp_min(0) + 1))
        else:
            factor = torch.ones_like(s)
        return self.mixing * factor * weights

    def _duration(self, seed: int, round_index: int, client_id: int) -> float:
        speed = numpy_generator(seed, "speed", 0, client_id).normal()
        return math.exp(self.spread * speed) * (1 + numpy_generator(seed, "job", round_index, client_id).random() / 4)


def _version(server: ServerState, place: int) -> GlobalModel:
    clock, device = server.clock, server.params.device
    params, buffers, counters = (clock[name][place].to(device) for name in ("params", "buffers", "counters"))
    return GlobalModel(params, buffers, counters)


def _stopped(server: ServerState) -> dict[str, Tensor]:
    """Return a clock at time 0 with nobody at work."""
    none = torch.zeros(0, dtype=torch.int64)
    tables = {"params": server.params, "buffers": server.buffers, "counters": server.counters}
    return {
        "now": torch.zeros((), dtype=torch.float64),
        "ids": none,
        "versions": none,
        "back": none.double(),
        "kept": none,
        **{name: tensor.detach().cpu().new_empty(0, len(tensor)) for name, tensor in tables.items()},
    }
