"""Local training: every client trains a model of its own and nothing is exchanged, the floor of any comparison."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedgh.algorithm.partial import PartialPersonalization
from fedgh.core.updates import Block


@dataclass(frozen=True, kw_only=True)
class LocalOnly(PartialPersonalization):
    """Train each client from its own last parameters and running statistics; nothing travels.

    The global model stays the initial one, updates are zero, and so is whatever an aggregator makes of them: look at
    the personal models. A client trains in the rounds that it is drawn for, so the budget is the methods' beside it:
    a share of ``fraction`` of the rounds, ``local_epochs`` each; ``fraction=1`` lets everybody train in every round.

    Reference:
        McMahan et al.: "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
        algorithm 1, ClientUpdate without the server; the "local" of personalization papers.
    Departures:
        None; optimizer state is as good as new at each visit, as in the common libraries.
    """

    own_buffers: ClassVar[bool] = True

    def own_names(self, blocks: Sequence[Block]) -> Iterable[str]:  # noqa: ARG002
        """Return a pattern that fits every parameter."""
        return ("*",)
