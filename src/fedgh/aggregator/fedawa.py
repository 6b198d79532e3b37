"""FedAWA: client weights learned by descent, from distances to the model and to the mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.aggregator.base import Aggregate, Aggregator, State, require, require_one_of
from fedgh.aggregator.memory import places_by_id
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import Cohort
from fedgh.core.updates import UpdateMatrix


@dataclass(frozen=True)
class FedAWA(Aggregator):
    """Weigh clients by a softmax of logits T that a few steps of Adam move every round.

    With ``pi = softmax(T)`` over the participants, theta the global model: the loss is ``sum_k pi_k C_k + sum_k pi_k
    ||g_k - sum_j pi_j g_j||``, where ``C_k = 1 - cos(theta, theta + g_k)``. In Gram space theta is one more row. The
    aggregate takes pi as it was *before* the last step, as the released code does, so that with one step a round moves
    the weights of the next one; and each step of a fresh Adam moves every logit by about ``lr``, whatever the gradient,
    so that with the released settings a hundred rounds stay close to the start.

    Attributes:
        steps: Steps a round, at least 1.
        lr: Of Adam (betas 0.5 and 0.999, anew every round), positive.
        distance: C_k: ``cosine``, or ``euclidean``, the mean square of the entries of g_k.
        init: Logit of a client met first: ``share``, its share of the weights as released, whose softmax is nearly even
            whatever the sizes; or ``log_share``, whose softmax are the shares.

    Reference:
        Shi, Li, Zhao, Guo, Qi: "FedAWA: Adaptive Optimization of Aggregation Weights in Federated Learning Using Client
        Vectors", CVPR 2025 (arXiv 2503.15842), and the released code (server_funct.py).
    Departures:
        Logits belong to client ids; in the release to the place in the cohort, whoever stands there. No SGD, no factor
        on the parameters (the released gamma is 1). Running statistics follow ``buffers``.
    """

    steps: int
    lr: float
    distance: str
    init: str

    stateful = True
    needs = "params"

    def __post_init__(self) -> None:
        require(self.steps >= 1, "steps", "at least 1", self.steps)
        require(self.lr > 0, "lr", "positive", self.lr)
        require_one_of("distance", self.distance, ("cosine", "euclidean"))
        require_one_of("init", self.init, ("share", "log_share"))

    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:  # noqa: ARG002
        """Descend, combine with the weights before the last step; see :meth:`Aggregator.__call__`.

        Raises:
            ConfigurationError: If only updates are known, not the model.
        """
        if cohort.params is None:
            raise ConfigurationError(
                "aggregator=fedawa measures updates against the global model, and only updates are known here; replay "
                "a recorded run, or choose another rule"
            )
        shares = cohort.weights / cohort.weights.sum()
        ids, known, present = places_by_id(state.get("client_ids"), cohort)
        logits = torch.zeros(len(ids), dtype=torch.float64)
        logits[present] = shares if self.init == "share" else shares.log()
        if len(known):
            logits[known] = state["logits"]
        products = updates.gram_with(cohort.params)
        before, after = self.descend(logits[present], products, updates.blocks[-1].stop)
        logits[present] = after
        coefficients = before.softmax(0) * cohort.weights.sum()
        return Aggregate(updates.combine(coefficients), coefficients, state={"client_ids": ids, "logits": logits})

    def descend(self, logits: Tensor, gram: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Return the logits before the last step and after it, ``(clients,)``.

        Args:
            logits: T, ``(clients,)``.
            gram: Of the updates and, last, the model; products of float64, ``(clients + 1, clients + 1)``.
            width: Parameters.
        """
        away = self._away(gram, width)
        before, after = logits, logits.clone().requires_grad_()
        optimizer = torch.optim.Adam([after], self.lr, betas=(0.5, 0.999))
        for _ in range(self.steps):
            before = after.detach().clone()
            after.grad = self.gradient(before, gram[:-1, :-1], away)
            optimizer.step()
        return before, after.detach()

    def gradient(self, logits: Tensor, gram: Tensor, away: Tensor) -> Tensor:
        """Return the gradient of the loss in T, ``(clients,)``.

        Args:
            logits: T, ``(clients,)``.
            gram: Of the updates, ``(clients, clients)`` float64.
            away: C_k, ``(clients,)``.
        """
        pi = logits.softmax(0)
        products = gram @ pi
        squared = gram.diagonal() - 2 * products + pi @ products
        hidden = 4 * torch.finfo(gram.dtype).eps * (gram.diagonal() + pi @ gram.diagonal())
        distances = torch.where(squared > hidden, squared, 0.0).sqrt()
        ratio = torch.where(distances > 0, pi / distances, 0.0)
        slope = away + distances + ratio.sum() * products - gram @ ratio
        return pi * (slope - pi @ slope)

    def _away(self, gram: Tensor, width: int) -> Tensor:
        """Return C, ``(clients,)``."""
        squares, length, along = gram.diagonal()[:-1], gram[-1, -1], gram[:-1, -1]
        if self.distance == "euclidean":
            return squares / width
        lengths = (length * (length + 2 * along + squares).clamp_min(0)).sqrt()
        return 1 - (length + along) / torch.where(lengths > 0, lengths, 1.0)
