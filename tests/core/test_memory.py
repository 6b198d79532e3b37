"""What the passes over the update matrix need besides it: less than a twentieth of it, whatever its type."""

from itertools import pairwise

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedgh.core.updates import Block, UpdateMatrix

CLIENTS, PARAMS = 100, 420_000


class Allocations(TorchDispatchMode):
    """Follows the memory of all tensors that operations make, and keeps its peak."""

    def __init__(self, *known):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.alive = {}
        self.peak = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {place: entry for place, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def peak_of(function, *known):
    with Allocations(*known) as allocations:
        function()
    return allocations.peak


def updates_of(dtype, scale=1.0):
    rows = torch.full((CLIENTS, PARAMS), scale, dtype=dtype)
    stops = [0, 1000, 300_000, 310_000, PARAMS]
    return UpdateMatrix(rows, tuple(Block(f"b{a}", a, b, torch.Size([b - a])) for a, b in pairwise(stops)))


def test_peaks_are_seen():
    rows = torch.ones(1000, 100)
    assert peak_of(lambda: (rows + 1) * 2, rows) == 2 * rows.nbytes
    assert peak_of(lambda: [float((rows[k] + 1).sum()) for k in range(1000)], rows) == 400 + 4  # one row after another
    assert peak_of(lambda: rows[:, :50].T, rows) == 0  # a view


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("by_block", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e-16])  # the second is computed again in float64
def test_the_gram_matrix_needs_a_twentieth_at_most(dtype, by_block, scale):
    updates = updates_of(dtype, scale)
    peak = peak_of(lambda: updates.gram(by_block), updates.rows)
    assert CLIENTS**2 * 8 < peak < updates.rows.nbytes / 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [None, 4])
def test_the_weighted_sum_needs_little_more_than_itself(dtype, groups):
    updates = updates_of(dtype)
    coefficients = torch.full((CLIENTS,) if groups is None else (groups, CLIENTS), 0.01, dtype=torch.float64)
    peak = peak_of(lambda: updates.combine(coefficients), updates.rows)
    result = PARAMS * 4
    assert result <= peak < 2 * result + 2**16 < updates.rows.nbytes / 20
