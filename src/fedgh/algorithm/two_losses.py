"""Methods whose local loss has two terms, and GH between them: one text for every such method.

Two losses of one model may contradict each other within a client as two clients do within a round. GH (Gradient
Harmonization) then bends both gradients, by giving each loss another weight; it acts in every local step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm, Batch, require
from fedgh.core.forward import Forward
from fedgh.core.types import ClientState, CohortResult, Report, ServerState, Trained
from fedgh.core.updates import Block

if TYPE_CHECKING:
    from fedgh.client.view import ClientView

OVERFLOW = 1e-3
"""Below this sine of the angle the exact rotation of GH++ is taken for undefined: GH's weights take its place."""
RESOLUTION = 1e-5
"""A gradient shorter than this, against the other, is rounding (that of a distillation at the model it distils)."""
_SEEN = "harmonize"
"""Where a client keeps what it saw: steps, steps in conflict, and sums over these (angle before, both weights)."""


@dataclass(frozen=True, kw_only=True)
class TwoLosses(Algorithm, ABC):
    """A method that adds a term to the task's loss; its own text is :meth:`terms`.

    Args:
        harmonize: What to do where the gradients of the two terms, over all parameters, contradict each other:
            ``none`` adds them up, ``gh`` projects each onto the normal plane of the other, ``ghpp`` (GH++) turns both
            until they are orthogonal.
        harmonize_lambda: Of GH++, in [0, 1]: the share of the rotation that the added term takes; 0.5 in the released
            code.
        harmonize_variant: Of GH++: ``exact``, the rotation of the paper; ``released``, the released code's weights
            ``1 + 2 sin(beta / 2)`` and ``1 + 2 sin((beta + 90 - theta) / 2)``, which leave another angle than 90.

    Reference:
        Huang, Song, Zhang: "Gradient Harmonization in Unsupervised Domain Adaptation", arXiv 2408.00288 (TPAMI 2024).
        There the two losses are alignment and classification; in federated learning the paper has not been tried.
    Departures:
        A gradient a hundred thousand times as short as the other conflicts with nothing. Near 180 degrees, where the
        rotation has no plane and its weights no bound, GH++ ``exact`` does what GH does.
        The gradients are those of the terms as they are added up, with their strengths.
    """

    harmonize: str = "none"
    harmonize_lambda: float = 0.5
    harmonize_variant: str = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, allowed in (("harmonize", ("none", "gh", "ghpp")), ("harmonize_variant", ("exact", "released"))):
            require(getattr(self, key) in allowed, key, " or ".join(allowed), getattr(self, key))
        share = self.harmonize_lambda
        require(0 <= share <= 1, "harmonize_lambda", "between 0 and 1; 0.5 in the released code", share)

    @abstractmethod
    def terms(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> tuple[Tensor, Tensor | None]:
        """Return the task's loss and the term that is added to it, scalars; None where its strength is 0.

        See :meth:`Algorithm.local_loss` for what is given.
        """

    def compared(self, blocks: Sequence[Block]) -> Tensor | None:  # noqa: ARG002
        """Return the columns over which the two gradients are compared, ``(params,)`` bool; None for all of them."""
        return None

    def local_loss(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> Tensor:
        """Return the sum of both terms."""
        loss, added = self.terms(batch, forward, params, global_params, state)
        return loss if added is None else loss + added

    def _task_loss(self, batch: Batch, forward: Forward, params: Tensor) -> Tensor:
        inputs, targets = batch
        outputs, _ = forward(params, inputs)
        return forward.task.loss(outputs, targets)

    def _pulled(
        self, batch: Batch, forward: Forward, params: Tensor, centre: Tensor, strength: float
    ) -> tuple[Tensor, Tensor | None]:
        """Return the task's loss and ``strength / 2 ||theta - centre||^2``; at strength 0 FedAvg to the bit."""
        loss = self._task_loss(batch, forward, params)
        return loss, None if strength == 0 else strength / 2 * (params - centre).square().sum()

    def local_gradient(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> tuple[Tensor, Tensor, ClientState]:
        """Return the harmonized gradient of both terms, from one forward and two backward passes."""
        if self.harmonize == "none":
            return super().local_gradient(batch, forward, params, global_params, state)

        def both(argument: Tensor) -> Tensor:
            loss, added = self.terms(batch, forward, argument, global_params, state)
            return torch.stack([loss, 0 * loss if added is None else added])

        gradients, losses = forward.gradients(both, params)
        own, added = gradients
        products = self._products(gradients, self.compared(forward.blocks))
        weights, angle = loss_weights(products, self.harmonize, self.harmonize_lambda, self.harmonize_variant)
        met = (angle > 0).to(angle)
        seen = torch.stack([torch.ones_like(angle), met, angle, *(met * weights)])
        before = state.get(_SEEN)
        after = {**state, _SEEN: seen if before is None else before + seen}
        return weights[0] * added + weights[1] * own, losses.sum(), after

    @staticmethod
    def _products(gradients: Tensor, columns: Tensor | None) -> Tensor:
        """Return ``g1 . g1``, ``g1 . g2``, ``g2 . g2`` of the added term (1) and the task's loss (2)."""
        if columns is not None:
            gradients = gradients.masked_fill(~columns.to(gradients.device), 0.0)
        own, added = gradients
        return torch.stack([added @ added, added @ own, own @ own])

    def report(self, client: ClientView, trained: Trained) -> Report:
        """Send how often and how much the terms were in conflict."""
        return self._with_conflict(Report(client.state), trained)

    def _with_conflict(self, report: Report, trained: Trained) -> Report:
        """Return a report that tells of the conflict, too; for methods that report more."""
        if self.harmonize == "none":
            return report
        return Report(report.state, {**report.message, _SEEN: trained.state[_SEEN].clone()}, report.update_bytes)

    def metrics(self, server: ServerState, result: CohortResult) -> dict[str, float]:  # noqa: ARG002
        """Return the share of local steps in conflict, and of these the mean angle (degrees) and both mean weights."""
        steps, conflicts, angles, added, own = result.messages[_SEEN].to(torch.float64).sum(0).tolist()
        numbers = {"algorithm/harmonize_conflict": conflicts / steps}
        if conflicts:
            numbers["algorithm/harmonize_angle"] = math.degrees(angles / conflicts)
            numbers |= {"algorithm/harmonize_weight": added / conflicts, "algorithm/task_weight": own / conflicts}
        return numbers

    def overrides(self, hook: str) -> bool:
        """Tell whether a method has its own version of a hook; what only harmonizing needs is left out without it."""
        ours = hook in ("local_gradient", "report", "metrics") and getattr(type(self), hook) is getattr(TwoLosses, hook)
        return super().overrides(hook) and not (ours and self.harmonize == "none")


def loss_weights(products: Tensor, how: str, share: float, variant: str) -> tuple[Tensor, Tensor]:
    """Return by how much GH or GH++ multiplies two losses, and the angle between their gradients.

    Written without branches on values, so that it can be vectorized over clients.

    Args:
        products: ``g1 . g1``, ``g1 . g2`` and ``g2 . g2`` of the two gradients, ``(3,)``.
        how: ``gh`` or ``ghpp``.
        share: lambda, the share of the rotation that g1 takes.
        variant: ``exact`` or ``released``, of GH++.

    Returns:
        tau, ``(2,)``, both 1 unless ``g1 . g2 < 0``; and theta in radians, 0 unless then.
    """
    first, dot, second = products
    shorter, longer = torch.minimum(first, second), torch.maximum(first, second)
    conflict = (dot < 0) & (shorter > RESOLUTION**2 * longer)  # GH would lengthen noise to the other's length
    one, nothing = torch.ones_like(dot), torch.zeros_like(dot)
    first, second = torch.where(conflict, first, one), torch.where(conflict, second, one)
    projected = torch.stack([1 - dot / first, 1 - dot / second])  # h1 + h2 with h1 = g1 - (d / g2.g2) g2
    # float32 gives cosines below -1 for about every fourth pair of opposite vectors
    theta = torch.arccos((dot / (first * second).sqrt()).clamp(-1, 1))
    beta, gamma = share * (theta - math.pi / 2), (1 - share) * (theta - math.pi / 2)
    if how == "gh":
        weights = projected
    elif variant == "released":
        weights = torch.stack([1 + 2 * (beta / 2).sin(), 1 + 2 * ((beta + math.pi / 2 - theta) / 2).sin()])
    else:
        sine, ratio = theta.sin(), (first / second).sqrt()
        wide = sine.clamp_min(OVERFLOW)
        turned = [
            ((theta - beta).sin() + gamma.sin() / ratio) / wide,
            ((theta - gamma).sin() + beta.sin() * ratio) / wide,
        ]
        weights = torch.where(sine < OVERFLOW, projected, torch.stack(turned))
    return torch.where(conflict, weights, one), torch.where(conflict, theta, nothing)
