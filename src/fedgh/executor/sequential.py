"""Clients one after the other, in one fit of one reused Trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from fedgh.algorithm.base import Algorithm
from fedgh.client.local import LocalWork
from fedgh.client.module import Client
from fedgh.client.view import ClientView
from fedgh.executor.base import FittingExecutor

EXAMPLES = 1024
"""Examples in a training step, at most, unless one client has more: Lightning's own cost is spread over them."""


class SequentialExecutor(FittingExecutor):
    """Trains client after client, the batches of each in a bare loop.

    Args:
        row_dtype: See :class:`~fedgh.executor.base.Executor`.
        **parts: See there.
    """

    def __init__(self, row_dtype: str = "float32", **parts: Any) -> None:
        super().__init__(row_dtype=row_dtype, **parts)

    def take(self, algorithm: Algorithm) -> None:
        """See :meth:`fedgh.executor.base.Executor.take`."""
        super().take(algorithm)
        self.module = Client(self.model, algorithm)

    def work(self, clients: Sequence[ClientView], rows: Tensor) -> Iterator[list[LocalWork]]:
        """Yield the work of a few small clients, or of one large one, at a time."""
        few: list[LocalWork] = []
        held = 0
        for place in self.order(clients):
            client = clients[place]
            plan = self.plan(client.client_id)
            examples = self.algorithm.batch_size * plan.num_steps
            if few and held + examples > EXAMPLES:
                yield few
                few, held = [], 0
            batches = self.batches(client.client_id, client.round_index)
            few.append(LocalWork(client, batches, plan.phases, client.lr, self.client_seed(client), rows[place]))
            held += examples
        if few:
            yield few

    def order(self, clients: Sequence[ClientView]) -> Sequence[int]:
        """Return the order in which a cohort is trained; results do not depend on it."""
        return range(len(clients))
