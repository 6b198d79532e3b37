"""The contract of a compressor: an update in, what arrives and its bytes out; and what clients do about what is lost.

Compression is between client and server, after ``Algorithm.report``: rules, cosines and the server see what arrives.
It concerns updates, not messages or running statistics, and of an update the parameters that travel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.core.errors import ConfigurationError

State = dict[str, Tensor]
FEEDBACK = ("none", "ef", "ef21", "econtrol")


@dataclass(frozen=True)
class Compressor(ABC):
    """Compresses updates, and remembers on the client what was lost; C is the compression, u the update.

    * ``none``: the server sees C(u).
    * ``ef`` (Seide et al., 2014; Stich et al., 2018): it sees C(e + u), and ``e <- e + u - C(e + u)``.
    * ``ef21`` (Richtarik et al., NeurIPS 2021): it sees ``h <- h + C(u - h)``, and keeps h of every client, too.
    * ``econtrol`` (Gao, Islamov, Stich, ICLR 2024): ``d = C(control e + u - h)``, ``e <- e + u - h - d``,
      ``h <- h + d``, and it sees h.

    All memory begins at zero. With a feedback the compression has to shrink (random-k does not scale up, quantization
    rounds to the nearest); without one it is unbiased where that is possible.

    Args:
        feedback: See above.
        control: Strength of the error in ``econtrol``, in (0, 1]; the others do not read it.

    Departures:
        The papers compress one gradient a round, here it is a client's update; who is absent keeps its memory, and the
        mean is over the participants, where EF21 and EControl have that of all h.
    """

    feedback: str
    control: float

    def __post_init__(self) -> None:
        require(self.feedback in FEEDBACK, "feedback", f"one of {', '.join(FEEDBACK)}", self.feedback)
        require(0 < self.control <= 1, "control", "above 0 and at most 1", self.control)

    @property
    @abstractmethod
    def identity(self) -> bool:
        """Whether nothing is compressed, so that updates arrive bit for bit."""

    @abstractmethod
    def compress(self, vector: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        """Return what arrives of a vector ``(d,)``, float32 or wider, a new tensor; and its bytes."""

    def send(self, update: Tensor, state: State, generator: torch.Generator) -> tuple[Tensor, State, int]:
        """Return what the server sees of an update ``(d,)``, what the client keeps, and the bytes sent.

        Args:
            update: u.
            state: What this returned when the client last took part; empty at first.
            generator: Of this client and round.
        """
        zero = torch.zeros_like(update)
        e, h = state.get("error", zero), state.get("sent", zero)
        if self.feedback == "ef":
            arrived, size = self.compress(e + update, generator)
            return arrived, {"error": e + update - arrived}, size
        if self.feedback == "ef21":
            change, size = self.compress(update - h, generator)
            return h + change, {"sent": h + change}, size
        if self.feedback == "econtrol":
            change, size = self.compress(self.control * e + update - h, generator)
            return h + change, {"error": e + update - h - change, "sent": h + change}, size
        arrived, size = self.compress(update, generator)
        return arrived, {}, size


def require(satisfied: bool, key: str, expected: str, found: object) -> None:
    """Raise ConfigurationError, in the config's own words, unless a setting is as expected."""
    if not satisfied:
        raise ConfigurationError(f"compressor.{key} must be {expected}, got {found!r}")


def kept_of(share: float, size: int) -> int:
    """Return how many numbers of ``size`` a share keeps: at least one, rounded to the nearest."""
    return min(size, max(1, round(share * size)))


def require_share(share: float) -> None:
    """Check ``compressor.share``."""
    require(0 < share <= 1, "share", "above 0 and at most 1 (everything); try 0.01", share)
