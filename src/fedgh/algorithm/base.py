"""The contract of an algorithm: what clients compute and send, how much each counts, and what the server remembers.

A round::

    server --broadcast--> client: prepare, local steps, report --(update, message)--> server: client_weights,
                                                                                      aggregate, step, conclude

An algorithm is a set of pure functions whose defaults are FedAvg; a method overrides the ones it needs, and the engine
leaves out what nobody overrides. How updates are combined (``aggregator``) and how the server moves
(``server_optimizer``) are separate choices: they see the update rows as ``report`` leaves them.
"""

# ruff: noqa: ARG002 - hooks are given what their overrides read
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fedgh.algorithm.contract import check_hooks
from fedgh.algorithm.momentum import accumulation as accumulation
from fedgh.algorithm.momentum import plain_momentum as plain_momentum
from fedgh.core.errors import ConfigurationError
from fedgh.core.forward import Forward
from fedgh.core.types import (
    Broadcast,
    ClientState,
    CohortResult,
    GlobalModel,
    Message,
    Phase,
    Report,
    ServerState,
    Start,
    Trained,
)
from fedgh.core.updates import Block
from fedgh.core.updates import columns_of as columns_of

if TYPE_CHECKING:
    from fedgh.client.view import ClientView

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
Batch = tuple[Tensor, Tensor]
"""Normalized inputs ``(B, *shape)`` and their targets ``(B,)`` or ``(B, tasks)``."""
Predictor = Callable[[Tensor], Tensor]
"""Normalized inputs ``(B, *shape)`` to outputs, for personal models that are more than a forward pass."""


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """Plain local training, every client counted by its number of examples; the base of every method.

    Args:
        optimizer: Builds the local optimizer from the parameters. It is as good as new for each client and round.
        local_epochs: Passes over a client's data in a round, E.
        batch_size: Examples per local step, B.
        weights: p_k, how much a client counts: ``examples`` (n_k / n) or ``uniform`` (the same for each). Runs stored
            before the setting existed go on with its default.

    Attributes:
        requires: What a run must have for the method to mean anything, checked before it starts: ``head`` (a model
            whose parameters named ``head.*`` are the classifier), ``classification``, ``several_targets``, ``clock``
            and others of :mod:`fedgh.federation.parts`.
        own_buffers: Running statistics stay with the client: they neither travel nor are averaged.
        may_be_padded: Whether the vectorized executor may try if padded batches change nothing; not where a step
            cuts its batch.
        one_model: Of several global models a client is sent one; else all of them.
    """

    requires: ClassVar[frozenset[str]] = frozenset()
    own_buffers: ClassVar[bool] = False
    may_be_padded: ClassVar[bool] = True
    one_model: ClassVar[bool] = False

    optimizer: OptimizerFactory
    local_epochs: int
    batch_size: int
    weights: str = "examples"

    def __post_init__(self) -> None:
        check_hooks(type(self), Algorithm, HOOKS)
        for name in ("local_epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"algorithm.{name} must be a positive integer, got {value!r}; try 5 or 64")
        require(self.weights in ("examples", "uniform"), "weights", "examples (n_k / n) or uniform", self.weights)
        try:
            self.optimizer_settings()
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"algorithm.optimizer cannot be built: {error}") from error

    # ---- a local step: pure, so that the same text runs one client or many stacked ones ----

    def local_loss(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> Tensor:
        """Return the loss of one batch, a scalar; by default the task's.

        Args:
            batch: Inputs and targets.
            forward: ``forward(params, inputs) -> (outputs, features)``, see :class:`~fedgh.core.forward.Forward`.
            params: The client's parameters theta, ``(params,)``; the loss is differentiated in them.
            global_params: The received parameters w, ``(params,)``, a detached copy.
            state: What :meth:`prepare` gave and earlier steps left.
        """
        inputs, targets = batch
        outputs, _ = forward(params, inputs)
        return forward.task.loss(outputs, targets)

    def local_gradient(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> tuple[Tensor, Tensor, ClientState]:
        """Return the direction of a local step ``(params,)``, the loss, and the state after it.

        For methods that correct the gradient, take several, or take it elsewhere. By default the gradient of
        :meth:`local_loss`, which the engine takes by itself where nobody overrides this. ``state`` must be returned as
        a new mapping, never written to.
        """
        gradient, loss = forward.gradients(lambda p: self.local_loss(batch, forward, p, global_params, state), params)
        return gradient, loss, state

    def after_step(self, before: Tensor, params: Tensor, state: ClientState) -> Tensor:
        """Return the parameters after an optimizer step ``before -> params``: projections, masks, proximal steps.

        A masked *gradient* does not freeze a parameter, which momentum and weight decay still move; this does.
        """
        return params

    # ---- a client, once a round ----

    def phases(self, blocks: Sequence[Block]) -> tuple[Phase, ...]:
        """Return the parts of local training, in order; by default one of all parameters."""
        return (Phase(epochs=self.local_epochs),)

    def prepare(self, client: ClientView) -> Start:
        """Return where a client starts, before its first step; by default at the model it was sent."""
        return Start(client.received.params, client.received.buffers, client.state)

    def report(self, client: ClientView, trained: Trained) -> Report:
        """Return what a client keeps and sends beside its update, after its last step; by default nothing new."""
        return Report(client.state)

    def personal(self, client: ClientView) -> GlobalModel | Predictor | None:
        """Return the model that a client would use now, or a predictor; None if that is the global one.

        A client that has never taken part has an empty state, and uses its initial personal part.
        """
        return None

    def fine_tuning(self, epochs: int | None) -> Algorithm | None:
        """Return how a client makes a model for itself when it is evaluated, see :mod:`fedgh.algorithm.fine_tuning`.

        None for plain training of what it would use. Updates of what is returned are the models themselves.

        Args:
            epochs: ``evaluation.fine_tune_epochs``, 1 or more; None for what the method is published with.
        """
        return None

    def shared(self, blocks: Sequence[Block]) -> Tensor | None:
        """Return which parameters travel, ``(params,)`` bool; None for all. The others are zero in every update."""
        return None

    # ---- the server ----

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:
        """Return the state before round 0: memory, further global models.

        Args:
            server: The model as it was initialized.
            blocks: Name and columns of every parameter.
            num_examples: n_k of all clients, ``(N,)`` float64, whoever will take part.
            seed: Of the experiment.
        """
        return server

    def broadcast(self, server: ServerState, client_ids: Sequence[int]) -> Broadcast:
        """Return what the clients of the round are sent beside the model, or instead of it."""
        return Broadcast()

    def client_weights(self, weights: Tensor, result: CohortResult) -> Tensor:
        """Return how much each client counts in the aggregate, not negative; the sum need not be one.

        Args:
            weights: p_k as shares of the participants, see :meth:`client_shares`, ``(clients,)`` float64.
            result: What the cohort reported, for instance ``local_steps`` or ``messages``, and the server's ``memory``.
        """
        return weights

    def group(self, result: CohortResult) -> Tensor | None:
        """Return which global model each update is for, ``(clients,)`` int64; None: there is one."""
        return None

    def conclude(self, before: ServerState, after: ServerState, result: CohortResult) -> ServerState:
        """Return the state after a round, ``after`` being what aggregate and server optimizer made of ``before``."""
        return after

    def metrics(self, server: ServerState, result: CohortResult) -> dict[str, float]:
        """Return numbers of a round for its row of metrics, named ``algorithm/...``: loss weights, shares, choices.

        Args:
            server: The state after the round.
            result: What the cohort reported.
        """
        return {}

    def complete(self, server: ServerState, blocks: Sequence[Block], ask: Ask, seed: int) -> ServerState:
        """Return the state after the last round, for methods with a phase after training (CCVR).

        Args:
            server: The state after the last round.
            blocks: Name and columns of every parameter.
            ask: Puts a question to every client, who answers from its own data; yields one answer after the other.
            seed: Of the experiment.
        """
        return server

    # ---- for methods and the engine ----

    def client_shares(self, num_examples: Tensor) -> Tensor:
        """Return p_k, which sum to one, of clients with so many examples, ``(clients,)`` float64; see ``weights``."""
        counts = torch.ones_like(num_examples) if self.weights == "uniform" else num_examples
        return counts / counts.sum()

    def overrides(self, hook: str) -> bool:
        """Tell whether a method has its own version of a hook."""
        return getattr(type(self), hook) is not getattr(Algorithm, hook)

    @property
    def own_client_hooks(self) -> bool:
        """Whether it handles what clients were sent and keep, and so might break a rule of the contract."""
        return any(self.overrides(hook) for hook in ("prepare", "local_gradient", "after_step", "report"))

    def optimizer_settings(self) -> dict[str, Any]:
        """Return the local optimizer's settings (``lr``, ``momentum``, ...), with its class name under ``name``."""
        optimizer = self.optimizer([nn.Parameter(torch.zeros(1))])
        return {**optimizer.defaults, "name": type(optimizer).__name__}


_FINAL = ("client_shares", "overrides", "optimizer_settings")
HOOKS = tuple(
    name
    for name, member in vars(Algorithm).items()
    if callable(member) and not name.startswith("_") and name not in _FINAL
)
"""Names of what a method may override."""

Ask = Callable[[Callable[["ClientView"], Message]], Iterator[tuple[int, Message]]]
"""``ask(question)`` yields (client id, answer), ascending, so that no two answers need memory at a time."""


def require(satisfied: bool, key: str, expected: str, found: object) -> None:
    """Raise ConfigurationError, in the config's own words, unless a setting is as expected."""
    if not satisfied:
        raise ConfigurationError(f"algorithm.{key} must be {expected}, got {found!r}")
