"""The contract of an aggregator: many updates and a Gram matrix in, one update out.

A round's update is ``(weights^T C) U``. *Weights* say how much each client counts; *C* says how updates are bent
towards each other. A rule of the Gram family gives C (or the coefficients themselves) from ``M = U U^T`` alone;
coordinate-wise rules (median, trimmed mean) read the rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedgh.core.errors import ConfigurationError
from fedgh.core.types import Cohort
from fedgh.core.updates import Block, UpdateMatrix

State = dict[str, Tensor]

RESOLUTION = torch.finfo(torch.float32).eps
"""What a Gram matrix of float32 rows can tell from zero, relative to its largest entry and per client."""


@dataclass(frozen=True)
class Aggregate:
    """What an aggregator hands back.

    Attributes:
        update: The direction in which the server moves, ``(params,)``.
        coefficients: c with ``update = c @ U``, ``(clients,)`` float64, or ``(blocks, clients)`` where every parameter
            block has its own; None for coordinate-wise rules, and where more than the clients' updates is in it.
        mixing: C, whose row k makes client k's harmonized update ``C[k] @ U``, ``(clients, clients)`` float64, or
            ``(blocks, clients, clients)``; None for rules that have none. Before any rescaling.
        state: What the rule wants back in the next round.
    """

    update: Tensor
    coefficients: Tensor | None = None
    mixing: Tensor | None = None
    state: State = field(default_factory=dict)


class Aggregator(ABC):
    """A rule that combines a cohort's updates. Keeps no state of its own: state in, state out.

    What a rule declares is checked by the tests that all rules share.

    Attributes:
        identity_without_conflict: No negative cosine makes it the mean (the plain mean, if it uses no weights).
        uses_weights: The cohort's weights matter, be it n_k/n or what the algorithm (FedNova) made of it.
        stateful: It remembers something from round to round, by client id where it concerns clients.
        random: It draws numbers, addressed by (seed, round, client).
        scale_preserving: Identical updates come back as they are, without any rescaling.
        needs: What it reads: ``gram``, one matrix for the whole model; ``layers``, one per layer or parameter block;
            ``params``, the global model's parameters, too; ``coordinates``, the rows.
    """

    identity_without_conflict: ClassVar[bool] = False
    uses_weights: ClassVar[bool] = True
    stateful: ClassVar[bool] = False
    random: ClassVar[bool] = False
    scale_preserving: ClassVar[bool] = True
    needs: ClassVar[str] = "gram"

    @property
    def min_clients(self) -> int:
        """Fewest clients that it can combine; of a rule around another, ``rule``, those of that one."""
        inner = getattr(self, "rule", None)
        return inner.min_clients if isinstance(inner, Aggregator) else 1

    def check(self, num_clients: int, blocks: Sequence[Block]) -> None:
        """Refuse, before training, what it, or the rule inside, could not combine in any round.

        Args:
            num_clients: Of the smallest round.
            blocks: Of the model's parameters.

        Raises:
            ConfigurationError: With what to type instead.
        """
        inner = getattr(self, "rule", None)
        if isinstance(inner, Aggregator):
            inner.check(num_clients, blocks)

    @abstractmethod
    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:
        """Combine the updates.

        Args:
            updates: Rows ``local - global``, finite, ``(clients, params)``, at least one.
            gram: ``updates.gram()``, ``(clients, clients)`` float64 on the CPU.
            cohort: Ids, weights, losses and the address of this round's randomness.
            state: What this rule returned in the round before; empty at first.
        """


@dataclass(frozen=True)
class GramRule(Aggregator):
    """A rule that gives coefficients: the update is ``c @ U``.

    Attributes:
        rescale: Length of the update: ``none`` leaves what the rule gives, ``fedavg_norm`` makes it as long as the
            weighted mean, ``sum_to_one`` divides by the sum of the coefficients' absolute values. Rules that change the
            length can only be compared at one server learning rate with ``fedavg_norm``.
        exact: It looks at distances between updates, and gets a Gram matrix of products in float64: in one of float32
            two updates a ten-thousandth of their length apart are the same.
    """

    exact: ClassVar[bool] = False

    rescale: str

    def __post_init__(self) -> None:
        require_one_of("rescale", self.rescale, ("none", "fedavg_norm", "sum_to_one"))

    @abstractmethod
    def coefficients(self, gram: Tensor, cohort: Cohort) -> Tensor:
        """Return c, ``(clients,)`` float64, before any rescaling."""

    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:  # noqa: ARG002
        """Solve for the coefficients, combine; see :meth:`Aggregator.__call__`."""
        gram = updates.exact_gram() if self.exact else gram
        coefficients = rescaled(self.coefficients(gram, cohort), gram, cohort.weights, self.rescale)
        return Aggregate(updates.combine(coefficients), coefficients)


@dataclass(frozen=True)
class MixingRule(GramRule):
    """A rule that bends updates towards each other: it gives C, and the aggregate is ``(weights^T C) U``.

    Bending commutes with positive weights (of all rules here that give a C), so they enter last.
    """

    @abstractmethod
    def mix(self, gram: Tensor, cohort: Cohort) -> Tensor:
        """Return C, ``(clients, clients)`` float64; the identity where nothing is to be bent."""

    def coefficients(self, gram: Tensor, cohort: Cohort) -> Tensor:
        """Return ``weights^T C``, ``(clients,)``."""
        return cohort.weights @ self.mix(gram, cohort)

    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:  # noqa: ARG002
        """Mix, weigh, combine; see :meth:`Aggregator.__call__`."""
        mixing = self.mix(gram, cohort)
        coefficients = cohort.weights @ mixing
        if self.rescale != "none":
            coefficients = rescaled(coefficients, gram, cohort.weights, self.rescale)
        return Aggregate(updates.combine(coefficients), coefficients, mixing)


class CoordinateRule(Aggregator):
    """A rule that looks at every coordinate by itself and needs the rows, not their Gram matrix."""

    uses_weights = False
    needs = "coordinates"

    @abstractmethod
    def reduce(self, values: Tensor, weights: Tensor) -> Tensor:
        """Reduce ``(clients, columns)``, float32 or wider, to ``(columns,)``; weights ``(clients,)`` of that type."""

    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:  # noqa: ARG002
        """Reduce chunk by chunk, so that the extra memory stays a few percent; see :meth:`Aggregator.__call__`."""
        rows = updates.rows
        dtype = torch.promote_types(rows.dtype, torch.float32)
        width = max(4096, rows.shape[1] // 100)
        weights = cohort.weights.to(rows.device, dtype)
        starts = range(0, rows.shape[1], width)
        return Aggregate(
            torch.cat([self.reduce(rows[:, start : start + width].to(dtype), weights) for start in starts])
        )


def rescaled(coefficients: Tensor, gram: Tensor, weights: Tensor, how: str) -> Tensor:
    """Return the coefficients with the length that ``rescale`` asks for; see :class:`GramRule`.

    With ``fedavg_norm`` an update too short to be told from rounding becomes zero rather than blown-up noise.

    Args:
        coefficients: ``(clients,)`` or ``(groups, clients)``.
        gram: Of the same rows, ``(clients, clients)`` or ``(groups, clients, clients)``.
        weights: Of the mean to compare with, ``(clients,)``.
        how: ``none``, ``fedavg_norm`` or ``sum_to_one``.
    """
    if how == "none":
        return coefficients
    if how == "sum_to_one":
        total = coefficients.abs().sum(-1, keepdim=True)
        return coefficients / torch.where(total > 0, total, 1.0)
    norms = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    terms = (coefficients.abs() * norms).sum(-1).square().sum()
    squared = torch.einsum("...i,...ij,...j->...", coefficients, gram, coefficients).sum()
    if squared <= len(weights) * RESOLUTION * terms:
        return torch.zeros_like(coefficients)
    wanted = torch.einsum("i,...ij,j->...", weights, gram, weights).sum().clamp_min(0)
    return coefficients * (wanted / squared).sqrt()


def require(satisfied: bool, key: str, expected: str, found: object) -> None:
    """Raise ConfigurationError, in the config's own words, unless a setting is as expected."""
    if not satisfied:
        raise ConfigurationError(f"aggregator.{key} must be {expected}, got {found!r}")


def require_one_of(key: str, found: str, allowed: tuple[str, ...]) -> None:
    """Raise ConfigurationError unless a setting is one of the allowed words."""
    require(found in allowed, key, f"one of {', '.join(allowed)}", found)
