"""Groups of parameters that are treated each by itself: one Gram matrix per group, from one pass, and its conflicts."""

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


def group_names(blocks: tuple[Block, ...], scope: str) -> list[str]:
    """Return the name of every group, in order: of a layer, that of its module; see :func:`group_of_block`."""
    names: dict[int, str] = {}
    for block, number in zip(blocks, group_of_block(blocks, scope).tolist(), strict=True):
        names.setdefault(number, block.name.rpartition(".")[0] if scope == "layer" else block.name)
    return list(names.values())


def conflicting_pairs(grams: Tensor, threshold: float) -> Tensor:
    """Return how many pairs of clients have a cosine below a threshold, per group, ``(groups,)`` float64.

    Zero updates conflict with nobody.

    Args:
        grams: ``(groups, clients, clients)`` float64.
        threshold: In [-1, 1].
    """
    norms = grams.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    moved = norms > 0
    inverse = torch.where(moved, 1 / norms, 0.0)
    cosines = (inverse[:, :, None] * grams * inverse[:, None, :]).clamp(-1, 1)
    conflicting = (cosines < threshold) & moved[:, :, None] & moved[:, None, :]
    return conflicting.triu(diagonal=1).sum((1, 2)).to(torch.float64)
