"""FedPAC: bodies drawn to common class features, and heads that the server mixes for each client."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fedgh.algorithm.base import Batch, require
from fedgh.algorithm.partial import PartialPersonalization
from fedgh.core.errors import ConfigurationError
from fedgh.core.forward import Forward
from fedgh.core.types import (
    Broadcast,
    ClientState,
    CohortResult,
    GlobalModel,
    Phase,
    Report,
    ServerState,
    Start,
    Trained,
)
from fedgh.core.updates import Block
from fedgh.task.base import PADDING

if TYPE_CHECKING:
    from fedgh.client.view import ClientView

LEAST = 1e-3
"""Shares of a head below this are left out."""


@dataclass(frozen=True, kw_only=True)
class FedPAC(PartialPersonalization):
    """Train the head, then the body with ``loss + lam MSE(z, g_y)``; mix a round's heads for each of its clients.

    g_y is the mean feature of class y over the clients of the last round, where nobody had that class the client's own
    before it trains; the term begins in the second round and is a mean over examples and feature dimensions. Bodies
    and mean features are averaged, features by class counts. The server, which has all heads of the round, gives client
    i the mixture ``sum_j a_j head_j``, a on the simplex where ``sum_j a_j^2 v_j + |sum_j a_j (h_i - h_j)|^2`` is least:
    ``h_j`` are a client's class means times class shares, with the received body, and v_j is their sampling variance.
    What a client has is a mixed head, which waits on the server and is sent with the next body; who has never taken
    part has the initial head.

    Args:
        lam: Strength of the alignment, >= 0; 1.
        head_epochs: Epochs of the head, before ``local_epochs`` of the body, >= 1; 1 before 5.
        head_lr: Rate of the head; null for the optimizer's. 0.1 in the authors' code, with momentum 0.5.
        body_lr: Rate of the body; likewise. 0.01.

    Reference:
        Xu, Tong, Huang: "Personalized Federated Learning with Feature Alignment and Classifier Collaboration", ICLR
        2023, algorithm 1, equations (5) to (10), and the released code.
    Departures:
        The release trains in evaluation mode, by accident; here in training mode. The weights a are solved for exactly
        (the release cuts small eigenvalues); shares below 1e-3 are left out, as there. ``trained/test/...`` are of the
        trained body under the mixed head.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"head", "classification"})

    lam: float
    head_epochs: int
    head_lr: float | None
    body_lr: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.lam >= 0, "lam", "0 or more; 1 in the authors' code", self.lam)
        fits = isinstance(self.head_epochs, int) and self.head_epochs >= 1
        require(fits, "head_epochs", "a positive integer, such as 1", self.head_epochs)
        for name in ("head_lr", "body_lr"):
            lr = getattr(self, name)
            require(lr is None or lr > 0, name, "positive, or null for algorithm.optimizer.lr", lr)

    def own_names(self, blocks: Sequence[Block]) -> Iterable[str]:  # noqa: ARG002
        """Return the head's."""
        return ("head.*",)

    def phases(self, blocks: Sequence[Block]) -> tuple[Phase, ...]:
        """Return the head's epochs and the body's."""
        head = self.own(blocks)
        return (
            Phase(self.head_epochs, columns=head, lr=self.head_lr),
            Phase(self.local_epochs, columns=~head, lr=self.body_lr),
        )

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:  # noqa: ARG002
        """Give everybody the initial head; no class has a mean feature yet.

        Raises:
            ConfigurationError: If the model's head is not one linear layer.
        """
        shapes = {block.name: block.shape for block in blocks if block.name.startswith("head.")}
        if not {"head.weight"} <= shapes.keys() <= {"head.weight", "head.bias"} or len(shapes["head.weight"]) != 2:
            raise ConfigurationError(
                f"algorithm=fedpac needs a head that is one linear layer, and this model's is {', '.join(shapes)}; "
                "take another model, such as model=mlp"
            )
        classes, width = shapes["head.weight"]
        head = server.params[self.own(blocks).to(server.params.device)]
        memory = {
            "heads": head.repeat(len(num_examples), 1),
            "features": server.params.new_zeros(classes, width),
            "known": server.params.new_zeros(classes),
        }
        return replace(server, memory=memory)

    def broadcast(self, server: ServerState, client_ids: Sequence[int]) -> Broadcast:
        """Send mean features, and to each client its head."""
        everyone = {name: server.memory[name] for name in ("features", "known")}
        return Broadcast(everyone, {k: {"head": server.memory["heads"][k]} for k in client_ids})

    def with_own_part(self, client: ClientView) -> GlobalModel:
        """Return the received body under the head that came with it."""
        params = client.received.params
        head = self.own(client.model.blocks).to(params.device)
        return replace(client.received, params=params.masked_scatter(head, client.message["head"]))

    def prepare(self, client: ClientView) -> Start:
        """Start with what the mixture of heads goes by, and the features that the body is drawn to."""
        model = self.with_own_part(client)
        sums, squares, counts = _sums(client, model.params, model.buffers)
        n, known = counts.sum(), client.message["known"]
        shares = sums / n
        own = sums / counts.clamp(min=1)[:, None]
        state = {
            "h": shares,
            "v": (squares / n - shares.square().sum()) / n,
            "wanted": torch.where(known[:, None] > 0, client.message["features"], own),
            "pull": self.lam * known.amax(),
        }
        return Start(model.params, model.buffers, state)

    def local_loss(
        self,
        batch: Batch,
        forward: Forward,
        params: Tensor,
        global_params: Tensor,  # noqa: ARG002
        state: ClientState,
    ) -> Tensor:
        """Return the task's loss with the alignment, which reaches no head."""
        inputs, targets = batch
        outputs, features = forward(params, inputs)
        real = targets != PADDING
        away = (features - state["wanted"][targets.clamp(min=0)]).square().mean(1) * real
        return forward.task.loss(outputs, targets) + state["pull"] * away.sum() / real.sum().clamp(min=1)

    def report(self, client: ClientView, trained: Trained) -> Report:
        """Send the head, h and v, and the sums of the trained body's features by class."""
        head = self.kept(client, trained)["own"]
        sums, _, counts = _sums(client, trained.params, trained.buffers)
        sent = {"head": head, "h": trained.state["h"], "v": trained.state["v"], "sums": sums, "counts": counts}
        return Report({}, sent)

    def conclude(self, before: ServerState, after: ServerState, result: CohortResult) -> ServerState:
        """Average the features, and mix a head for each client of the round."""
        sent, heads = result.messages, before.memory["heads"].clone()
        ids = list(result.client_ids)
        shares = mixing(sent["h"].flatten(1), sent["v"])
        heads[ids] = shares.to(heads) @ sent["head"]
        counts = sent["counts"].sum(0)
        features = sent["sums"].sum(0) / counts.clamp(min=1)[:, None]
        return replace(after, memory={"heads": heads, "features": features, "known": (counts > 0).to(features)})


def mixing(h: Tensor, v: Tensor) -> Tensor:
    """Return the share of client j's head in client i's, ``(clients, clients)`` float64; each row sums to one.

    Args:
        h: What clients are compared by, ``(clients, width)``.
        v: Its sampling variance, ``(clients,)``.
    """
    from scipy.optimize import nnls  # here, because importing SciPy's optimizers takes longer than any rule

    h, v = h.double().cpu(), v.double().cpu().clamp(min=0)
    shares = []
    for mine in h:
        # |a @ rows|^2 is what is minimized; over a >= 0 with (sum a - 1)^2 added the minimum lies on the same ray
        rows = torch.cat([v.sqrt().diag(), mine - h], dim=1)
        system = torch.cat([rows.T, torch.ones(1, len(h), dtype=h.dtype)])
        target = torch.zeros(len(system), dtype=h.dtype)
        target[-1] = 1
        weights = torch.from_numpy(nnls(system.numpy(), target.numpy())[0])
        weights = weights / weights.sum()
        weights = torch.where(weights < LEAST, 0.0, weights)
        shares.append(weights / weights.sum())
    return torch.stack(shares)


def _sums(client: ClientView, params: Tensor, buffers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum of a client's features of each class ``(classes, width)``, of their squares, and class counts."""
    classes, sums, squares = len(client.label_counts), [], []
    for inputs, targets in client.examples():
        _, features = client.run(params, inputs, buffers)
        sums.append(one_hot(targets, classes).to(features).T @ features)
        squares.append(features.square().sum())
    return torch.stack(sums).sum(0), torch.stack(squares).sum(), client.label_counts.to(params)
