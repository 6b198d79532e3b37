"""Groups of parameters that a rule treats each by itself: one Gram matrix per group, from one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedgh.core.updates import Block, UpdateMatrix


def group_of_block(blocks: Sequence[Block], scope: str) -> Tensor:
    """Number the groups and tell which one each parameter block belongs to.

    Args:
        blocks: The parameters, in column order.
        scope: ``block``, every parameter tensor by itself; ``layer``, the tensors of one module together (``fc.weight``
            and ``fc.bias``); ``model``, all of them.

    Returns:
        ``(blocks,)`` int64, groups numbered from 0 in order of appearance.
    """
    keys = {
        "block": [block.name for block in blocks],
        "layer": [block.name.rpartition(".")[0] for block in blocks],
        "model": ["" for _ in blocks],
    }[scope]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([numbers[key] for key in keys])


def group_grams(updates: UpdateMatrix, group: Tensor) -> Tensor:
    """Return one Gram matrix per group, ``(groups, clients, clients)`` float64, in one pass over the updates."""
    num_clients = len(updates)
    grams = torch.zeros(int(group.max()) + 1, num_clients, num_clients, dtype=torch.float64)
    return grams.index_add_(0, group, updates.gram(by_block=True))
