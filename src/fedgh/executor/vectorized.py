"""Many clients in one vectorized step, in one fit of one reused Trainer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fedgh.algorithm.base import Algorithm, OptimizerFactory
from fedgh.client.module import ClientGroup
from fedgh.client.vectorized import GroupWork, Part
from fedgh.client.view import ClientView
from fedgh.core.device import sent
from fedgh.core.errors import ConfigurationError
from fedgh.core.seeding import torch_generator
from fedgh.core.types import ClientResult, ClientState
from fedgh.dataset.stream import group_batches
from fedgh.executor.base import FittingExecutor
from fedgh.executor.memory import USABLE, bytes_of_client, bytes_of_rest, memory_of
from fedgh.executor.probe import ignores_padding, try_group
from fedgh.task.base import PADDING

log = logging.getLogger(__name__)

GROUP_EXAMPLES = 32768
"""Augmented examples prepared at once for a group, about; bounds the memory, never changes the batches."""


class VectorizedExecutor(FittingExecutor):
    """Trains groups of clients: one group per training step, one vectorized step for all that still have a batch.

    Same batches, same dropout, same number of steps per client as the sequential executor; sums are rounded otherwise,
    which batch normalization and FedDecorr amplify (:mod:`fedgh.federation.rounding`). It pays where launching an
    operation costs more than computing it. Batches of different sizes cost nothing extra where they may be padded;
    under batch normalisation and FedDecorr a step is launched once per size. A group holds parameters, gradients,
    optimizer state and activations of ``width`` clients at a time.

    Args:
        width: Clients in a group, at most; bounds the memory.
        row_dtype: See :class:`~fedgh.executor.base.Executor`.
        lower_width: Whether to take as many clients as memory holds (``executor=auto``), instead of warning.
        **parts: See there.

    Attributes:
        pads: Short batches are padded, because model and loss are found to ignore padding.
        memory: What is too large for the memory of the device, in words; empty if nothing is.

    Raises:
        ConfigurationError: If the width is not positive, the optimizer would mix clients, or the local loss cannot be
            vectorized.
    """

    module: ClientGroup

    def __init__(self, width: int, row_dtype: str = "float32", lower_width: bool = False, **parts: Any) -> None:
        if not isinstance(width, int) or width < 1:
            raise ConfigurationError(f"executor.width must be a positive integer, got {width!r}; try 20")
        self.width = width
        super().__init__(row_dtype=row_dtype, **parts)
        self.memory = self._check_memory(lower_width)
        self.module.width = self.width

    def take(self, algorithm: Algorithm) -> None:
        """See :meth:`fedgh.executor.base.Executor.take`."""
        super().take(algorithm)
        require_elementwise(algorithm.optimizer)
        try_group(self)
        self.pads = algorithm.may_be_padded and ignores_padding(self)
        self.module = ClientGroup(self.model, algorithm, self.width)

    def _check_memory(self, lower_width: bool) -> str:
        """Compare what a group takes with what there is; warn, or lower the width; return the reason."""
        there_is = memory_of(self.model.device)
        if there_is is None:
            return ""
        clients, of_client = min(self.width, len(self.client_indices)), bytes_of_client(self)
        room = USABLE * there_is - bytes_of_rest(self, clients, GROUP_EXAMPLES)
        if clients * of_client <= room:
            return ""
        fits = max(0, int(room // of_client))
        why = f"{clients} of them take about {clients * of_client / 2**30:,.1f} GiB, of {there_is / 2**30:,.1f} GiB"
        if lower_width:
            self.width = fits
        else:
            remedy = f"executor.width={fits}, a smaller algorithm.batch_size or " if fits else ""
            log.warning(
                "executor.width=%d: clients at a time may not fit into the memory of %s: %s; try %sexecutor=sequential",
                self.width,
                self.model.device,
                why,
                remedy,
            )
        return why

    def train(self, clients: Sequence[ClientView], rows: Tensor) -> list[ClientResult]:
        """See :meth:`fedgh.executor.base.Executor.train`."""
        self.module.reserve(len(clients))
        return super().train(clients, rows)

    def work(self, clients: Sequence[ClientView], rows: Tensor) -> Iterator[GroupWork]:
        """Yield groups of clients that keep the same kind of state, longest first."""
        kinds = [self._kind(client.state) for client in clients]
        steps = [self.num_steps(client.client_id) for client in clients]
        order = sorted(range(len(clients)), key=lambda place: (kinds[place], -steps[place], place))
        for places in _groups(order, kinds, self.width):
            group = [clients[place] for place in places]
            lengths = [self.plan(client.client_id).phases for client in group]
            yield GroupWork(
                clients=group,
                places=places,
                phases=[(p, [client[j][1] for client in lengths]) for j, p in enumerate(self.phases)],
                steps=self._steps(group),
                lr=group[0].lr,
                seeds=[self.client_seed(client) for client in group],
                rows=rows,
            )

    def launches(self, client_ids: Sequence[int]) -> int:
        """Return about how many vectorized batches train these clients, taken as one group."""
        unequal = len({self.num_examples(k) for k in client_ids}) > 1
        extra = 0 if self.pads or not unequal else self.algorithm.local_epochs * len(client_ids)
        return max(self.num_steps(k) for k in client_ids) + extra

    def _kind(self, state: ClientState) -> tuple[Any, ...]:
        """Return what two clients' states need to share to be stacked: names, shapes and types.

        What a method prepares by itself is of one kind for all of them.
        """
        if self.algorithm.overrides("prepare"):
            return ()
        return tuple(sorted((name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in state.items()))

    def _steps(self, clients: Sequence[ClientView]) -> Iterator[list[Part]]:
        """Yield the parts of each step: the next batches of everyone who has one, sorted by their size."""
        streams = self._streams(clients)
        lengths = [self.plan(client.client_id).phases for client in clients]
        for index in range(len(self.phases)):
            num_steps = [client[index][1] for client in lengths]
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

    def _streams(self, clients: Sequence[ClientView]) -> Sequence[Iterator[tuple[Tensor, ...]]]:
        """Return the clients' batches; only their rows ``(B,)`` where nothing is to be prepared ahead."""
        rows = [self.batch_rows(client.client_id, client.round_index) for client in clients]
        if self.dataset.augmentation is None:
            return [((batch,) for batch in mine) for mine in rows]
        generators = [torch_generator(self.seed, self.purpose + "augment", c.round_index, c.client_id) for c in clients]
        ahead = max(1, GROUP_EXAMPLES // (len(clients) * self.algorithm.batch_size))
        return group_batches(self.dataset, rows, generators, ahead)

    def _part(self, places: list[int] | None, batches: list[tuple[Tensor, ...]]) -> Part:
        """Stack batches; shorter ones are padded with any input and with targets that do not count."""
        sizes = [len(batch[-1]) for batch in batches]
        num_rows = sizes if len(set(sizes)) > 1 else None
        stack = torch.stack if num_rows is None else partial(pad_sequence, batch_first=True)
        if len(batches[0]) == 2:
            inputs, targets = (stack(list(tensors)) for tensors in zip(*batches, strict=True))
        else:
            rows = sent(stack([rows for (rows,) in batches]), self.model.device)
            inputs = self.dataset.normalize(self.dataset.train_inputs.index_select(0, rows.view(-1)))
            inputs, targets = inputs.view(*rows.shape, *inputs.shape[1:]), self.dataset.train_targets[rows]
        if num_rows is not None:
            missing = torch.arange(targets.shape[1]) >= torch.tensor(num_rows)[:, None]
            missing = missing.view(*missing.shape, *[1] * (targets.dim() - 2))
            targets = targets.masked_fill(sent(missing, targets.device), PADDING)
        return Part(places, inputs, targets, num_rows)


def _groups(order: Sequence[int], kinds: Sequence[tuple[Any, ...]], width: int) -> Iterator[list[int]]:
    """Cut sorted places into groups of one kind and of at most ``width``."""
    group: list[int] = []
    for place in order:
        if group and (len(group) == width or kinds[place] != kinds[group[0]]):
            yield group
            group = []
        group.append(place)
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
            "executor=vectorized needs a local optimizer that treats every number by itself (SGD, Adam and the like), "
            f"and {getattr(factory, 'func', factory)} does not; type executor=sequential"
        )


def _after(factory: OptimizerFactory, start: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    params = nn.Parameter(start.clone())
    optimizer = factory([params])
    for gradient in gradients:
        params.grad = gradient.clone()
        optimizer.step()
    return params.detach()


CohortExecutor = VectorizedExecutor
"""Its name in configs that were stored before 0.2."""
