"""The update matrix: a round's updates as rows of one preallocated matrix, and the two passes over it.

Everything about conflicts reads only the Gram matrix ``M = U U^T``; every rule of the Gram family gives back one small
vector of coefficients ``c``, and the aggregate is ``c @ U``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Squared norms outside this range have lost, or are about to lose, digits in float32 products.
_SAFE_SQUARED_NORM = (1e-24, 1e30)


@dataclass(frozen=True)
class Block:
    """A named parameter and the columns it occupies in a flat vector.

    Attributes:
        name: Name in ``named_parameters()``.
        start: First column.
        stop: One past the last column.
        shape: Shape of the parameter.
    """

    name: str
    start: int
    stop: int
    shape: torch.Size


class UpdateMatrix:
    """The updates of a cohort as rows of one matrix.

    Args:
        rows: ``(clients, params)``; row k is written in place by the executor.
        blocks: The parameters, in column order, covering every column.
    """

    def __init__(self, rows: Tensor, blocks: tuple[Block, ...]) -> None:
        if not blocks or blocks[0].start != 0 or blocks[-1].stop != rows.shape[1]:
            raise ValueError(f"blocks must cover all {rows.shape[1]} columns, got {blocks}")
        self.rows = rows
        self.blocks = blocks

    @staticmethod
    def of(rows: Tensor) -> UpdateMatrix:
        """Wrap a plain matrix as one block; for notebooks and tests."""
        return UpdateMatrix(rows, (Block("all", 0, rows.shape[1], torch.Size([rows.shape[1]])),))

    def __len__(self) -> int:
        return self.rows.shape[0]

    def select(self, keep: Tensor) -> UpdateMatrix:
        """Return the rows where ``keep`` (clients,) is true, as a copy."""
        return UpdateMatrix(self.rows[keep.to(self.rows.device)], self.blocks)

    def gram(self, by_block: bool = False) -> Tensor:
        """Return ``M = U U^T``, computed in one pass over the matrix.

        Products are formed in float32, or in the rows' wider type (never bf16 or TF32), over chunks of columns, summed
        across chunks in float64; when a squared norm leaves float32's comfortable range the pass is made in float64.

        Args:
            by_block: One matrix per parameter block, ``(blocks, clients, clients)``, instead of their sum.

        Returns:
            ``(clients, clients)`` float64 on the CPU, exactly symmetric.
        """
        gram = self._gram(by_block, torch.promote_types(self.rows.dtype, torch.float32))
        squared = (gram.sum(0) if by_block else gram).diagonal()
        low, high = _SAFE_SQUARED_NORM
        if not bool(((squared > low) & (squared < high)).all()):
            gram = self._gram(by_block, torch.float64)
        return gram

    def _gram(self, by_block: bool, dtype: torch.dtype) -> Tensor:
        num_clients = len(self)
        shape = (len(self.blocks) if by_block else 1, num_clients, num_clients)
        total = torch.zeros(shape, dtype=torch.float64, device=self.rows.device)
        with _full_precision_matmul():
            for index, start, stop in self._chunks(by_block, dtype):
                chunk = self.rows[:, start:stop].to(dtype)
                total[index] += chunk @ chunk.T
                del chunk  # before the next one is made
        total = total.cpu()
        for gram in total:  # one after the other: many blocks of many clients would be large twice
            gram.copy_((gram + gram.T).div_(2))
        return total if by_block else total[0]

    def _chunks(self, by_block: bool, dtype: torch.dtype) -> Iterator[tuple[int, int, int]]:
        """Yield (block index, start, stop): 25 chunks that need no copy, or copies of about 2 % of the matrix."""
        num_params = self.rows.shape[1]
        copied = num_params * self.rows.element_size() // (50 * dtype.itemsize)
        width = max(4096, num_params // 25 if dtype == self.rows.dtype else copied)
        spans = [(i, b.start, b.stop) for i, b in enumerate(self.blocks)] if by_block else [(0, 0, self.rows.shape[1])]
        for index, first, last in spans:
            for start in range(first, last, width):
                yield index, start, min(start + width, last)

    def combine(self, coefficients: Tensor) -> Tensor:
        """Return ``c @ U``, the aggregate, in one pass over the matrix.

        Args:
            coefficients: ``(clients,)``, or ``(blocks, clients)`` when every block has its own.

        Returns:
            ``(params,)``, float32 or wider.
        """
        dtype = torch.promote_types(self.rows.dtype, torch.float32)
        weights = coefficients.to(self.rows.device, dtype)
        with _full_precision_matmul():
            if coefficients.dim() == 1:
                return self._weighted_sum(weights, 0, self.rows.shape[1])
            return torch.cat(
                [self._weighted_sum(w, b.start, b.stop) for w, b in zip(weights, self.blocks, strict=True)]
            )

    def _weighted_sum(self, weights: Tensor, start: int, stop: int) -> Tensor:
        if self.rows.dtype == weights.dtype:
            return weights @ self.rows[:, start:stop]
        total = torch.zeros(stop - start, dtype=weights.dtype, device=self.rows.device)
        for weight, row in zip(weights, self.rows[:, start:stop], strict=True):
            total.add_(row, alpha=float(weight))
        return total


class _full_precision_matmul:
    """Switch TF32 off on CUDA for the products inside, whatever the user's global setting."""

    def __enter__(self) -> None:
        self._before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32 = self._before
