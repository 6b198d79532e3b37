"""FedRoD: a generic head that all classes count alike for, and a personal one that adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from fedgh.algorithm.base import Batch, require
from fedgh.algorithm.own_tensors import OwnSteps
from fedgh.core.errors import ConfigurationError
from fedgh.core.forward import Forward
from fedgh.core.types import ClientState, GlobalModel, ServerState, Start
from fedgh.core.updates import Block, columns_of

if TYPE_CHECKING:
    from fedgh.client.view import ClientView

NEVER = -1e9
"""Log of a count of zero: finite, so that nothing multiplies it to NaN."""


@dataclass(frozen=True, kw_only=True)
class FedRoD(OwnSteps):
    """Train body and head on the balanced softmax, and each client's second head P on what they leave.

    Body and head G minimize the cross-entropy of ``z_c + gamma log n_kc``, n_kc the client's training examples of class
    c. P, linear like G, minimizes that of ``z + P(features)``, with z and features before the step and held fixed, so
    that its loss reaches neither body nor G. A client predicts by ``z + P(features)``, the current body and G with its
    own P, and without the counts; that is one model with the head ``G + P``. The global model has G alone. With
    ``gamma: 0`` the global model is FedAvg's to the bit.

    Args:
        gamma: Exponent of the counts, >= 0; 1.
        absent_class: What a class counts that a client has none of: ``zero``, and it leaves the softmax, or ``one``.
        personal_lr: Step size of P, > 0; null for the local one.

    Reference:
        Chen, Chao: "On Bridging Generic and Personalized Federated Learning for Image Classification", ICLR 2022,
        FedRoD (linear). The authors published no code; two reimplementations were compared with.
    Departures:
        P begins as the initial G, also of a client that has never taken part. No hypernetwork makes P. P takes plain
        steps, without momentum and weight decay.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"head", "classification"})

    gamma: float
    absent_class: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.gamma >= 0, "gamma", "0 (FedAvg) or more; 1 in the paper", self.gamma)
        require(self.absent_class in ("zero", "one"), "absent_class", "zero or one", self.absent_class)

    def first(self, server: ServerState, blocks: Sequence[Block]) -> ClientState:
        """Return the initial head, ``(head params,)``.

        Raises:
            ConfigurationError: If the model's head is not one linear layer.
        """
        names = {block.name for block in blocks if block.name.startswith("head.")}
        if not {"head.weight"} <= names <= {"head.weight", "head.bias"}:
            raise ConfigurationError(
                f"algorithm=fedrod adds a linear head to a linear one, and this model's is {', '.join(sorted(names))}; "
                "take a model whose `head` is one nn.Linear, such as model=mlp"
            )
        return {"head": server.params[columns_of(blocks, ["head.*"]).to(server.params.device)]}

    def prepare(self, client: ClientView) -> Start:
        """Start with the logarithm of the class counts, ``(classes,)``."""
        start, counts = super().prepare(client), client.label_counts
        prior = self.gamma * counts.clamp(min=1).to(start.params).log()
        if self.absent_class == "zero" and self.gamma > 0:
            prior = prior.masked_fill(counts == 0, NEVER)
        return replace(start, state={**start.state, "prior": prior})

    def local_loss(
        self,
        batch: Batch,
        forward: Forward,
        params: Tensor,
        global_params: Tensor,  # noqa: ARG002
        state: ClientState,
    ) -> Tensor:
        """Return the balanced softmax's cross-entropy."""
        inputs, targets = batch
        outputs, _ = forward(params, inputs)
        return forward.task.loss(outputs + state["prior"], targets)

    def local_gradient(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> tuple[Tensor, Tensor, ClientState]:
        """Step P, and return the gradient of body and G."""
        inputs, targets = batch
        with forward.same_draws():
            outputs, features = (tensor.detach() for tensor in forward.frozen(params, inputs))
        own, _ = forward.gradients(
            lambda head: forward.task.loss(outputs + _linear(head, features, forward.blocks), targets),
            state["head"].detach(),
        )
        gradient, loss, _ = super().local_gradient(batch, forward, params, global_params, state)
        return gradient, loss, {**state, "head": state["head"] - state["lr"] * own}

    def personal(self, client: ClientView) -> GlobalModel:
        """Return the current model with the client's head added to its own."""
        params = client.received.params
        head = columns_of(client.model.blocks, ["head.*"]).to(params.device)
        return replace(client.received, params=params.masked_scatter(head, params[head] + self.own(client)["head"]))


def _linear(head: Tensor, features: Tensor, blocks: Sequence[Block]) -> Tensor:
    """Apply a head given as its columns, ``(head params,)``, in their order."""
    shapes = {block.name: block.shape for block in blocks if block.name.startswith("head.")}
    parts = dict(zip(shapes, torch.split(head, [shape.numel() for shape in shapes.values()]), strict=True))
    return linear(features, parts["head.weight"].view(shapes["head.weight"]), parts.get("head.bias"))
