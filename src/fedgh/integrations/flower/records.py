"""Between Flower's records, arrays by name, and ours, flat vectors and the matrix of updates."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from torch import Tensor, nn

from fedgh.config import did_you_mean
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import CohortResult
from fedgh.core.updates import Block, UpdateMatrix

NUM_EXAMPLES, LOCAL_STEPS, TRAIN_LOSS, PARTITION_ID = "num-examples", "local-steps", "train_loss", "partition-id"
"""Names of what a client reports."""


@dataclass(frozen=True)
class Layout:
    """Which arrays are parameters, which floating buffers and which integer counters, each group as one flat vector.

    Attributes:
        shapes: Shape and type of every array by name, in the order of the record.
        groups: Names of the parameters, of the buffers and of the counters, each in the order of the record.
    """

    shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]]
    groups: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]

    @classmethod
    def of(cls, arrays: ArrayRecord, parameters: Collection[str] | None = None) -> Layout:
        """Return the layout of a record.

        Args:
            arrays: A model's arrays by name.
            parameters: Names of the trainable ones; None for all floating arrays.

        Raises:
            ConfigurationError: If there is no such array, or one that is not floating.
        """
        shapes = {name: (tuple(array.shape), np.dtype(array.dtype)) for name, array in arrays.items()}
        floating = [name for name, (_, dtype) in shapes.items() if np.issubdtype(dtype, np.floating)]
        chosen = set(floating if parameters is None else parameters)
        for name in sorted(chosen.difference(floating)):
            raise ConfigurationError(
                f"parameters names {name!r}, but the model has no such floating array"
                f"{did_you_mean(name, floating)}; it has: {', '.join(floating)}"
            )
        if not chosen:
            raise ConfigurationError("the model has no floating array, so there is nothing to aggregate")
        groups = (
            tuple(name for name in floating if name in chosen),
            tuple(name for name in floating if name not in chosen),
            tuple(name for name in shapes if name not in floating),
        )
        return cls(shapes, groups)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Return the parameters and their columns in the matrix of updates."""
        blocks: list[Block] = []
        for name in self.groups[0]:
            shape, start = torch.Size(self.shapes[name][0]), blocks[-1].stop if blocks else 0
            blocks.append(Block(name, start, start + shape.numel(), shape))
        return tuple(blocks)

    def split(self, arrays: ArrayRecord) -> tuple[Tensor, Tensor, Tensor]:
        """Return parameters ``(params,)``, buffers ``(buffers,)`` and counters ``(counters,)`` int64.

        Raises:
            ConfigurationError: If an array is missing or has another shape.
        """
        vectors = []
        for names, empty in zip(self.groups, (torch.zeros(0), torch.zeros(0), torch.zeros(0).long()), strict=True):
            for name in names:
                found = tuple(arrays[name].shape) if name in arrays else "no such array"
                if found != self.shapes[name][0]:
                    raise ConfigurationError(
                        f"array {name} should have shape {self.shapes[name][0]}, got {found}; client and server must "
                        "have the same model"
                    )
            parts = [torch.from_numpy(np.array(arrays[name].numpy())).reshape(-1) for name in names]
            vectors.append(torch.cat(parts) if parts else empty)
        params, buffers, counters = vectors
        return params, buffers, counters.long()

    def join(self, params: Tensor, buffers: Tensor, counters: Tensor) -> ArrayRecord:
        """Undo :meth:`split`; every array gets the type that it had."""
        arrays: dict[str, Array] = {}
        for names, vector in zip(self.groups, (params, buffers, counters), strict=True):
            parts = torch.split(vector.detach().cpu(), [int(np.prod(self.shapes[name][0])) for name in names])
            for name, part in zip(names, parts, strict=True):
                shape, dtype = self.shapes[name]
                arrays[name] = Array(part.numpy().reshape(shape).astype(dtype))
        return ArrayRecord({name: arrays[name] for name in self.shapes})


def arrays_of(module: nn.Module) -> tuple[ArrayRecord, list[str]]:
    """Return trainable parameters and buffers by their usual names, as they are now; and the parameters' names."""
    parameters = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    tensors = {**parameters, **dict(module.named_buffers())}
    return ArrayRecord({name: Array(t.cpu().numpy().copy()) for name, t in tensors.items()}), list(parameters)


def arrays_in(content: RecordDict) -> ArrayRecord:
    """Return the only record of arrays, whatever its key."""
    (arrays,) = content.array_records.values()
    return arrays


def metrics_in(content: RecordDict) -> MetricRecord:
    """Return the only record of metrics, whatever its key."""
    (metrics,) = content.metric_records.values()
    return metrics


def gather(
    replies: Mapping[int, RecordDict],
    layout: Layout,
    params: Tensor,
    weighted_by: str = NUM_EXAMPLES,
    row_dtype: torch.dtype | None = None,
) -> CohortResult:
    """Make a cohort's result of what the clients replied, by ascending client id.

    Args:
        replies: One record of arrays and one of metrics by client id.
        layout: Of the arrays.
        params: What was sent out, ``(params,)``; an update is ``local - global``.
        weighted_by: Metric by which a client counts.
        row_dtype: Of the matrix of updates; None for the parameters' own.
    """
    ids = tuple(sorted(replies))
    rows = torch.empty(len(ids), len(params), dtype=row_dtype or params.dtype, device=params.device)
    buffers, counters = [], []
    for row, client_id in zip(rows, ids, strict=True):
        local, floating, integer = layout.split(arrays_in(replies[client_id]))
        torch.sub(local.to(params), params, out=row)
        buffers.append(floating)
        counters.append(integer)
    reported = [metrics_in(replies[client_id]) for client_id in ids]
    # Flower's nodes send and receive the whole model, in the parameters' own type
    sent = sum(params.nbytes + floats.nbytes + whole.nbytes for floats, whole in zip(buffers, counters, strict=True))

    def column(name: str) -> Tensor:
        return torch.tensor([float(metrics.get(name, 0.0)) for metrics in reported], dtype=torch.float64)  # type: ignore[arg-type]

    return CohortResult(
        client_ids=ids,
        updates=UpdateMatrix(rows, layout.blocks),
        buffers=torch.stack(buffers).to(params.device) if ids else params.new_empty(0, 0),
        counters=torch.stack(counters).to(params.device) if ids else params.new_empty(0, 0).long(),
        num_examples=column(weighted_by),
        local_steps=column(LOCAL_STEPS).long(),
        train_loss=column(TRAIN_LOSS),
        bytes_down=sent,
        bytes_up=sent,
    )
