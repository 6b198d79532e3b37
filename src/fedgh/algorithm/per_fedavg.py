"""Per-FedAvg: the shared model is trained for what it becomes after a step on a client's own examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedgh.algorithm.base import Algorithm, Batch, require
from fedgh.algorithm.fine_tuning import fine_tuning
from fedgh.core.forward import Forward
from fedgh.core.types import ClientState
from fedgh.core.updates import Block


@dataclass(frozen=True, kw_only=True)
class PerFedAvg(Algorithm):
    """Step along ``g = grad f(u; D')`` at ``u = w - alpha grad f(w; D)``, perhaps with the Hessian's part.

    ``order: first`` (FO) leaves that out; ``order: hessian`` (HF) steps along
    ``g - alpha (grad f(w + delta g; D'') - grad f(w - delta g; D'')) / (2 delta)``. A batch is cut into D and D', or D,
    D' and D'', so that a step sees a half or a third of it each time; one too small to be cut serves for all of them.
    With ``alpha: 0`` it is SGD on D', and so FedAvg to the bit where batches are too small to be cut. The outer step,
    beta, is the local optimizer's.

    A client's own model is the current global one after one plain step of size alpha on one batch of its training
    examples, or so many epochs of ``evaluation.fine_tune_epochs``: ``fine_tuned/test/...``. Nothing is kept.

    Args:
        alpha: Size of the inner step, >= 0; 0.01.
        order: ``first`` or ``hessian``.
        delta: Size of the differences that stand for the Hessian, > 0; 0.001. In float32 they are good to about 2e-3.

    Reference:
        Fallah, Mokhtari, Ozdaglar: "Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic
        Meta-Learning Approach", NeurIPS 2020, algorithm 1 and the approximations FO and HF. There is no authors' code.
    Departures:
        E epochs of local work; averaged by n_k (the paper: ``weights=uniform``). Running statistics take note of the
        passes for g alone. Other codes adapt on test batches; here never.
    """

    may_be_padded: ClassVar[bool] = False

    alpha: float
    order: str
    delta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha >= 0, "alpha", "0 or more, such as 0.01", self.alpha)
        require(self.order in ("first", "hessian"), "order", "first or hessian", self.order)
        require(self.delta > 0, "delta", "positive, such as 0.001", self.delta)

    def local_gradient(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> tuple[Tensor, Tensor, ClientState]:
        """Return the outer gradient and its loss."""
        w, parts = params.detach(), 2 if self.order == "first" else 3

        def gradient_at(point: Tensor, some: Batch) -> Tensor:
            def loss(p: Tensor) -> Tensor:
                outputs, _ = forward.frozen(p, some[0])
                return forward.task.loss(outputs, some[1])

            return forward.gradients(loss, point)[0]

        inner, outer, *third = _cut(batch, parts, forward.blocks)
        adapted = w - self.alpha * gradient_at(w, inner) if self.alpha > 0 else w
        gradient, loss = forward.gradients(lambda p: self.local_loss(outer, forward, p, global_params, state), adapted)
        if third and self.alpha > 0:
            ahead, behind = (gradient_at(w + sign * self.delta * gradient, third[0]) for sign in (1, -1))
            gradient = gradient - self.alpha * (ahead - behind) / (2 * self.delta)
        return gradient, loss, state

    def fine_tuning(self, epochs: int | None) -> Algorithm:
        """Return plain steps of size alpha."""
        return fine_tuning(self, epochs=epochs, steps=1 if epochs is None else None, plain_lr=self.alpha)


def _cut(batch: Batch, parts: int, blocks: Sequence[Block]) -> list[Batch]:
    """Cut a batch; into parts of two at least under batch normalization, which cannot train on a single example."""
    inputs, targets = batch
    least = 2 if any("BatchNorm" in block.layer for block in blocks) else 1
    if len(targets) < least * parts:
        return [batch] * parts
    return list(zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True))
