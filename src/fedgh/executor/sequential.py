"""Clients one after the other, in one fit of one reused Trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fedgh.client.module import Client, LocalWork
from fedgh.core.types import ClientState
from fedgh.executor.base import Executor

IMAGES = 1024
"""Images in a training step, at most, unless one client has more: Lightning's own cost is spread over them."""


class SequentialExecutor(Executor):
    """Trains client after client, the batches of each in a bare loop.

    Args:
        row_dtype: See :class:`~fedgh.executor.base.Executor`.
        **parts: See there.
    """

    def __init__(self, row_dtype: str = "float32", **parts: Any) -> None:
        super().__init__(row_dtype=row_dtype, **parts)
        self.client = Client(self.model, self.algorithm)

    def work(
        self,
        client_ids: Sequence[int],
        states: Sequence[ClientState],  # noqa: ARG002
        round_index: int,
    ) -> Iterator[list[LocalWork]]:
        """Yield the work of a few small clients, or of one large one, at a time."""
        work: list[LocalWork] = []
        held = 0
        for row in self.order(client_ids):
            images = self.algorithm.local_epochs * len(self.client_indices[client_ids[row]])
            if work and held + images > IMAGES:
                yield work
                work, held = [], 0
            work.append(LocalWork(row, self.batches(client_ids[row], round_index)))
            held += images
        if work:
            yield work

    def order(self, client_ids: Sequence[int]) -> Sequence[int]:
        """Return the order in which the rows of a cohort are trained; results do not depend on it."""
        return range(len(client_ids))
