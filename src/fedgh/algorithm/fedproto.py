"""FedProto: clients exchange the mean feature of each class, and no model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fedgh.algorithm.base import Batch, Predictor, require
from fedgh.algorithm.partial import PartialPersonalization
from fedgh.core.forward import Forward
from fedgh.core.types import Broadcast, ClientState, CohortResult, GlobalModel, Report, ServerState, Start, Trained
from fedgh.core.updates import Block
from fedgh.task.base import PADDING

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class FedProto(PartialPersonalization):
    """Minimize ``loss + lam mean_i mean_d (z_i - P_y)^2``, z the features, P_c the prototype of class c.

    A client sends the mean feature of each of its classes after training; the server averages them over the
    participants that have the class, by ``weights``: ``examples`` counts each client by its examples of the class (the
    paper), ``uniform`` all the same (the release). A class that nobody has keeps its prototype; before it has one, its
    examples add nothing. Models are the clients' own: the global one stays the initial one, so look at the personal
    models, which predict the class of the nearest prototype, among the classes that the client has seen.

    Args:
        lam: Strength of the pull, >= 0; 1 in the authors' code, which takes the mean over the features' d entries; the
            paper's squared distance is d times that.
        predict: ``prototype`` (the method), or ``head``, the client's own classifier.
        share_model: Average the model, too: another method, where updates can be harmonized. With ``lam: 0`` it is
            FedAvg to the bit.

    Reference:
        Tan et al.: "FedProto: Federated Prototype Learning across Heterogeneous Clients", AAAI 2022, and the released
        code.
    Departures:
        Prototypes are taken after training in evaluation mode (the release: during the last epoch, as parameters move).
        All clients have one architecture. The release trains all clients in every round.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"head", "classification"})

    lam: float
    predict: str
    share_model: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.lam >= 0, "lam", "0 or more; 1 in the authors' code", self.lam)
        require(self.predict in ("prototype", "head"), "predict", "prototype or head", self.predict)

    @property
    def own_buffers(self) -> bool:  # type: ignore[override]
        """Running statistics stay with the client where its model does."""
        return not self.share_model

    def own_names(self, blocks: Sequence[Block]) -> Iterable[str]:  # noqa: ARG002
        """Return a pattern that fits every parameter, or none."""
        return () if self.share_model else ("*",)

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:  # noqa: ARG002
        """Begin without prototypes, as wide as what the head reads."""
        head = next(block for block in blocks if block.name == "head.weight")
        prototypes = server.params.new_zeros(head.shape)  # (classes, features)
        known = torch.zeros(len(prototypes), dtype=torch.bool, device=prototypes.device)
        return replace(server, memory={"prototypes": prototypes, "known": known})

    def broadcast(self, server: ServerState, client_ids: Sequence[int]) -> Broadcast:  # noqa: ARG002
        """Send the prototypes."""
        return Broadcast(dict(server.memory))

    def prepare(self, client: ClientView) -> Start:
        """Start from the client's own model, with the prototypes at hand."""
        return replace(super().prepare(client), state=dict(client.message))

    def local_loss(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> Tensor:
        """Return the loss of the task plus the pull; rows of a class without a prototype count as being there."""
        if self.lam == 0:
            return super().local_loss(batch, forward, params, global_params, state)
        inputs, targets = batch
        outputs, features = forward(params, inputs)
        counts, classes = (targets != PADDING).to(features), targets.clamp(min=0)
        distance = (features.flatten(1) - state["prototypes"][classes]).square().mean(1)
        pull = (distance * counts * state["known"][classes]).sum() / counts.sum()
        return forward.task.loss(outputs, targets) + self.lam * pull

    def report(self, client: ClientView, trained: Trained) -> Report:
        """Keep the model; send mean feature and number of examples of each class."""
        total = torch.zeros_like(client.message["prototypes"])
        for inputs, targets in client.examples():
            _, features = client.run(trained.params, inputs, trained.buffers)
            total = total + one_hot(targets, len(total)).to(total).T @ features.flatten(1)
        counts = client.label_counts.to(total)
        message = {"prototypes": total / counts.clamp(min=1)[:, None], "counts": counts}
        return replace(super().report(client, trained), message=message)

    def conclude(self, before: ServerState, after: ServerState, result: CohortResult) -> ServerState:
        """Average the prototypes class by class."""
        counts = result.messages["counts"]  # (clients, classes)
        weights = counts if self.weights == "examples" else (counts > 0).to(counts)
        total = weights.sum(0)
        mean = torch.einsum("kc,kcd->cd", weights, result.messages["prototypes"]) / total.clamp(min=1)[:, None]
        prototypes = torch.where((total > 0)[:, None], mean, before.memory["prototypes"])
        return replace(after, memory={"prototypes": prototypes, "known": before.memory["known"] | (total > 0)})

    def personal(self, client: ClientView) -> GlobalModel | Predictor:
        """Return the client's own model; with prototypes a predictor, the nearer the higher the output."""
        model, prototypes = self.with_own_part(client), client.message["prototypes"]
        candidates = client.message["known"] & (client.label_counts.to(prototypes.device) > 0)
        if self.predict == "head" or not bool(candidates.any()):
            return model

        def nearest(inputs: Tensor) -> Tensor:
            _, features = client.run(model.params, inputs, model.buffers)
            distance: Tensor = torch.cdist(features.flatten(1), prototypes)
            return (-distance).masked_fill(~candidates, -torch.inf)

        return nearest
