"""kNN-Per: FedAvg's model, and beside its prediction that of the nearest among the client's own examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm, Predictor, require

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class KNNPer(Algorithm):
    """Train as FedAvg does, to the bit; a client predicts ``lam p_kNN + (1 - lam) softmax(z)``.

    p_kNN gives each of the k nearest training examples of the client, in the current model's features, the weight
    ``exp(-d^2 / (dim sigma))``, d their Euclidean distance and dim the number of features, and sums to one. Nothing is
    trained, kept or sent for it: a client that has never taken part predicts as any other does. Classes are what the
    logarithm of that mixture says, so its loss is that of the mixture.

    Args:
        k: Neighbours, >= 1; 10 in the paper, 7 in the released scripts for CIFAR-10. Of fewer examples, all.
        lam: Share of the neighbours, 0 to 1; the paper tunes it for each client, here it is one for all.
        sigma: Width of the kernel, > 0; 1, which the released code always uses.
        capacity: Training examples that a client looks among at most, drawn at random; null for all.

    Reference:
        Marfoq, Neglia, Kameni, Vidal: "Personalized Federated Learning through Local Memorization", ICML 2022,
        equations (6) to (9), and the released code, which by its default mixes logits with probabilities.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"classification"})

    k: int
    lam: float
    sigma: float
    capacity: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isinstance(self.k, int) and self.k >= 1, "k", "a positive integer, such as 10", self.k)
        require(0 <= self.lam <= 1, "lam", "a share from 0 (the global model) to 1 (the neighbours)", self.lam)
        require(self.sigma > 0, "sigma", "positive, such as 1", self.sigma)
        fits = self.capacity is None or (isinstance(self.capacity, int) and self.capacity >= 1)
        require(fits, "capacity", "a positive integer, or null for all examples", self.capacity)

    def personal(self, client: ClientView) -> Predictor:
        """Return the mixture's logarithm as a function of inputs."""
        model, store, labels = client.models[0], list[Tensor](), list[Tensor]()
        for inputs, targets in client.examples():
            store.append(client.run(model.params, inputs, model.buffers)[1].flatten(1))
            labels.append(targets)
        memory, known = torch.cat(store), torch.cat(labels)
        if self.capacity is not None and self.capacity < len(known):
            drawn = torch.from_numpy(client.generator("knn_per").permutation(len(known))[: self.capacity])
            memory, known = memory[drawn.to(known.device)], known[drawn.to(known.device)]

        def predict(inputs: Tensor) -> Tensor:
            outputs, features = client.run(model.params, inputs, model.buffers)
            return self.mixture(outputs, features.flatten(1), memory, known).clamp(min=1e-30).log()

        return predict

    def mixture(self, outputs: Tensor, features: Tensor, memory: Tensor, labels: Tensor) -> Tensor:
        """Return class probabilities ``(B, classes)``.

        Args:
            outputs: Logits z, ``(B, classes)``.
            features: ``(B, dim)``.
            memory: Features of the client's examples, ``(n, dim)``.
            labels: Their classes, ``(n,)``.
        """
        squares = torch.cdist(features, memory, compute_mode="donot_use_mm_for_euclid_dist").square()
        nearest = squares.topk(min(self.k, len(labels)), largest=False)
        # a softmax, as the exponentials themselves are all zero from d^2 = 100 dim on
        weights = (-nearest.values / (features.shape[1] * self.sigma)).softmax(1)
        neighbours = torch.zeros_like(outputs).scatter_add_(1, labels[nearest.indices], weights.to(outputs))
        return self.lam * neighbours + (1 - self.lam) * outputs.softmax(1)
