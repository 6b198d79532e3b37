"""A client's training batches: gathered, augmented and normalised in chunks, handed out as views."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from fedgh.core.device import sent
from fedgh.dataset.base import Augment, Dataset, Drawing

CHUNK_IMAGES = 4096
"""Images prepared at once, in whole batches; bounds the memory of a client, never changes the batches."""


def client_batches(
    dataset: Dataset,
    indices: Tensor,
    batch_size: int,
    num_steps: int,
    shuffle_generator: np.random.Generator,
    augment_generator: torch.Generator | None,
    chunk_images: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield so many batches of one client's examples; see :func:`client_rows`.

    Args:
        dataset: Whose train split the client holds a part of.
        indices: int64 (n_k,), the client's rows of the train split.
        batch_size: Examples a step, at least 1.
        num_steps: Number of batches, in as many passes as they take.
        shuffle_generator: Draws one permutation a pass.
        augment_generator: On the CPU; ``None`` will do when the data set has no augmentation.
        chunk_images: Images prepared at once, in whole batches; ``None`` is ``CHUNK_IMAGES``.

    Yields:
        Normalised inputs (B, ...), of images float32 (B, C, H, W), and targets (B,) or (B, parts). Both are views of a
        chunk: do not write to them.
    """
    batches = client_rows(indices, batch_size, num_steps, shuffle_generator)
    for chunk in _chunks(batches, chunk_images or CHUNK_IMAGES):
        rows, sizes = sent(torch.cat(chunk), dataset.train_inputs.device), [len(batch) for batch in chunk]
        inputs, targets = dataset.train_inputs.index_select(0, rows), dataset.train_targets.index_select(0, rows)
        if dataset.augmentation is not None and augment_generator is not None:
            inputs = dataset.augmentation(inputs, augment_generator)
        yield from zip(dataset.normalize(inputs).split_with_sizes(sizes), targets.split_with_sizes(sizes), strict=True)


def group_batches(
    dataset: Dataset, rows: Sequence[Iterator[Tensor]], augment_generators: Sequence[torch.Generator], steps_ahead: int
) -> list[Iterator[tuple[Tensor, Tensor]]]:
    """Return the batches of several clients, gathered, augmented and normalized together.

    Every client draws from its own generator, so its batches are those of :func:`client_batches`; but one launch of an
    operation serves all of them. Those who take steps together should take them at the same pace.

    Args:
        dataset: Whose train split the clients hold parts of.
        rows: What :func:`client_rows` gives for each client.
        augment_generators: One per client, on the CPU.
        steps_ahead: Batches of every client that are prepared at once; bounds the memory, never changes the batches.
    """
    ready: list[deque[tuple[Tensor, Tensor]]] = [deque() for _ in rows]

    def prepare() -> None:
        taken = [list(islice(mine, steps_ahead - len(queue))) for mine, queue in zip(rows, ready, strict=True)]
        batches = [batch for mine in taken for batch in mine]
        if not batches:
            return
        places = sent(torch.cat(batches), dataset.train_inputs.device)
        inputs, targets = dataset.train_inputs.index_select(0, places), dataset.train_targets.index_select(0, places)
        counts = [sum(map(len, mine)) for mine in taken]
        inputs = dataset.normalize(_augmented(dataset.augmentation, inputs, counts, augment_generators))
        sizes = [len(batch) for batch in batches]
        prepared = zip(inputs.split_with_sizes(sizes), targets.split_with_sizes(sizes), strict=True)
        for queue, mine in zip(ready, taken, strict=True):
            queue.extend(islice(prepared, len(mine)))

    def batches_of(queue: deque[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            if not queue:
                prepare()
            if not queue:
                return
            yield queue.popleft()

    return [batches_of(queue) for queue in ready]


def _augmented(
    augmentation: Augment | None, inputs: Tensor, counts: Sequence[int], generators: Sequence[torch.Generator]
) -> Tensor:
    """Augment the examples of several clients, as many of each as ``counts`` says, one client after the other."""
    if augmentation is None:
        return inputs
    if isinstance(augmentation, Drawing):
        draws = [augmentation.draw(count, generator) for count, generator in zip(counts, generators, strict=True)]
        return augmentation.apply(inputs, torch.cat(draws))
    parts = zip(inputs.split_with_sizes(list(counts)), generators, strict=True)
    return torch.cat([augmentation(part, generator) for part, generator in parts if len(part)])


def client_rows(
    indices: Tensor, batch_size: int, num_steps: int, shuffle_generator: np.random.Generator
) -> Iterator[Tensor]:
    """Yield which rows of the train split make up each batch, int64 (B,).

    Every pass is a fresh permutation. The last, shorter batch is kept. A last batch of exactly one example joins the
    batch before it, which then holds ``batch_size + 1``: batch normalisation cannot train on a single example, and no
    example is dropped. A client whose only batch is one example still gets that batch.

    Args:
        indices: int64 (n_k,), the client's rows of the train split.
        batch_size: Examples a step, at least 1.
        num_steps: Number of batches.
        shuffle_generator: Draws one permutation a pass.
    """
    sizes = batch_sizes(len(indices), batch_size)
    for first in range(0, num_steps, len(sizes) or 1):
        order = torch.from_numpy(shuffle_generator.permutation(len(indices))).to(indices.device)
        yield from indices.index_select(0, order).split_with_sizes(sizes)[: num_steps - first]


def batch_sizes(num_examples: int, batch_size: int) -> list[int]:
    """Return the sizes of the batches of one pass; see :func:`client_rows`."""
    full, rest = divmod(num_examples, batch_size)
    sizes = [batch_size] * full
    if rest == 1 and full:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return sizes


def _chunks(batches: Iterable[Tensor], chunk_images: int) -> Iterator[list[Tensor]]:
    """Group batches so that a group holds at most ``chunk_images`` images, and at least one batch."""
    chunk: list[Tensor] = []
    held = 0
    for batch in batches:
        if chunk and held + len(batch) > chunk_images:
            yield chunk
            chunk, held = [], 0
        chunk.append(batch)
        held += len(batch)
    if chunk:
        yield chunk
