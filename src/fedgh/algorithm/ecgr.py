"""ECGR: of a round's local steps, those that cancel each other count in full, the others less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm, Batch, require
from fedgh.core.forward import Forward
from fedgh.core.types import Broadcast, ClientState, Report, ServerState, Start, Trained
from fedgh.core.updates import Block

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class ECGR(Algorithm):
    """Train as FedAvg does, then turn the update: damp the steps that a greedy choice leaves out.

    With s_t the displacement of local step t: ``int(select_ratio T)`` times, of the steps not yet chosen the one that
    makes the sum of the chosen shortest; ``c = sum of the chosen + beta * sum of the others``; sent is c, as long as
    the plain update. Only the Gram matrix of the steps is asked. With ``beta: 1`` it is FedAvg to the bit.

    A client holds all its steps, T times the parameters, and so does the vectorized executor for all its clients.

    Args:
        select_ratio: Share of the steps that are chosen, at least one of them, in (0, 1].
        beta: What the others count, >= 0; 0.2 as released.

    Reference:
        Luo et al.: "Local Gradient Regulation Stabilizes Federated Learning under Client Heterogeneity", arXiv
        2601.03584, from the released code (NUDTPingLuo/ECGR, MIT), which cancels greedily; a summary of the paper
        speaks of a ranking by size.
    Departures:
        Steps are displacements, momentum included, as released. Parameters only: the release leaves entries out of its
        lengths by substrings of their names. Where c is zero the plain update is sent.
    """

    select_ratio: float
    beta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.select_ratio <= 1, "select_ratio", "above 0, at most 1", self.select_ratio)
        require(self.beta >= 0, "beta", "0 or more; 1 is FedAvg", self.beta)

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:  # noqa: ARG002
        """Remember the most steps that any client takes: all clients' states have one shape."""
        steps = self.local_epochs * -(-int(num_examples.max()) // self.batch_size)
        return replace(server, memory={"max_steps": torch.tensor(steps)})

    def broadcast(self, server: ServerState, client_ids: Sequence[int]) -> Broadcast:  # noqa: ARG002
        """Send that number."""
        return Broadcast({"max_steps": server.memory["max_steps"]})

    def prepare(self, client: ClientView) -> Start:
        """Make room for the steps."""
        start = super().prepare(client)
        if self.beta == 1:
            return start
        room = start.params.new_zeros(int(client.message["max_steps"]), start.params.numel())
        return replace(start, state={"steps": room, "last": start.params, "taken": start.params.new_zeros(())})

    def local_gradient(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> tuple[Tensor, Tensor, ClientState]:
        """Return the gradient, and put down the step before it, which shows only now."""
        gradient, loss, state = super().local_gradient(batch, forward, params, global_params, state)
        if self.beta == 1:
            return gradient, loss, state
        last, taken = params.detach(), state["taken"]
        places = torch.arange(len(state["steps"]), device=params.device)
        steps = torch.where((places == taken - 1)[:, None], last - state["last"], state["steps"])
        return gradient, loss, {"steps": steps, "last": last.clone(), "taken": taken + 1}

    def report(self, client: ClientView, trained: Trained) -> Report:  # noqa: ARG002
        """Replace the update by the turned one."""
        if self.beta != 1:
            taken = int(trained.state["taken"])
            before_last, last = trained.state["steps"][: taken - 1], trained.params - trained.state["last"]
            steps = torch.cat([before_last, last[None]])
            counts = self.counts((steps.double() @ steps.double().T).cpu())
            trained.update.copy_(counts.to(steps) @ steps)
        return Report()

    def counts(self, gram: Tensor) -> Tensor:
        """Return how much each step counts in the update, ``(steps,)`` float64.

        Args:
            gram: Of the steps, ``(steps, steps)`` float64.
        """
        chosen = torch.zeros(len(gram), dtype=torch.bool)
        for _ in range(max(1, int(len(gram) * self.select_ratio))):
            growth = 2 * gram[:, chosen].sum(1) + gram.diagonal()  # of the squared length of the sum
            chosen[torch.where(chosen, torch.inf, growth).argmin()] = True
        counts = torch.where(chosen, 1.0, self.beta).to(gram)
        squared = counts @ gram @ counts
        if squared <= 0:
            return torch.ones_like(counts)
        return counts * (gram.sum().clamp_min(0) / squared).sqrt()
