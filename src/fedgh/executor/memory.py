"""How much memory a vectorized group of clients takes, found out by trying a few examples, and how much there is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedgh.executor.probe import step_of

if TYPE_CHECKING:
    from fedgh.algorithm.base import OptimizerFactory
    from fedgh.executor.vectorized import VectorizedExecutor

USABLE = 0.8
"""Share of a device's memory that is counted on; the rest is for the libraries, evaluation and fragmentation."""


def bytes_of_client(executor: VectorizedExecutor) -> int:
    """Return about how many bytes a client adds to a group: parameters, optimizer state, activations of a batch.

    A step of two clients on two examples each, of three clients, and on four examples tell what a client and an example
    take. All three run through the same operations, and what is alive after each of them grows linearly with both.
    """
    traces = [alive_bytes(step_of(executor, *sizes)) for sizes in ((2, 2), (2, 4), (3, 2))]
    if len({len(trace) for trace in traces}) > 1:
        traces = [[max(trace)] for trace in traces]
    further = executor.algorithm.batch_size - 2
    peak = max(third - few + further * (more - few) / 4 for few, more, third in zip(*traces, strict=True))
    return int(peak) + (1 + slots(executor.algorithm.optimizer)) * executor.model.params.nbytes


def bytes_of_rest(executor: VectorizedExecutor, clients: int, prepared: int) -> int:
    """Return about how many bytes are needed besides the group.

    Args:
        executor: Its data set, which stays on the device.
        clients: Rows of the matrix of updates.
        prepared: Examples that are augmented and normalized ahead.
    """
    dataset = executor.dataset
    resident = sum(tensor.nbytes for tensor in (dataset.train_inputs, dataset.test_inputs))
    example = dataset.normalize(dataset.train_inputs[:1]).nbytes + dataset.train_inputs[:1].nbytes
    updates = clients * executor.model.params.numel() * executor.row_dtype.itemsize
    return resident + updates + (prepared * example if dataset.augmentation is not None else 0)


def memory_of(device: torch.device) -> int | None:
    """Return the bytes that a device has in all, whoever uses them now; None where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return None
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container or a SLURM job
    try:
        return min(installed, int(limit.read_text()))
    except (OSError, ValueError):  # there is none
        return installed


def slots(factory: OptimizerFactory) -> int:
    """Return how many vectors of the size of the parameters an optimizer keeps."""
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3)
    optimizer = factory([parameter])
    optimizer.step()
    return sum(isinstance(t, Tensor) and t.shape == parameter.shape for t in optimizer.state[parameter].values())


def alive_bytes(function: Callable[[], object]) -> list[int]:
    """Return how many bytes of what a function computes are in use after each of its operations."""
    with _Allocations() as allocations:
        function()
    trace: list[int] = allocations.trace
    return trace


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the memory of all tensors that operations make, on any device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace: list[int] = []
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, operation: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {self._of(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (place := self._of(tensor)) not in before | self._alive.keys():
                storage = tensor.untyped_storage()
                self._alive[place] = (StorageWeakRef(storage), storage.nbytes())  # type: ignore[no-untyped-call]
        self._alive = {place: entry for place, entry in self._alive.items() if not self._expired(*entry)}
        self.trace.append(sum(size for _, size in self._alive.values()))
        return result

    @staticmethod
    def _expired(storage: StorageWeakRef, _size: int) -> bool:
        return bool(storage.expired())  # type: ignore[no-untyped-call]

    @staticmethod
    def _of(tensor: Tensor) -> int:
        return int(tensor.untyped_storage()._cdata)
