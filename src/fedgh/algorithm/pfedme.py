"""pFedMe: clients solve for a personal model near the shared one, and move the shared one towards it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from fedgh.algorithm.base import Algorithm, Batch, require
from fedgh.algorithm.fine_tuning import say_the_model
from fedgh.core.forward import Forward
from fedgh.core.types import ClientState, Report, Start, Trained

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class PFedMe(Algorithm):
    """On every batch take K steps ``theta <- theta - personal_lr (grad f(theta) + lam (theta - w_k) + mu theta)``.

    Then w_k steps along ``lam (w_k - theta)``, about the gradient of the Moreau envelope
    ``min_theta f(theta) + lam/2 |theta - w_k|^2``, by the local optimizer, which should be plain SGD with a rate of at
    most ``1 / lam``; theta's steps need ``personal_lr (lam + mu + L) < 2``, L the loss's smoothness. theta begins as
    the received model and goes on from batch to batch. The server's mixing beta is ``server_optimizer.lr``.

    A client's own model is theta. The authors train all clients in every round and average some; here those who are not
    drawn do not train, and whoever is evaluated, a client never sampled as well, makes its theta from the current
    global model by one round of local work, of which w_k is thrown away: ``fine_tuned/test/...``. Nothing is kept.

    Args:
        lam: Weight of the distance, > 0; 15.
        inner_steps: K >= 1; 5.
        personal_lr: Step size of theta, > 0; 0.09, tuned from 0.01 to 0.1.
        mu: Weight decay of theta, >= 0; 0.001 in the authors' code, absent from the paper.

    Reference:
        T. Dinh, Tran, Nguyen: "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020, algorithm 1, and
        the released code.
    Departures:
        E epochs of local work instead of 20 batches. The release scores w_k where it says theta, an alias; its
        "personalized" accuracies are of that. Running statistics are those of theta's passes, shared and averaged.
    """

    lam: float
    inner_steps: int
    personal_lr: float
    mu: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lam", "personal_lr"):
            require(getattr(self, name) > 0, name, "positive", getattr(self, name))
        fits = isinstance(self.inner_steps, int) and self.inner_steps >= 1
        require(fits, "inner_steps", "a positive integer, such as 5", self.inner_steps)
        require(self.mu >= 0, "mu", "0 (as in the paper) or more; 0.001 in the authors' code", self.mu)

    def prepare(self, client: ClientView) -> Start:
        """Start both models at the received one."""
        return Start(client.received.params, client.received.buffers, {"theta": client.received.params})

    def local_gradient(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> tuple[Tensor, Tensor, ClientState]:
        """Step theta K times, and return the direction of w_k with the loss before the last of them."""
        theta, anchor = state["theta"].detach(), params.detach()
        for _ in range(self.inner_steps):
            gradient, loss = forward.gradients(
                lambda p: self.local_loss(batch, forward, p, global_params, state), theta
            )
            theta = theta - self.personal_lr * (gradient + self.lam * (theta - anchor) + self.mu * theta)
        return self.lam * (anchor - theta), loss, {"theta": theta}

    def fine_tuning(self, epochs: int | None) -> Algorithm:
        """Return a round of the same, whose answer is theta."""
        return _Theta(**vars(replace(self, local_epochs=epochs or self.local_epochs)))


@dataclass(frozen=True, kw_only=True)
class _Theta(PFedMe):
    def report(self, client: ClientView, trained: Trained) -> Report:  # noqa: ARG002
        say_the_model(trained.state["theta"], trained)
        return Report()
