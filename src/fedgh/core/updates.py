"""The update matrix: a round's updates as rows of one preallocated matrix, and the two passes over it.

Everything about conflicts reads only the Gram matrix ``M = U U^T``; every rule of the Gram family gives back one small
vector of coefficients ``c``, and the aggregate is ``c @ U``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from fedgh.core.errors import ConfigurationError

# Squared norms outside this range have lost, or are about to lose, digits in float32 products.
_SAFE_SQUARED_NORM = (1e-24, 1e30)
# Coefficients outside this range are no float32 numbers, or lose digits as such.
_SAFE_COEFFICIENT = (1e-30, 1e30)


@dataclass(frozen=True)
class Block:
    """A named parameter and the columns it occupies in a flat vector.

    Attributes:
        name: Name in ``named_parameters()``.
        start: First column.
        stop: One past the last column.
        shape: Shape of the parameter.
        layer: PyTorch's class of the module that it belongs to, such as ``BatchNorm2d``; empty where that is not known.
    """

    name: str
    start: int
    stop: int
    shape: torch.Size
    layer: str = field(default="", compare=False)


def columns_of(blocks: Sequence[Block], names: Iterable[str]) -> Tensor:
    """Return which columns belong to parameters of these names (shell patterns such as ``head.*``), ``(params,)`` bool.

    Raises:
        ConfigurationError: If a pattern matches no parameter.
    """
    mask = torch.zeros(blocks[-1].stop, dtype=torch.bool)
    for pattern in names:
        matching = [block for block in blocks if fnmatchcase(block.name, pattern)]
        if not matching:
            known = ", ".join(block.name for block in blocks)
            raise ConfigurationError(f"no parameter of this model is named {pattern!r}; it has: {known}")
        for block in matching:
            mask[block.start : block.stop] = True
    return mask


def all_finite(*tensors: Tensor) -> bool:
    """Tell whether every entry is finite: their sum is, which is quickly asked, or else each of them."""
    return math.isfinite(sum(float(tensor.sum()) for tensor in tensors)) or all(
        bool(tensor.isfinite().all()) for tensor in tensors
    )


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
        across chunks in float64; parameter blocks in which a squared norm leaves float32's comfortable range are passed
        over again in float64.

        Args:
            by_block: One matrix per parameter block, ``(blocks, clients, clients)``, instead of their sum.

        Returns:
            ``(clients, clients)`` float64 on the CPU, exactly symmetric.
        """
        spans = [(block.start, block.stop) for block in self.blocks] if by_block else [(0, self.rows.shape[1])]
        grams = self._grams(spans, torch.promote_types(self.rows.dtype, torch.float32))
        squared = grams.diagonal(dim1=1, dim2=2)
        low, high = _SAFE_SQUARED_NORM
        unsafe = (~((squared > low) & (squared < high)).all(1)).nonzero().flatten()
        if len(unsafe):
            grams[unsafe] = self._grams([spans[index] for index in unsafe.tolist()], torch.float64)
        return grams if by_block else grams[0]

    def exact_gram(self) -> Tensor:
        """Return M with every product formed in float64, for distances; see :meth:`gram_with`."""
        return self._grams([(0, self.rows.shape[1])], torch.float64)[0]

    def gram_with(self, row: Tensor, by_block: bool = False) -> Tensor:
        """Return the Gram matrix of the updates with one more row below, every product formed in float64.

        For rules that look at something beside the updates (the last aggregate, the model), and for distances: with u
        and v a ten-thousandth of their length apart, a float32 Gram matrix says 0.

        Args:
            row: ``(params,)``, on any device.
            by_block: As in :meth:`gram`.

        Returns:
            ``(clients + 1, clients + 1)`` float64 on the CPU, or one per block, exactly symmetric.
        """
        spans = [(block.start, block.stop) for block in self.blocks] if by_block else [(0, self.rows.shape[1])]
        size, rows = len(self) + 1, self.rows
        total = torch.zeros(len(spans), size, size, dtype=torch.float64, device=rows.device)
        row = row.to(rows.device)
        for index, start, stop in self._chunks(spans, torch.float64):
            chunk = torch.cat([rows[:, start:stop].double(), row[None, start:stop].double()])
            total[index] += chunk @ chunk.T
            del chunk  # before the next one is made
        total = total.cpu()
        total = (total + total.mT) / 2
        return total if by_block else total[0]

    def _grams(self, spans: list[tuple[int, int]], dtype: torch.dtype) -> Tensor:
        """Return the Gram matrix of each range of columns, ``(spans, clients, clients)``."""
        num_clients = len(self)
        total = torch.zeros(len(spans), num_clients, num_clients, dtype=torch.float64, device=self.rows.device)
        with _full_precision_products():
            for index, start, stop in self._chunks(spans, dtype):
                chunk = self.rows[:, start:stop].to(dtype)
                total[index] += chunk @ chunk.T
                del chunk  # before the next one is made
        total = total.cpu()
        for gram in total:  # one after the other: many blocks of many clients would be large twice
            gram.copy_((gram + gram.T).div_(2))
        return total

    def _chunks(self, spans: list[tuple[int, int]], dtype: torch.dtype) -> Iterator[tuple[int, int, int]]:
        """Yield (index of the span, start, stop): 25 chunks that need no copy, or copies of about 2 % of the matrix."""
        num_params = self.rows.shape[1]
        copied = num_params * self.rows.element_size() // (50 * dtype.itemsize)
        width = max(4096, num_params // 25 if dtype == self.rows.dtype else copied)
        for index, (first, last) in enumerate(spans):
            for start in range(first, last, width):
                yield index, start, min(start + width, last)

    def combine(self, coefficients: Tensor) -> Tensor:
        """Return ``c @ U``, the aggregate, in one pass over the matrix.

        Formed in float32, or in the rows' wider type; where a coefficient or an intermediate sum is no float32 number,
        though the aggregate may be one, in float64.

        Args:
            coefficients: ``(clients,)``, or ``(blocks, clients)`` when every block has its own.

        Returns:
            ``(params,)``, float32 or wider.
        """
        dtype = torch.promote_types(self.rows.dtype, torch.float32)
        low, high = _SAFE_COEFFICIENT
        if all(c == 0 or low <= abs(c) <= high for c in coefficients.flatten().tolist()):
            combined = self._combine(coefficients, dtype)
            if all_finite(combined):
                return combined
        return self._combine(coefficients, torch.float64).to(dtype)

    def _combine(self, coefficients: Tensor, dtype: torch.dtype) -> Tensor:
        with _full_precision_products():
            if coefficients.dim() == 1:
                return self._weighted_sum(coefficients, 0, self.rows.shape[1], dtype)
            parts = zip(coefficients, self.blocks, strict=True)
            return torch.cat([self._weighted_sum(c, b.start, b.stop, dtype) for c, b in parts])

    def _weighted_sum(self, coefficients: Tensor, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        rows = self.rows[:, start:stop]
        if rows.dtype == dtype:
            return coefficients.to(rows) @ rows
        total = torch.zeros(stop - start, dtype=dtype, device=rows.device)
        for coefficient, row in zip(coefficients.tolist(), rows, strict=True):
            total.add_(row, alpha=coefficient)
        return total


class RowMemory:
    """Memory for a matrix of updates, filled again by every round unless somebody still holds what the last one left.

    Whoever keeps a round, its updates, or any view of them, keeps the memory; the next round then gets its own.

    Args:
        num_columns: Parameters.
        dtype: Of the updates.
        device: Where they live.
    """

    def __init__(self, num_columns: int, dtype: torch.dtype, device: torch.device) -> None:
        self._rows = torch.empty(0, num_columns, dtype=dtype, device=device)
        self._unshared = 0

    def take(self, num_rows: int) -> Tensor:
        """Return ``(num_rows, num_columns)``, not initialized."""
        if len(self._rows) < num_rows or self._holders() > self._unshared:
            size = max(num_rows, len(self._rows))
            self._rows = self._rows.new_empty(0, self._rows.shape[1])  # lets go of the old one before the new one comes
            self._rows = self._rows.new_empty(size, self._rows.shape[1])
            self._unshared = self._holders()
        return self._rows[:num_rows]

    def _holders(self) -> int:
        """Return how many tensors and handles hold the memory."""
        return torch._C._storage_Use_Count(self._rows.untyped_storage()._cdata)


@contextmanager
def _full_precision_products() -> Iterator[None]:
    """Switch TF32 and bf16 off for products of float32 inside, whichever of PyTorch's interfaces allowed them.

    The setting comes back as it was. ``allow_tf32`` and ``float32_matmul_precision`` are not touched: asking for them
    raises an error where somebody has used the newer ``fp32_precision``.
    """
    backends: Any = torch.backends
    matmuls = ((backends.cuda.matmul, backends.cudnn), (backends.mkldnn.matmul, backends.mkldnn))
    reduced = [
        (matmul, "none" if matmul.fp32_precision == parent.fp32_precision else matmul.fp32_precision)
        for matmul, parent in matmuls
        if matmul.fp32_precision not in ("ieee", "none")
    ]  # one that says the same as its parent goes on saying so: "none"
    try:
        for matmul, _ in reduced:
            matmul.fp32_precision = "ieee"
        yield
    finally:
        for matmul, before in reduced:
            matmul.fp32_precision = before
