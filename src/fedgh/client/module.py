"""The LightningModule of one client, which plays all clients one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedgh.client.base import LocalTraining


@dataclass(frozen=True, slots=True)
class LocalWork:
    """What one client has to do in a round.

    Attributes:
        row: The client's row in the cohort's result.
        batches: Its batches in order: normalized images ``(B, C, H, W)`` and labels ``(B,)``.
    """

    row: int
    batches: Iterator[tuple[Tensor, Tensor]]


class Client(LocalTraining):
    """Trains one client after the other: a training step plays a few of them, so that small ones do not pay for it.

    The batches of a few are drawn before the first of them trains: one kind of work at a time keeps the caches warm, a
    tenth of a round of small clients. A client that comes alone may be large, and draws as it goes.
    """

    def trained(self) -> nn.Parameter:
        """Return the flat parameters."""
        return self.model.params

    def training_step(self, work: Sequence[LocalWork], index: int) -> None:  # noqa: ARG002
        """Train these clients, each from the global model, and write what they have learned into their rows."""
        drawn = [client.batches if len(work) == 1 else list(client.batches) for client in work]
        for client, batches in zip(work, drawn, strict=True):
            self._train(client.row, batches)

    def _train(self, row: int, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        model, server, optimizer = self.model, self._server, self.fresh_optimizer()
        state = {name: tensor.to(model.device) for name, tensor in self._states[row].items()}
        model.load(server.params, server.buffers, server.counters)
        model.seed(self._seeds[row])
        total_loss, num_steps = torch.zeros((), device=model.device), 0
        for batch in batches:
            model.zero_grad()
            loss = self.algorithm.local_loss(batch, model.forward, model.params, server.params, state)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total_loss += loss.detach()  # stays on the device: no synchronization inside a client's steps
            num_steps += 1
        self._report(row, total_loss / num_steps, num_steps)

    @torch.no_grad()
    def _report(self, row: int, loss: Tensor, num_steps: int) -> None:
        result, model = self._result, self.model
        torch.sub(model.params, self._server.params, out=result.updates.rows[row])
        result.buffers[row] = model.buffers
        result.counters[row] = model.counters
        result.train_loss[row] = loss
        result.local_steps[row] = num_steps
