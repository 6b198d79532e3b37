"""Differential privacy of clients: updates of bounded length, Gaussian noise, and what that is worth."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fedgh.core.errors import ConfigurationError
from fedgh.core.seeding import torch_generator
from fedgh.core.updates import Block

LAYERS = ("whole", "uniform", "dimension")


@dataclass(frozen=True)
class Gaussian:
    """Shorten every update to ``clip`` at most, and add noise of standard deviation ``noise_multiplier clip``.

    At the ``server`` the noise is added once, to the mean: times the largest weight, 1 / m of m clients that count
    alike, so that what is released is DP-FedAvg's. The server is trusted, and the aggregator has to be the mean: a rule
    that looks at single updates has no such bound. At the ``clients`` each adds it to its own update before it leaves,
    so nobody is trusted and any rule may follow; the noise of the mean is the square root of m times larger.

    The account is that of neighbours who differ in all data of one client, whose update is replaced by another (two
    clips apart), by Renyi differential privacy. At the server it is amplified by the uniform sampler's draw of m of N
    without replacement; at the clients, and with other samplers, it is that of a client who takes part in every round.
    It covers models and updates. Losses, cosines, histograms and recordings in a run's log are computed from the
    updates before the noise of the server, and are not private.

    Noise is drawn by seed, round and client, so a resumed run draws the same; whoever knows the seed can take it away.
    With ``noise_multiplier: 0`` and a clip that nobody reaches it is FedAvg to the bit.

    Args:
        clip: Largest 2-norm of an update, > 0.
        layers: ``whole``; or every layer is clipped by itself, to ``clip / sqrt(H)`` of H layers (``uniform``) or to
            ``clip sqrt(d_h / d)`` of d_h of d numbers (``dimension``), so that the whole is within ``clip`` again.
        noise_multiplier: sigma, >= 0.
        noise_at: ``server`` or ``clients``.
        delta: Of (epsilon, delta), in (0, 1); less than 1 / N.

    Reference:
        McMahan, Ramage, Talwar, Zhang: "Learning Differentially Private Recurrent Language Models", ICLR 2018,
        algorithm 1, flat and per-layer clipping. Wang, Balle, Kasiviswanathan, AISTATS 2019, for the account.
    """

    clip: float
    layers: str
    noise_multiplier: float
    noise_at: str
    delta: float

    def __post_init__(self) -> None:
        require(self.clip > 0, "clip", "positive; try the median length of an update, 1.0", self.clip)
        require(self.layers in LAYERS, "layers", f"one of {', '.join(LAYERS)}", self.layers)
        finite = 0 <= self.noise_multiplier < math.inf
        require(finite, "noise_multiplier", "0 (clipping alone) or more; try 1.0", self.noise_multiplier)
        require(self.noise_at in ("server", "clients"), "noise_at", "server or clients", self.noise_at)
        require(0 < self.delta < 1, "delta", "above 0 and below 1; try 1e-5", self.delta)

    def clip_(self, rows: Tensor, blocks: Sequence[Block]) -> None:
        """Shorten updates ``(clients, params)`` in place; one that is short enough keeps its bits."""
        spans = [(0, rows.shape[1])] if self.layers == "whole" else [(block.start, block.stop) for block in blocks]
        for start, stop in spans:
            share = 1 / len(spans) if self.layers == "uniform" else (stop - start) / rows.shape[1]
            bound, part = self.clip * math.sqrt(share), rows[:, start:stop]
            norms = torch.linalg.vector_norm(
                part, dim=1, keepdim=True, dtype=torch.promote_types(part.dtype, torch.float32)
            )
            part.mul_(torch.where(norms > bound, bound / norms, 1.0).to(part.dtype))

    def noise(self, like: Tensor, scale: float, seed: int, round_index: int, client_id: int | None = None) -> Tensor:
        """Return noise of standard deviation ``noise_multiplier clip scale``, of a client or of the server (None)."""
        purpose = "privacy" if client_id is None else "local_privacy"
        generator = torch_generator(seed, purpose, round_index, client_id or 0)
        numbers = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        return (numbers * (self.noise_multiplier * self.clip * scale)).to(like)

    def epsilon(self, num_rounds: int, num_clients: int, per_round: int | None) -> float:
        """Return epsilon after so many rounds, infinite without noise.

        Args:
            num_rounds: T, at least one.
            num_clients: N.
            per_round: m, drawn uniformly without replacement each round; None: anybody may take part in all of them.
        """
        if self.noise_multiplier == 0:
            return math.inf
        amplified = per_round is not None and per_round < num_clients and self.noise_at == "server"
        orders, values = _curve(self.noise_multiplier, num_clients, per_round if amplified else None)
        epsilon, _ = _library().rdp.compute_epsilon(orders, values * num_rounds, self.delta)
        return float(epsilon)

    def check(self) -> None:
        """Raise ConfigurationError if the accountant is needed and missing."""
        if self.noise_multiplier > 0:
            _library()


@lru_cache
def _curve(noise_multiplier: float, num_clients: int, per_round: int | None) -> tuple[Any, Any]:
    """Return orders and Renyi divergences of one round; replacing an update moves the sum by up to two clips."""
    library: Any = _library()
    event = library.GaussianDpEvent(noise_multiplier / 2)
    if per_round is not None:
        event = library.SampledWithoutReplacementDpEvent(num_clients, per_round, event)
    accountant = library.rdp.RdpAccountant(neighboring_relation=library.NeighboringRelation.REPLACE_ONE)
    accountant.compose(event)
    return accountant.orders, accountant.rdp


def _library() -> Any:
    try:
        import dp_accounting
        import dp_accounting.rdp
    except ImportError as error:
        raise ConfigurationError(
            "privacy=gaussian with noise counts epsilon with dp-accounting, which is not installed: "
            "pip install 'fedgh[privacy]'"
        ) from error
    from absl import logging as absl_logging  # which it brings

    # when logging is configured anew, absl closes what standard error was as it was loaded: a notebook's, a test's
    absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__
    return dp_accounting


def require(satisfied: bool, key: str, expected: str, found: object) -> None:
    """Raise ConfigurationError, in the config's own words, unless a setting is as expected."""
    if not satisfied:
        raise ConfigurationError(f"privacy.{key} must be {expected}, got {found!r}")
