"""DANN: features that a discriminator cannot tell the domains by; the base of what aligns domains."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fedgh.algorithm.base import Batch, require
from fedgh.algorithm.partial import columns
from fedgh.algorithm.two_losses import TwoLosses
from fedgh.core.errors import ConfigurationError
from fedgh.core.forward import Forward
from fedgh.core.types import ClientState, ServerState, Start
from fedgh.core.updates import Block
from fedgh.task.adaptation import SOURCE
from fedgh.task.base import PADDING

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class Alignment(TwoLosses):
    """Minimize the task's loss on labelled examples plus ``trade_off`` times a term that aligns the domains.

    What reaches the features through the aligning term is reversed and multiplied by
    ``c(t) = 2 / (1 + exp(-10 t / reversal_rounds)) - 1`` in round t, from 0. Harmonized (``harmonize``) are the
    gradients on all parameters but those of :attr:`added`.

    Args:
        trade_off: Strength of the aligning term, >= 0; 0 trains on the source alone.
        reversal_rounds: T, > 0; the number of rounds is a good choice.
    """

    added: ClassVar[str]
    """The part of the model that only the aligning term reads."""

    trade_off: float
    reversal_rounds: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.trade_off >= 0, "trade_off", "0 or more; 1 in the paper", self.trade_off)
        require(self.reversal_rounds > 0, "reversal_rounds", "positive, such as num_rounds", self.reversal_rounds)

    @abstractmethod
    def alignment(
        self, forward: Forward, params: Tensor, outputs: Tensor, features: Tensor, domains: Tensor, reversal: Tensor
    ) -> Tensor:
        """Return the aligning term, a scalar.

        Args:
            forward: Whose parts may be run.
            params: ``(params,)``.
            outputs: Logits, ``(B, classes)``.
            features: ``(B, F)``.
            domains: ``(B,)``, 0 for the source, 1 for the target, ``PADDING`` for rows that only fill up a batch.
            reversal: c(t).
        """

    def prepare(self, client: ClientView) -> Start:
        """Start from the received model, with this round's c at hand."""
        received = client.received
        c = 2 / (1 + math.exp(-10 * client.round_index / self.reversal_rounds)) - 1
        return Start(received.params, received.buffers, {"reversal": received.params.new_tensor(c)})

    def terms(
        self,
        batch: Batch,
        forward: Forward,
        params: Tensor,
        global_params: Tensor,  # noqa: ARG002
        state: ClientState,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the loss of the task and the aligning term."""
        inputs, targets = batch
        outputs, features = forward(params, inputs)
        loss = self.supervised(forward, params, outputs, features, targets)
        if self.trade_off == 0:
            return loss, None
        aligned = self.alignment(forward, params, outputs, features, targets[..., 1], state["reversal"])
        return loss, self.trade_off * aligned

    def supervised(
        self,
        forward: Forward,
        params: Tensor,  # noqa: ARG002
        outputs: Tensor,
        features: Tensor,  # noqa: ARG002
        targets: Tensor,
    ) -> Tensor:
        """Return the loss on labelled examples, a scalar; by default that of the task."""
        return forward.task.loss(outputs, targets)

    def compared(self, blocks: Sequence[Block]) -> Tensor:
        """Return the columns of the network itself."""
        return ~columns(tuple(blocks), (f"{self.added}.*",))


@dataclass(frozen=True, kw_only=True)
class Dann(Alignment):
    """Align domains by a discriminator on features: it minimizes ``mean BCE(D(f), domain)``, they maximize it times c.

    Reference:
        Ganin et al.: "Domain-Adversarial Training of Neural Networks", JMLR 2016, equations (9), (14) and section 5.2.2
        for c(t); labels (source 1) and weights as in thuml/CDAN.
    Departures:
        c is that of the round, theirs that of the step. A client whose examples are of one domain aligns with the
        others through the averaged discriminator alone.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"adaptation", "discriminator"})
    added: ClassVar[str] = "discriminator"
    per_class: ClassVar[bool] = False
    """Whether the discriminator reads a number per class and feature."""

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:
        """Check that the discriminator reads what it will be given.

        Raises:
            ConfigurationError: If it does not.
        """
        shapes = {block.name: block.shape for block in blocks}
        classes, width = shapes["head.weight"]
        if shapes["discriminator.0.weight"][1] != width * (classes if self.per_class else 1):
            reads = "products" if self.per_class else "features"
            raise ConfigurationError(
                f"the discriminator does not read what {type(self).__name__} gives it; type model.reads={reads}"
            )
        return super().initialize(server, blocks, num_examples, seed)

    def alignment(
        self, forward: Forward, params: Tensor, outputs: Tensor, features: Tensor, domains: Tensor, reversal: Tensor
    ) -> Tensor:
        """Return the discriminator's mean loss over the rows that count."""
        logits = forward.part(self.added, params, self.read(outputs, reverse(features.flatten(1), reversal)))[:, 0]
        losses = binary_cross_entropy_with_logits(logits, (domains == SOURCE).to(logits), reduction="none")
        weights = self.weigh(outputs, domains, reversal)
        return (weights * losses).sum() / weights.sum().clamp_min(1e-12)

    def read(self, outputs: Tensor, features: Tensor) -> Tensor:  # noqa: ARG002
        """Return what the discriminator reads, ``(B, ...)``; by default the features."""
        return features

    def weigh(self, outputs: Tensor, domains: Tensor, reversal: Tensor) -> Tensor:  # noqa: ARG002
        """Return the weight of each row, ``(B,)``; 0 for those that only fill up a batch."""
        return (domains != PADDING).to(outputs)


def reverse(values: Tensor, strength: Tensor | float) -> Tensor:
    """Return the values themselves, whose gradient is multiplied by ``-strength``."""
    return (1 + strength) * values.detach() - strength * values
