"""Many clients in one vectorized step, in one fit of one reused Trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fedgh.algorithm.base import OptimizerFactory
from fedgh.client.cohort import CohortClient, GroupWork, Part
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import ClientState
from fedgh.executor.base import Executor
from fedgh.task.base import PADDING

GROUP_IMAGES = 32768
"""Augmented images prepared at once for a group, about; bounds the memory, never changes the batches."""


class CohortExecutor(Executor):
    """Trains groups of clients: one group per training step, one vectorized step for all that still have a batch.

    Same batches, same dropout, same number of steps per client as the sequential executor; sums are rounded otherwise,
    which batch normalization and FedDecorr amplify (:mod:`fedgh.federation.rounding`). It pays where launching an
    operation costs more than computing it. Batches of different sizes cost nothing extra where they may be padded;
    under batch normalisation and FedDecorr a step is launched once per size. A group holds parameters, gradients,
    optimizer state and activations of ``width`` clients at a time.

    Args:
        width: Clients in a group, at most; bounds the memory.
        row_dtype: See :class:`~fedgh.executor.base.Executor`.
        **parts: See there.

    Attributes:
        pads: Short batches are padded, because model and loss are found to ignore padding.

    Raises:
        ConfigurationError: If the width is not positive, the optimizer would mix clients, or the local loss cannot be
            vectorized.
    """

    client: CohortClient

    def __init__(self, width: int, row_dtype: str = "float32", **parts: Any) -> None:
        super().__init__(row_dtype=row_dtype, **parts)
        if not isinstance(width, int) or width < 1:
            raise ConfigurationError(f"executor.width must be a positive integer, got {width!r}; try 20")
        require_elementwise(self.algorithm.optimizer)
        self.width = width
        self.client = CohortClient(self.model, self.algorithm, width)
        self.pads = self._probe()

    def work(self, client_ids: Sequence[int], states: Sequence[ClientState], round_index: int) -> Iterator[GroupWork]:
        """Yield groups of clients that keep the same kind of state, longest first."""
        steps = [self.num_steps(k) for k in client_ids]
        order = sorted(range(len(client_ids)), key=lambda row: (_kind(states[row]), -steps[row], row))
        for rows in _groups(order, [_kind(state) for state in states], self.width):
            num_steps = [steps[row] for row in rows]
            yield GroupWork(rows, num_steps, self._steps([client_ids[row] for row in rows], num_steps, round_index))

    def launches(self, client_ids: Sequence[int]) -> int:
        """Return about how many vectorized batches train these clients, taken as one group."""
        unequal = len({len(self.client_indices[k]) for k in client_ids}) > 1
        extra = 0 if self.pads or not unequal else self.algorithm.local_epochs * len(client_ids)
        return max(self.num_steps(k) for k in client_ids) + extra

    def _probe(self) -> bool:
        """Check that the loss can be vectorized, and tell whether short batches may be padded."""
        dataset, few = self.dataset, slice(4)
        images, labels = dataset.normalize(dataset.train_inputs[few]), dataset.train_targets[few]
        counts = torch.bincount(dataset.train_strata[few], minlength=dataset.num_classes)
        state = self.algorithm.init_client_state(counts)
        self.client.check(images, labels, state)
        return len(labels) > 2 and self.client.ignores_padding(images, labels, state)

    def _steps(self, client_ids: Sequence[int], num_steps: Sequence[int], round_index: int) -> Iterator[list[Part]]:
        """Yield the parts of each step: the next batches of everyone who has one, sorted by their size."""
        streams = [self._stream(k, round_index, GROUP_IMAGES // len(client_ids)) for k in client_ids]
        for step in range(num_steps[0]):
            active = sum(steps > step for steps in num_steps)
            batches = [next(stream) for stream in streams[:active]]
            sizes = [len(batch[-1]) for batch in batches]
            if self.pads or len(set(sizes)) == 1:
                yield [self._part(None, batches)]
                continue
            by_size: dict[int, list[int]] = {}
            for place, size in enumerate(sizes):
                by_size.setdefault(size, []).append(place)
            yield [self._part(places, [batches[place] for place in places]) for places in by_size.values()]

    def _stream(self, client_id: int, round_index: int, chunk_images: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield a client's batches; only their rows ``(B,)`` where all clients' images can be gathered in one go."""
        if self.dataset.augmentation is None:
            return ((rows,) for rows in self.batch_rows(client_id, round_index))
        return self.batches(client_id, round_index, chunk_images)

    def _part(self, places: list[int] | None, batches: list[tuple[Tensor, ...]]) -> Part:
        """Stack batches; shorter ones are padded with any image and with labels that do not count."""
        sizes = [len(batch[-1]) for batch in batches]
        num_rows = sizes if len(set(sizes)) > 1 else None
        stack = torch.stack if num_rows is None else partial(pad_sequence, batch_first=True)
        if len(batches[0]) == 2:
            images, labels = (stack(list(tensors)) for tensors in zip(*batches, strict=True))
        else:
            rows = stack([rows for (rows,) in batches]).to(self.dataset.train_inputs.device, non_blocking=True)
            images = self.dataset.normalize(self.dataset.train_inputs.index_select(0, rows.view(-1)))
            images, labels = images.view(*rows.shape, *images.shape[1:]), self.dataset.train_targets[rows]
        if num_rows is not None:
            places_in_batch = torch.arange(labels.shape[1])
            missing = places_in_batch >= torch.tensor(num_rows)[:, None]
            missing = missing.view(*missing.shape, *[1] * (labels.ndim - 2))
            labels = labels.masked_fill(missing.to(labels.device, non_blocking=True), PADDING)
        return Part(places, images, labels, num_rows)


def _kind(state: ClientState) -> tuple[Any, ...]:
    """Return what two states need to share to be stacked: names, shapes and types."""
    return tuple(sorted((name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in state.items()))


def _groups(order: Sequence[int], kinds: Sequence[tuple[Any, ...]], width: int) -> Iterator[list[int]]:
    """Cut sorted rows into groups of one kind and of at most ``width``."""
    group: list[int] = []
    for row in order:
        if group and (len(group) == width or kinds[row] != kinds[group[0]]):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def require_elementwise(factory: OptimizerFactory) -> None:
    """Check that an optimizer steps a stack of parameter vectors as it steps each of them alone.

    Raises:
        ConfigurationError: If three steps on two clients do not agree to the last bit with three steps on each.
    """
    generator = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(4, 2, 5, generator=generator)
    try:
        together = _after(factory, start, gradients)
        alone = [_after(factory, start[k], [gradient[k] for gradient in gradients]) for k in range(2)]
        same = torch.equal(together, torch.stack(alone))
    except (RuntimeError, ValueError, TypeError):
        same = False
    if not same:
        raise ConfigurationError(
            "executor=cohort needs a local optimizer that treats every number by itself (SGD, Adam and their like), "
            f"and {getattr(factory, 'func', factory)} does not; type executor=sequential"
        )


def _after(factory: OptimizerFactory, start: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    params = nn.Parameter(start.clone())
    optimizer = factory([params])
    for gradient in gradients:
        params.grad = gradient.clone()
        optimizer.step()
    return params.detach()
