"""Learning rates that change over the rounds: a factor by round, and nothing to remember."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from fedgh.core.errors import ConfigurationError


class LRSchedule(Protocol):
    """What a learning rate is multiplied with; a pure function of the round, so that a resumed run agrees."""

    def __call__(self, round_index: int) -> float:
        """Return the factor in round t, from 0; finite and not negative."""
        ...


@dataclass(frozen=True)
class Constant:
    """1 in every round."""

    def __call__(self, round_index: int) -> float:  # noqa: ARG002
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class Step:
    """``factor ** (t // every)``.

    Attributes:
        factor: In (0, 1].
        every: Rounds between two cuts, positive.
    """

    factor: float
    every: int

    def __post_init__(self) -> None:
        require_factor(self.factor)
        require_rounds("every", self.every)

    def __call__(self, round_index: int) -> float:
        """Return the factor in round t, from 0."""
        return float(self.factor ** (round_index // self.every))


@dataclass(frozen=True)
class Exponential:
    """``factor ** t``.

    Attributes:
        factor: In (0, 1].
    """

    factor: float

    def __post_init__(self) -> None:
        require_factor(self.factor)

    def __call__(self, round_index: int) -> float:
        """Return the factor in round t, from 0."""
        return float(self.factor**round_index)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 in round 0 to ``floor`` in round ``rounds``; ``floor`` from then on.

    Attributes:
        rounds: Positive; the run's ``num_rounds``, as a rule. Its own number, so that a run that is made longer later
            has trained with the same rates until then.
        floor: In [0, 1].
    """

    rounds: int
    floor: float

    def __post_init__(self) -> None:
        require_rounds("rounds", self.rounds)
        if not 0 <= self.floor <= 1:
            raise ConfigurationError(f"floor of a learning rate's schedule must be in [0, 1], got {self.floor}")

    def __call__(self, round_index: int) -> float:
        """Return the factor in round t, from 0."""
        share = min(1.0, round_index / self.rounds)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class InverseSqrt:
    """``sqrt(every / (every + t))``, which falls as 1 over the root of t.

    Attributes:
        every: Rounds, positive; after three times as many the rate is half of what it was.
    """

    every: int

    def __post_init__(self) -> None:
        require_rounds("every", self.every)

    def __call__(self, round_index: int) -> float:
        """Return the factor in round t, from 0."""
        return math.sqrt(self.every / (self.every + round_index))


def require_factor(factor: float) -> None:
    """Check the factor of a schedule."""
    if not 0 < factor <= 1:
        raise ConfigurationError(f"factor of a learning rate's schedule must be above 0, at most 1, got {factor}")


def require_rounds(name: str, rounds: int) -> None:
    """Check a number of rounds of a schedule."""
    if rounds < 1:
        raise ConfigurationError(f"{name} of a learning rate's schedule must be 1 round or more, got {rounds}")
