"""Layers that behave the same for one client and for a whole cohort under ``torch.func.vmap``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedgh.core.errors import ConfigurationError

Generators = Sequence[torch.Generator] | None


class Dropout(nn.Module):
    """Dropout whose mask comes from a generator of the caller's choice.

    In training each number is kept with probability 1 - p and then divided by 1 - p; in evaluation, and with p = 0, the
    layer is the identity and draws nothing. Under ``torch.func.vmap`` over K clients the mask of client k is drawn from
    ``generators[k]`` and is, bit for bit, the mask that this generator would have given to client k alone. PyTorch's
    own layer draws the masks of a cohort from one stream, which would tie every client to its neighbours.

    Attributes:
        p: Probability of dropping a number, in [0, 1).
        generator: Source of the mask in a plain forward pass; ``None`` is the global generator.
        generators: Sources under ``vmap``, one per client, on the device of the data.
        num_rows: Under ``vmap``, how many rows of each client's batch are real, where short batches were padded at the
            end; client k then draws for these rows alone and the rest of its mask is 0. ``None``: all are real.

    Raises:
        ConfigurationError: If p is outside [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ConfigurationError(f"model.dropout must be at least 0 and below 1, got {p}; try 0.5.")
        self.p = float(p)
        self.generator: torch.Generator | None = None
        self.generators: Generators = None
        self.num_rows: Sequence[int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop numbers of ``x``, any shape with the batch first; same shape out."""
        if not self.training or self.p == 0:
            return x
        # The mask alone passes through the custom function; the product differentiates by itself, to any order.
        mask: Tensor = _Mask.apply(x, self.p, self.generator, self.generators, self.num_rows)  # type: ignore[no-untyped-call]
        return x * mask

    def extra_repr(self) -> str:
        """Show p when the model is printed."""
        return f"p={self.p}"


def _draw(like: Tensor, shape: Sequence[int], p: float, generator: torch.Generator | None) -> Tensor:
    """Draw one mask: 0 with probability p, else 1 / (1 - p); twice as fast as ``bernoulli_``."""
    keep = torch.rand(tuple(shape), generator=generator, device=like.device) < 1 - p
    return keep.to(like.dtype).div_(1 - p)


class _Mask(torch.autograd.Function):
    """A dropout mask of the shape of ``x``; constant in ``x``, and aware of ``vmap``."""

    @staticmethod
    def forward(
        x: Tensor, p: float, generator: torch.Generator | None, _generators: Generators, _num_rows: Sequence[int] | None
    ) -> Tensor:
        return _draw(x, x.shape, p, generator)

    @staticmethod
    def setup_context(ctx: Any, _inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(_ctx: Any, *_grad_outputs: Tensor) -> tuple[None, None, None, None, None]:
        return None, None, None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        p: float,
        _generator: torch.Generator | None,
        generators: Generators,
        num_rows: Sequence[int] | None,
    ) -> tuple[Tensor, int]:
        found = 0 if generators is None else len(generators)
        if generators is None or found != info.batch_size:
            raise ValueError(
                f"Dropout under vmap needs one generator per client, got {found} for {info.batch_size}; "
                "set Dropout.generators first."
            )
        x = x.movedim(in_dims[0] or 0, 0)  # (clients, batch, ...)
        rows = [x.shape[1]] * found if num_rows is None else num_rows
        masks = torch.zeros_like(x)
        for mask, count, source in zip(masks, rows, generators, strict=True):
            mask[:count] = _draw(x, (count, *x.shape[2:]), p, source)
        return masks, 0
