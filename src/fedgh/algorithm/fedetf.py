"""FedETF: a fixed simplex as classifier, to which all clients align their features; then a personal phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import sqrt
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedgh.algorithm.base import Algorithm, Batch, columns_of, require
from fedgh.algorithm.fine_tuning import say_the_model
from fedgh.core.errors import ConfigurationError
from fedgh.core.forward import Forward
from fedgh.core.types import ClientState, Phase, Report, ServerState, Start, Trained
from fedgh.core.updates import Block

if TYPE_CHECKING:
    from fedgh.client.view import ClientView

PROTOTYPE_LR, PROJECTION_LR, EPOCHS = 0.1, 0.05, 3
"""Of the personal phase, as in the release: rates of its two parts, and epochs of each at a time."""


@dataclass(frozen=True, kw_only=True)
class FedETF(Algorithm):
    """Minimize the balanced softmax loss ``-log(n_y e^(z_y) / sum_c n_c e^(z_c))`` of ``z = s V^T f``.

    V is the simplex equiangular tight frame of C unit vectors at cosines ``-1 / (C - 1)``, fixed; f is the projected
    feature at length one, s a learnt scale, n_c the client's examples of class c, at least 1. The model's linear head
    is the projection, of C outputs u as in the release, and the frame is ``sqrt(C / (C - 1)) (I - 1/C)``: f is u less
    its mean, at length one, and the largest z is the largest u, so the model predicts as it is (its test loss is not
    the method's). s needs no parameter of its own either: it is the sum of the head's biases over sqrt(C), which moves
    no prediction and which a step moves as it would move s. All of it travels and may be harmonized.

    The personal phase is the published fine-tuning, ``fine_tuned/test/...`` after the last round: E epochs as before,
    then ``cycles`` times 3 epochs of the prototypes V alone and 3 of the projection alone, on the plain loss with s at
    rest; the body rests. ``evaluation.fine_tune_epochs`` trains so many epochs as before instead, without cycles.

    Args:
        scale: What s begins with, > 0; 1 in the release, 10 for its small networks.
        cycles: Of the personal phase; 20 in the release, which are 120 epochs.

    Reference:
        Li et al.: "No Fear of Classifier Biases: Neural Collapse Inspired Federated Learning with Synthetic and Fixed
        Classifier", ICCV 2023, and the released code.
    Departures:
        The frame is not rotated at random, which the projection makes up for; the part of u along (1, .., 1), which no
        prototype sees, does not count in its length. In the personal phase the projection has the local optimizer's
        momentum and decay (the release: 0.9, 5e-4), and momentum begins anew with each of its parts. It is evaluated on
        test data like the client's (the release: on 30 % of its own).
    """

    requires: ClassVar[frozenset[str]] = frozenset({"head", "classification"})

    scale: float
    cycles: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.scale > 0, "scale", "positive; 1 or 10 in the authors' code", self.scale)
        require(isinstance(self.cycles, int) and self.cycles >= 0, "cycles", "a whole number, 0 or more", self.cycles)

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:  # noqa: ARG002
        """Set s, by adding the same to all biases."""
        _, bias = projection(blocks)
        params = server.params.clone()
        params[bias] += self.scale / sqrt(len(params[bias])) - params[bias].mean()
        return replace(server, params=params)

    def prepare(self, client: ClientView) -> Start:
        """Start from the received model, with the logarithms of its label counts at hand, ``(classes,)``."""
        counts = client.label_counts.clamp(min=1).to(client.received.params)
        return Start(client.received.params, client.received.buffers, {"log_counts": counts.log()})

    def local_loss(
        self,
        batch: Batch,
        forward: Forward,
        params: Tensor,
        global_params: Tensor,  # noqa: ARG002
        state: ClientState,
    ) -> Tensor:
        """Return the balanced softmax loss."""
        inputs, targets = batch
        directions = aligned(forward(params, inputs)[0])
        size = len(state["log_counts"])
        logits = scale_of(params, forward.blocks) * sqrt(size / (size - 1)) * directions
        return forward.task.loss(logits + state["log_counts"], targets)

    def fine_tuning(self, epochs: int | None) -> Algorithm:
        """Return the personal phase."""
        settings = {**vars(self), "cycles": self.cycles if epochs is None else 0}
        return _PersonalPhase(**{**settings, "local_epochs": self.local_epochs if epochs is None else epochs})


@dataclass(frozen=True, kw_only=True)
class _PersonalPhase(FedETF):
    """As before; then prototypes and projection in turn. Prototypes are in the state, as the model has no place."""

    def phases(self, blocks: Sequence[Block]) -> tuple[Phase, ...]:
        head = columns_of(blocks, ["head.*"])
        prototypes = Phase(epochs=EPOCHS, columns=torch.zeros_like(head))
        cycle = (prototypes, Phase(epochs=EPOCHS, columns=head, lr=PROJECTION_LR))
        return (Phase(epochs=self.local_epochs), *cycle * self.cycles)

    def prepare(self, client: ClientView) -> Start:
        start = super().prepare(client)
        size, zero = len(start.state["log_counts"]), start.params.new_zeros(())
        frame = sqrt(size / (size - 1)) * (torch.eye(size).to(start.params) - 1 / size)
        epoch = client.num_steps / (self.local_epochs + 2 * EPOCHS * self.cycles)
        own = {"prototypes": frame, "scale": zero, "taken": zero, "epoch": zero + epoch}
        return replace(start, state={**start.state, **own})

    def local_gradient(
        self,
        batch: Batch,
        forward: Forward,
        params: Tensor,
        global_params: Tensor,  # noqa: ARG002
        state: ClientState,
    ) -> tuple[Tensor, Tensor, ClientState]:
        inputs, targets = batch
        cycles = state["taken"] - self.local_epochs * state["epoch"]  # steps taken of them
        before, steps = cycles < 0, EPOCHS * state["epoch"]
        turn = ~before & (torch.remainder(cycles, 2 * steps) < steps)  # of the prototypes
        first = cycles < 0.5  # s comes to rest as the last ordinary step left it
        at_rest = torch.where(first, scale_of(params.detach(), forward.blocks), state["scale"])
        frame, log_counts = state["prototypes"], torch.where(before, state["log_counts"], 0.0)

        def loss(theta: Tensor, prototypes: Tensor) -> Tensor:
            scale = torch.where(before, scale_of(theta, forward.blocks), at_rest)
            logits = scale * aligned(forward(theta, inputs)[0]) @ prototypes
            return forward.task.loss(logits + log_counts, targets)

        with forward.same_draws():
            gradient, value = forward.gradients(lambda theta: loss(theta, frame), params)
        directions = aligned(forward.frozen(params.detach(), inputs)[0].detach())
        slope, _ = forward.gradients(
            lambda v: forward.task.loss(at_rest * directions @ v.view(frame.shape) + log_counts, targets),
            frame.reshape(-1),
        )
        moved = frame - PROTOTYPE_LR * turn * slope.view(frame.shape)
        return gradient, value, {**state, "prototypes": moved, "scale": at_rest, "taken": state["taken"] + 1}

    def report(self, client: ClientView, trained: Trained) -> Report:
        """Say the model whose head is the product of projection and prototypes: it predicts as both do."""
        weight, bias = projection(client.model.blocks)
        prototypes = trained.state["prototypes"]
        centred = prototypes.T - prototypes.T.mean(1, keepdim=True)  # V^T (I - 1/C)
        params = trained.params.clone()
        params[weight] = (centred @ params[weight].view(len(centred), -1)).reshape(-1)
        params[bias] = centred @ params[bias]
        say_the_model(params, trained)
        return Report()


def aligned(outputs: Tensor) -> Tensor:
    """Return outputs ``(B, classes)`` less their mean, at length one."""
    return normalize(outputs - outputs.mean(1, keepdim=True), dim=1)


def scale_of(params: Tensor, blocks: Sequence[Block]) -> Tensor:
    """Return s, a scalar."""
    bias = params[projection(tuple(blocks))[1]]
    return bias.sum() / sqrt(len(bias))


@lru_cache(maxsize=32)
def _projection(blocks: tuple[Block, ...]) -> tuple[slice, slice]:
    head = {block.name: slice(block.start, block.stop) for block in blocks if block.name.startswith("head.")}
    if head.keys() != {"head.weight", "head.bias"}:
        raise ConfigurationError(
            "algorithm=fedetf projects with a head that is one linear layer with a bias, and this model's has "
            f"{', '.join(head) or 'no parameter'}; choose another model, such as model=mlp"
        )
    return head["head.weight"], head["head.bias"]


def projection(blocks: Sequence[Block]) -> tuple[slice, slice]:
    """Return the columns of the head's weight and bias.

    Raises:
        ConfigurationError: If the head is not one linear layer with a bias.
    """
    return _projection(tuple(blocks))
