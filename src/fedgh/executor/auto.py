"""Picks the faster executor by device and model, and says which and why."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fedgh.core.errors import ConfigurationError
from fedgh.core.flat import FlatModel
from fedgh.dataset.base import Dataset
from fedgh.executor.base import Executor
from fedgh.executor.sequential import SequentialExecutor
from fedgh.executor.vectorized import VectorizedExecutor

log = logging.getLogger(__name__)

MAX_PARAMS = 100_000
"""On a CPU, above this the matrices of a group fall out of its caches; measured, see ``tests/benchmarks``."""
MAX_FLOPS = 20e6
"""On a CPU, above this in the forward pass of one batch the arithmetic of one client fills it; measured likewise."""
LAUNCH_COST = 4
"""On a CPU, a vectorized batch of a few clients takes about as long as this many batches of one; measured likewise."""


def choose(width: int, row_dtype: str = "float32", **parts: Any) -> Executor:
    """Return a vectorized executor where launching operations costs more than computing them, else a sequential one.

    On an accelerator that is nearly always so; on a CPU only for small models. The choice depends on device, model,
    algorithm and client sizes, never on a stopwatch, so a run repeated on the same kind of machine gives the same
    numbers.

    Args:
        width: See :class:`~fedgh.executor.vectorized.VectorizedExecutor`.
        row_dtype: See :class:`~fedgh.executor.base.Executor`.
        **parts: See there.
    """
    parts["row_dtype"] = row_dtype
    model: FlatModel = parts["model"]
    params, flops = model.params.numel(), parts["algorithm"].batch_size * flops_per_example(model, parts["dataset"])
    size = f"{params:,} parameters and {flops / 1e6:,.1f} MFLOP a batch"
    reason = f"{size} are small enough for launching operations to cost more than computing them"
    if model.device.type != "cpu":
        reason = f"on {model.device} launching operations costs more than computing them"
    elif params > MAX_PARAMS or flops > MAX_FLOPS:
        return _picked(SequentialExecutor(**parts), "sequential", f"{size} of one client fill a CPU")
    try:
        vectorized = VectorizedExecutor(width, lower_width=True, **parts)
    except ConfigurationError as error:
        return _picked(SequentialExecutor(**parts), "sequential", str(error))
    if vectorized.width < min(2, width):
        why = f"not even two clients at a time would fit into memory: {vectorized.memory}"
        return _picked(SequentialExecutor(**parts), "sequential", why)
    width = vectorized.width
    ids = range(len(vectorized.client_indices))[:width]
    steps, launches = sum(vectorized.num_steps(k) for k in ids), vectorized.launches(ids)
    if model.device.type == "cpu" and LAUNCH_COST * launches > steps:
        why = f"clients differ so much in size that {steps} steps would still take about {launches} vectorized ones"
        return _picked(SequentialExecutor(**parts), "sequential", why)
    if vectorized.memory:
        reason += f"; {width} clients at a time: {vectorized.memory}"
    return _picked(vectorized, "vectorized", reason)


@torch.no_grad()
def flops_per_example(model: FlatModel, dataset: Dataset) -> int:
    """Return the floating-point operations of the forward pass on one example; matrix products and convolutions."""
    training = model.module.training
    model.module.eval()
    with FlopCounterMode(display=False) as counter:
        model.module(dataset.normalize(dataset.train_inputs[:1]))
    model.module.train(training)
    return int(counter.get_total_flops())


def _picked(executor: Executor, name: str, why: str) -> Executor:
    log.info("executor=auto picked %s: %s", name, why)
    return executor
