"""Layers that behave the same for one client and for a whole cohort under ``torch.func.vmap``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedgh.core.device import sent
from fedgh.core.errors import ConfigurationError
from fedgh.core.seeding import random_bits

Generators = Sequence[torch.Generator] | None


NORMS = ("batch", "group", "none")
CHANNELS_PER_GROUP = 8


def normalization(norm: str, width: int, spatial: bool) -> nn.Module | None:
    """Return the normalization that follows a layer, or None.

    ``batch`` keeps running statistics, which skewed clients pull apart; ``group`` has none and treats every example by
    itself, in groups of 8 channels (Wu and He, ECCV 2018, have 32 groups; 8 divides every width of MobileNetV2) or, if
    8 does not divide the width, in one group.

    Args:
        norm: ``batch``, ``group`` or ``none``.
        width: Channels.
        spatial: Whether each channel is an image, else a number.

    Raises:
        ConfigurationError: If ``norm`` is another word.
    """
    if norm not in NORMS:
        raise ConfigurationError(f"model.norm must be one of {', '.join(NORMS)}, got {norm!r}.")
    if norm == "group":
        return nn.GroupNorm(1 if width % CHANNELS_PER_GROUP else width // CHANNELS_PER_GROUP, width)
    if norm == "batch":
        return nn.BatchNorm2d(width) if spatial else nn.BatchNorm1d(width)
    return None


class Dropout(nn.Module):
    """Dropout whose mask comes from a generator of the caller's choice.

    In training each number is kept with probability 1 - p (rounded to a multiple of 1/65536) and then divided by 1 - p;
    in evaluation, and with p = 0, the layer is the identity and draws nothing. A call takes one number from its
    generator, and what that number leads to is the mask (:func:`~fedgh.core.seeding.random_bits`). So under
    ``torch.func.vmap`` over K clients the masks of all of them are made at once, and that of client k, which takes its
    number from ``generators[k]``, is bit for bit the one that it would have got alone. PyTorch's own layer draws the
    masks of a cohort from one stream, which would tie every client to its neighbours.

    Attributes:
        p: Probability of dropping a number, in [0, 1).
        generator: Source of the mask in a plain forward pass, on the CPU wherever the data are; ``None`` is the global
            generator.
        generators: Sources under ``vmap``, one per client, on the CPU. Where short batches were padded at the end, the
            real rows get the mask that they would have got without.

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

    def forward(self, x: Tensor) -> Tensor:
        """Drop numbers of ``x``, any shape with the batch first; same shape out."""
        if not self.training or self.p == 0:
            return x
        # The mask alone passes through the custom function; the product differentiates by itself, to any order.
        mask: Tensor = _Mask.apply(x, self.p, self.generator, self.generators)  # type: ignore[no-untyped-call]
        return x * mask

    def extra_repr(self) -> str:
        """Show p when the model is printed."""
        return f"p={self.p}"


def _masks(seeds: Tensor, shape: Sequence[int], p: float, dtype: torch.dtype) -> Tensor:
    """Return a mask per seed, ``(seeds, *shape)``: 0 with probability p, else 1 / (1 - p)."""
    kept = max(1, round((1 - p) * 65536))  # of the 65536 values of a number
    keep = random_bits(seeds, math.prod(shape)) <= kept - 32769
    return keep.to(dtype).div_(1 - p).view(len(seeds), *shape)


def _next(generator: torch.Generator | None) -> int:
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))


class _Mask(torch.autograd.Function):
    """A dropout mask of the shape of ``x``; constant in ``x``, and aware of ``vmap``."""

    @staticmethod
    def forward(x: Tensor, p: float, generator: torch.Generator | None, _generators: Generators) -> Tensor:
        seed = torch.full((1,), _next(generator), device=x.device)
        return _masks(seed, x.shape, p, x.dtype)[0]

    @staticmethod
    def setup_context(ctx: Any, _inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(_ctx: Any, *_grad_outputs: Tensor) -> tuple[None, None, None, None]:
        return None, None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        p: float,
        _generator: torch.Generator | None,
        generators: Generators,
    ) -> tuple[Tensor, int]:
        found = 0 if generators is None else len(generators)
        if generators is None or found != info.batch_size:
            raise ValueError(
                f"Dropout under vmap needs one generator per client, got {found} for {info.batch_size}; "
                "set Dropout.generators first."
            )
        seeds = sent(torch.tensor([_next(generator) for generator in generators]), x.device)
        return _masks(seeds, x.movedim(in_dims[0] or 0, 0).shape[1:], p, x.dtype), 0


class Attend(nn.Module):
    """A transformer's block: self-attention and a hidden layer, each behind a layer norm and beside a shortcut.

    Written out in products and a softmax, which can be vectorized over clients.

    Args:
        width: Of a position's vector.
        heads: Number of heads; divides ``width``.
        causal: Whether a position sees only itself and those before it.

    Raises:
        ConfigurationError: If ``heads`` does not divide ``width``.

    Reference:
        Vaswani et al., NeurIPS 2017; normalization before each part as in Xiong et al., ICML 2020.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigurationError(f"model.heads must divide model.width={width}, got {heads}; try 4.")
        self.heads, self.causal = heads, causal
        self.before_attention, self.before_hidden = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, positions, width)`` to the same shape."""
        x = x + self.mixed(self._attended(self.queries_keys_values(self.before_attention(x))))
        shortcut: Tensor = x + self.hidden(self.before_hidden(x))
        return shortcut

    def _attended(self, joined: Tensor) -> Tensor:
        batch, positions, width = joined.shape
        split = joined.view(batch, positions, 3, self.heads, width // (3 * self.heads)).permute(2, 0, 3, 1, 4)
        queries, keys, values = split.unbind(0)  # (batch, heads, positions, width / heads)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        if self.causal:
            later = torch.ones(positions, positions, dtype=torch.bool, device=joined.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        mixed: Tensor = (scores.softmax(-1) @ values).transpose(1, 2).reshape(batch, positions, width // 3)
        return mixed
