"""A model whose trainable parameters live in one contiguous vector.

The module's own parameters are views of that vector and their gradients views of a second one, so loading the global
model is one copy, an update is one subtraction, and an optimizer step one operation per term.
``module.named_parameters()`` stays what it always was.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedgh.core.errors import ConfigurationError
from fedgh.core.updates import Block


class FlatModel:
    """A classifier with ``features``, ``head`` and flat parameters.

    Args:
        module: ``forward(x) = head(features(x))``. Its parameters and buffers are replaced by views of flat vectors.
            Tied parameters count once; frozen ones (``requires_grad=False``) stay as they are and are not part of
            ``params``.
        device: Where everything lives.
        memory_format: How batches of images lie in memory when they enter the module. Convolutions are a third to a
            half faster with ``torch.channels_last``, on a CPU as well. Without a ``Conv2d`` in the module they stay as
            they are: flattening would have to undo it. Vectorized forwards take them as they come.

    Attributes:
        params: Trainable parameters, an ``nn.Parameter`` of shape ``(params,)``; its ``grad`` always exists.
        buffers: Floating buffers, ``(buffers,)``.
        counters: Integer buffers, ``(counters,)`` int64.
        blocks: Name, columns and shape of every parameter in ``params``.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device | str = "cpu",
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.module = module.to(device)
        convolves = any(isinstance(layer, nn.Conv2d) for layer in module.modules())
        self.memory_format = memory_format if convolves else torch.contiguous_format
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise ConfigurationError(f"{type(module).__name__} has no parameter to train; a model needs one at least")
        for name, parameter in named:
            if parameter.dtype not in (torch.float32, torch.float64) or parameter.dtype != named[0][1].dtype:
                raise ConfigurationError(
                    f"the model's parameter {name} is {parameter.dtype}, expected torch.float32 for all of them; for "
                    "half precision in training type trainer.precision=bf16-mixed"
                )
        self.params = nn.Parameter(_flatten([p.detach() for _, p in named]))
        self.params.grad = torch.zeros_like(self.params)
        self.blocks = tuple(_blocks(module, named))
        for block, (_, parameter) in zip(self.blocks, named, strict=True):
            parameter.data = self.params.data[block.start : block.stop].view(block.shape)
            parameter.grad = self.params.grad[block.start : block.stop].view(block.shape)
        floating = {name: b for name, b in module.named_buffers() if b.is_floating_point()}
        integer = {name: b for name, b in module.named_buffers() if not b.is_floating_point()}
        self.buffers = _share(floating, torch.get_default_dtype(), self.params.device)
        self.counters = _share(integer, torch.int64, self.params.device)
        self._floating = {f"module.{name}": b.shape for name, b in floating.items()}
        self._integer = {f"module.{name}": b.shape for name, b in integer.items()}
        self._sizes = [block.stop - block.start for block in self.blocks]
        self._classifier = _Classifier(module)
        self._generator = torch.Generator()  # on the CPU: one number a call comes from it, never a mask
        self._drawing = [layer for layer in module.modules() if hasattr(layer, "generator")]
        for layer in self._drawing:
            layer.generator = self._generator  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the module, tensor by tensor: with a view of it the whole vector would come along each time."""
        module = copy.deepcopy(self.module).cpu()
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone()
        return FlatModel, (module, self.device, self.memory_format)

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.params.device

    @torch.no_grad()
    def load(self, params: Tensor, buffers: Tensor, counters: Tensor) -> None:
        """Overwrite parameters and buffers: three copies, whatever the number of layers."""
        self.params.copy_(params)
        self.buffers.copy_(buffers)
        self.counters.copy_(counters)

    def seed(self, seed: int) -> None:
        """Seed what the model draws while it trains: a generator for layers that take one, PyTorch's for the others."""
        # torch.manual_seed would note a stack trace per absent accelerator each time
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        self._generator.manual_seed(seed)

    def zero_grad(self) -> None:
        """Zero the gradient of every parameter: one operation."""
        assert self.params.grad is not None  # noqa: S101 - set in the constructor, never removed
        self.params.grad.zero_()

    def forward(
        self, params: Tensor, inputs: Tensor, buffers: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (outputs, features) of the module, at its own parameters or at any others.

        The module's parameters are views of :attr:`params`, and their gradients views of its gradient: backpropagating
        through this call and through a term in ``params`` itself accumulates into the same vector.

        Args:
            params: :attr:`params` itself, or another vector of its shape.
            inputs: ``(B, *shape)``.
            buffers: See :meth:`functional_forward`.
        """
        inputs = inputs.to(memory_format=self.memory_format)
        if params is not self.params or buffers is not None:
            return self.functional_forward(params, inputs, buffers)
        outputs, features = self._classifier(inputs)
        return outputs, features

    def functional_forward(
        self, params: Tensor, inputs: Tensor, buffers: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (outputs, features) at any ``params``: differentiable in ``params``, vectorizable.

        Args:
            params: ``(params,)``.
            inputs: ``(B, *shape)``.
            buffers: Take the place of the module's buffers and, in training mode, are updated in place; see
                :meth:`stack_buffers`. Without them the module's own are used.
        """
        tensors = {**self.unflatten(params), **(buffers or {})}
        result: tuple[Tensor, Tensor] = functional_call(self._classifier, tensors, (inputs,))
        return result

    def unflatten(self, params: Tensor) -> dict[str, Tensor]:
        """Return views of a flat vector by the classifier's parameter names."""
        parts = torch.split(params, self._sizes)
        return {f"module.{b.name}": part.view(b.shape) for b, part in zip(self.blocks, parts, strict=True)}

    def unflatten_buffers(self, buffers: Tensor) -> dict[str, Tensor]:
        """Return views of floating buffers ``(buffers,)`` by the classifier's names."""
        parts = torch.split(buffers, [shape.numel() for shape in self._floating.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._floating.items(), parts, strict=True)}

    def flatten_statistics(self, buffers: Mapping[str, Tensor]) -> Tensor:
        """Undo :meth:`unflatten_buffers`, whatever else is among the buffers: return ``(buffers,)``."""
        return torch.cat([self.buffers.new_empty(0), *(buffers[name].reshape(-1) for name in self._floating)])

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """Run the module in evaluation mode, and then in the mode that it was in."""
        training = self.module.training
        self.module.eval()
        try:
            yield
        finally:
            self.module.train(training)

    @contextmanager
    def same_draws(self) -> Iterator[None]:
        """Let what is drawn inside, such as dropout, be drawn once more afterwards."""
        generators = [torch.default_generator, self._generator]
        if self.device.type == "cuda":
            generators.append(torch.cuda.default_generators[self.device.index or 0])
        for layer in self._drawing[:1]:  # all of them share one list
            generators += layer.generators or []  # type: ignore[arg-type]
        states = [generator.get_state() for generator in generators]
        try:
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)

    def stack_buffers(self, buffers: Tensor, counters: Tensor, copies: int) -> dict[str, Tensor]:
        """Return ``copies`` copies of every buffer by its name, each ``(copies, *shape)`` and contiguous.

        Contiguous, so that batch normalisation under ``vmap`` updates them, and any first few of them, in place.
        """
        stacked = {}
        for vector, shapes in ((buffers, self._floating), (counters, self._integer)):
            parts = torch.split(vector, [shape.numel() for shape in shapes.values()])
            for (name, shape), part in zip(shapes.items(), parts, strict=True):
                stacked[name] = part.view(shape).expand(copies, *shape).clone(memory_format=torch.contiguous_format)
        return stacked

    def flatten_buffers(self, stacked: Mapping[str, Tensor], copies: int) -> tuple[Tensor, Tensor]:
        """Undo :meth:`stack_buffers`: return ``(copies, buffers)`` and ``(copies, counters)``."""

        def flatten(like: Tensor, names: Mapping[str, torch.Size]) -> Tensor:
            return torch.cat([like.new_empty(copies, 0), *(stacked[n].reshape(copies, -1) for n in names)], dim=1)

        return flatten(self.buffers, self._floating), flatten(self.counters, self._integer)

    def share_generators(self, generators: Sequence[torch.Generator]) -> None:
        """Say where layers that draw find their numbers under ``vmap``: one generator per client, on the CPU."""
        for layer in self._drawing:
            layer.generators = generators  # type: ignore[assignment]


class _Classifier(nn.Module):
    """Gives logits and features from one pass, which a plain ``forward`` does not."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if not hasattr(module, "features") or not hasattr(module, "head"):
            lacking = " and ".join(f"`{name}`" for name in ("features", "head") if not hasattr(module, name))
            raise ConfigurationError(
                f"the model {type(module).__name__} lacks {lacking}: it needs a method `features(x)` and a last layer "
                "`head`, with forward(x) = head(features(x)); see fedgh.model.base.Model"
            )
        self.module: Any = module

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.module.features(images)
        return self.module.head(features), features


def _flatten(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def _blocks(module: nn.Module, named: list[tuple[str, nn.Parameter]]) -> list[Block]:
    blocks, start = [], 0
    for name, parameter in named:
        kinds = type(module.get_submodule(name.rpartition(".")[0])).__mro__
        layer = next(kind.__name__ for kind in kinds if kind.__module__.startswith("torch.nn"))
        blocks.append(Block(name, start, start + parameter.numel(), parameter.shape, layer))
        start += parameter.numel()
    return blocks


def _share(buffers: dict[str, Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Move buffers into one vector and make each a view of it."""
    for name, buffer in buffers.items():
        if buffer.dtype != dtype:
            raise ConfigurationError(
                f"the model's buffer {name} is {buffer.dtype}, expected {dtype}: floating buffers are averaged as "
                f"float32, all others carried as int64; register it as {dtype}"
            )
    flat = _flatten(list(buffers.values())) if buffers else torch.zeros(0, dtype=dtype, device=device)
    start = 0
    for buffer in buffers.values():
        buffer.data = flat[start : start + buffer.numel()].view(buffer.shape)
        start += buffer.numel()
    return flat
