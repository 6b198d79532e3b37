"""CCVR: after training, a classifier retrained on virtual features drawn from Gaussians of all clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from fedgh.algorithm.base import Algorithm, Ask, require
from fedgh.core.errors import ConfigurationError
from fedgh.core.seeding import torch_generator
from fedgh.core.types import Message, ServerState
from fedgh.core.updates import Block

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class CCVR(Algorithm):
    """Train as FedAvg does, to the bit; then retrain the head on features drawn class by class.

    After the last round every client sends count, mean and covariance of its features per class. The server merges
    them exactly, draws ``samples_per_class`` features of every class that somebody has, and trains the head on them
    with the local optimizer. ``calibration_epochs: 0`` leaves the model as it is.

    Args:
        samples_per_class: Virtual features of a class; 200 in a known reimplementation.
        calibration_epochs: Passes over them; 1 there.
        ridge: Added to the diagonal of each covariance, > 0, which may be singular.

    Reference:
        Luo et al.: "No Fear of Heterogeneity: Classifier Calibration for Federated Learning with Non-IID Data",
        NeurIPS 2021, section 4.2, equations (3) and (4).
    Departures:
        A class of a single example has the covariance zero.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"head", "classification"})

    samples_per_class: int
    calibration_epochs: int
    ridge: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("samples_per_class", 1), ("calibration_epochs", 0)):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= least, name, f"an integer of at least {least}", value)
        require(self.ridge > 0, "ridge", "positive, such as 1e-4", self.ridge)

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:  # noqa: ARG002
        """Refuse a model without a linear head before it is trained, not after."""
        linear_head(blocks)
        return server

    def complete(self, server: ServerState, blocks: Sequence[Block], ask: Ask, seed: int) -> ServerState:
        """Return the model with the retrained head."""
        features, targets = self.virtual(merged(ask), seed)
        features, targets = features.to(server.params), targets.to(server.params.device)
        params, head = server.params.clone(), linear_head(blocks)
        parts = [params[block.start : block.stop].view(block.shape) for block in head]  # written to, below
        weight, bias = (nn.Parameter(part.clone()) for part in parts)
        optimizer = self.optimizer([weight, bias])
        for epoch in range(self.calibration_epochs):
            order = torch.randperm(len(targets), generator=torch_generator(seed, "ccvr order", epoch))
            for rows in torch.split(order.to(targets.device), self.batch_size):
                optimizer.zero_grad()
                cross_entropy(features[rows] @ weight.T + bias, targets[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        for part, trained in zip(parts, (weight, bias), strict=True):
            part.copy_(trained.detach())
        return replace(server, params=params)

    def virtual(self, statistics: Message, seed: int) -> tuple[Tensor, Tensor]:
        """Return features ``(n, width)`` drawn from every class that somebody has, and their classes ``(n,)``."""
        generator, features, targets = torch_generator(seed, "ccvr"), [], []
        for label in statistics["count"].nonzero()[:, 0].tolist():
            mean, covariance = statistics["mean"][label], statistics["covariance"][label]
            root = torch.linalg.cholesky(covariance + self.ridge * torch.eye(len(mean), dtype=mean.dtype))
            noise = torch.randn(self.samples_per_class, len(mean), generator=generator, dtype=mean.dtype)
            features.append(mean + noise @ root.T)
            targets.append(torch.full((self.samples_per_class,), label))
        return torch.cat(features), torch.cat(targets)


def linear_head(blocks: Sequence[Block]) -> tuple[Block, Block]:
    """Return weight and bias of a head that is one linear layer.

    Raises:
        ConfigurationError: If it is not.
    """
    head = {block.name: block for block in blocks if block.name.startswith("head.")}
    if head.keys() != {"head.weight", "head.bias"} or len(head["head.weight"].shape) != 2:
        raise ConfigurationError(
            "algorithm=ccvr retrains a head that is one linear layer with a bias, and this model's has "
            f"{', '.join(head) or 'no parameter'}; choose another model, such as model=mlp"
        )
    return head["head.weight"], head["head.bias"]


def statistics_of(client: ClientView) -> Message:
    """Return ``count`` (classes,), ``mean`` (classes, width) and unbiased ``covariance`` of a client's features."""
    features = torch.cat([client.run(client.received.params, inputs)[1] for inputs, _ in client.examples()])
    return moments(features, torch.cat([targets for _, targets in client.examples()]), len(client.label_counts))


def moments(features: Tensor, targets: Tensor, classes: int) -> Message:
    """Return the statistics of features ``(n, width)`` per class; zero where a class has too few."""
    z, hot = features.to(torch.float64), one_hot(targets, classes).to(torch.float64)
    count = hot.sum(0)
    mean = hot.T @ z / count.clamp(min=1)[:, None]
    apart = z - mean[targets]
    scatter = torch.stack([apart[targets == label].T @ apart[targets == label] for label in range(classes)])
    return {"count": count, "mean": mean, "covariance": scatter / (count - 1).clamp(min=1)[:, None, None]}


def merged(ask: Ask) -> Message:
    """Return the statistics of all clients' features together, as if they lay in one place: equations (3) and (4)."""
    totals: list[Tensor] = []  # of every class: examples, features, and their outer products
    for _, answer in ask(statistics_of):
        n, mean, covariance = (answer[name].cpu() for name in ("count", "mean", "covariance"))
        spread = (n - 1).clamp(min=0)[:, None, None] * covariance
        mine = [n, n[:, None] * mean, spread + n[:, None, None] * outer(mean)]
        totals = [total + part for total, part in zip(totals, mine, strict=True)] if totals else mine
    n, features, products = totals
    mean = features / n.clamp(min=1)[:, None]
    spread = products - n[:, None, None] * outer(mean)
    return {"count": n, "mean": mean, "covariance": spread / (n - 1).clamp(min=1)[:, None, None]}


def outer(vectors: Tensor) -> Tensor:
    """Return the outer product of every row with itself."""
    return vectors[:, :, None] * vectors[:, None, :]
