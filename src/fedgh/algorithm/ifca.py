"""IFCA: several global models; a client trains the one that fits its data best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm, columns_of, require
from fedgh.core.seeding import torch_generator
from fedgh.core.types import CohortResult, GlobalModel, Report, ServerState, Start, Trained
from fedgh.core.updates import Block

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class IFCA(Algorithm):
    """Send all models; a client trains that of least loss on its training data, and each is averaged over its own.

    Ties go to the model of lower index; a model that nobody chose stays as it is. Updates are harmonized within each
    model's group. Clients remember nothing: whoever is evaluated chooses anew, by its training data. With
    ``num_models: 1`` it is FedAvg to the bit.

    Args:
        num_models: Clusters, >= 1; 4 on rotated MNIST, 2 on rotated CIFAR.
        different: Names of the parameters in which the models differ at first, as shell patterns; ``["*"]`` for all.

    Reference:
        Ghosh, Chung, Yin, Ramchandran: "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020,
        algorithm 1, the version that averages models.
    Departures:
        A further model begins with the first one's entries in random order within every parameter: another draw of the
        same distribution, whatever the network's initialization. Averaged by n_k, as in the authors' FEMNIST code. No
        restarts; no layers shared by the clusters.
    """

    num_models: int
    different: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = isinstance(self.num_models, int) and self.num_models >= 1
        require(fits, "num_models", "a positive integer, such as 2", self.num_models)

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:  # noqa: ARG002
        """Add the further models; identical ones would never part."""
        different = columns_of(blocks, self.different)
        siblings = []
        for index in range(1, self.num_models):
            params, generator = server.params.clone(), torch_generator(seed, "ifca", index)
            for block in blocks:
                if different[block.start]:
                    order = torch.randperm(block.stop - block.start, generator=generator).to(params.device)
                    params[block.start : block.stop] = server.params[block.start : block.stop][order]
            siblings.append(replace(server.models[0], params=params))
        return replace(server, siblings=tuple(siblings))

    def choose(self, client: ClientView) -> int:
        """Return which model has the least loss on the client's training examples, in evaluation mode."""
        losses = [client.loss(model.params, model.buffers) for model in client.models]
        return min(range(len(losses)), key=lambda j: math.inf if math.isnan(losses[j]) else losses[j])

    def prepare(self, client: ClientView) -> Start:
        """Start from the model of choice."""
        index = self.choose(client)
        model = client.models[index]
        chosen = torch.tensor(index, device=model.params.device)
        return Start(model.params, model.buffers, {"model": chosen}, received=model)

    def report(self, client: ClientView, trained: Trained) -> Report:  # noqa: ARG002
        """Say which model the update is for."""
        return Report({}, {"model": trained.state["model"]})

    def group(self, result: CohortResult) -> Tensor:
        """Return everybody's choice."""
        return result.messages["model"].cpu()

    def personal(self, client: ClientView) -> GlobalModel:
        """Return the model of choice."""
        return client.models[self.choose(client)]
