"""What a local loss may do with the model: run it at any parameters, run it without a trace, differentiate.

Two implementations with one meaning: one client on the module itself, or one client among many under ``vmap``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call, vjp

from fedgh.core.flat import FlatModel

if TYPE_CHECKING:
    from fedgh.task.base import Task


class Forward(ABC):
    """The model as an algorithm sees it; ``params`` is always the flat vector ``(params,)``.

    Attributes:
        task: What outputs and targets mean; ``task.loss(outputs, targets)``.
        blocks: Name and columns of every parameter.
    """

    def __init__(self, model: FlatModel, task: Task) -> None:
        self.model = model
        self.task = task
        self.blocks = model.blocks

    @abstractmethod
    def __call__(self, params: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return (outputs, features) in training mode; running statistics take note of the batch."""

    @abstractmethod
    def frozen(self, params: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same, for models of reference: running statistics take no note.

        Batch normalization uses the batch's own statistics and dropout draws, as it does for the client's model.
        """

    @abstractmethod
    def evaluated(self, params: Tensor, inputs: Tensor, buffers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same in evaluation mode, with running statistics ``(buffers,)``: of models at rest."""

    @abstractmethod
    def with_buffers(self, buffers: Tensor) -> VectorizedForward:
        """Return the forward of a second model with running statistics ``(buffers,)`` of its own.

        They are copied; :attr:`VectorizedForward.statistics` are what its forwards have made of them.
        """

    def part(self, name: str, params: Tensor, inputs: Tensor) -> Tensor:
        """Return what a named part of the model makes of its inputs: a discriminator, a second head.

        Args:
            name: Of a submodule without buffers, as in ``named_modules()``.
            params: As everywhere, those of the whole model.
            inputs: ``(B, ...)``, what the part takes.
        """
        prefix = f"module.{name}."
        own = {n.removeprefix(prefix): p for n, p in self.model.unflatten(params).items() if n.startswith(prefix)}
        outputs: Tensor = functional_call(self.model.module.get_submodule(name), own, (inputs,))
        return outputs

    def same_draws(self) -> AbstractContextManager[None]:
        """Let what is drawn inside, such as dropout, be drawn once more by the next forward after it."""
        return self.model.same_draws()

    @abstractmethod
    def gradients(self, function: Callable[[Tensor], Tensor], params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of every entry of ``function(params)``, ``(*values, params)``, and the values.

        Inside ``function`` the argument is not the same object as ``params``; forwards must be given the argument.
        """


class SingleForward(Forward):
    """The forward of one client, on the module's own parameters where they are the ones asked for."""

    def __call__(self, params: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Forward`."""
        return self.model.forward(params, inputs)

    def frozen(self, params: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Forward`."""
        model = self.model
        buffers = {n: b[0] for n, b in model.stack_buffers(model.buffers, model.counters, 1).items()}
        return model.forward(params, inputs, buffers)

    def evaluated(self, params: Tensor, inputs: Tensor, buffers: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Forward`."""
        with self.model.evaluation_mode():
            return self.model.forward(params, inputs, self.model.unflatten_buffers(buffers))

    def with_buffers(self, buffers: Tensor) -> VectorizedForward:
        """See :class:`Forward`."""
        model = self.model
        own = {name: buffer[0] for name, buffer in model.stack_buffers(buffers, model.counters, 1).items()}
        return VectorizedForward(model, self.task, own)

    def gradients(self, function: Callable[[Tensor], Tensor], params: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Forward`."""
        model = self.model
        own = params is model.params  # its gradient arrives in one flat vector, whatever the number of layers
        leaf = params if own else params.detach().requires_grad_()
        values = function(leaf)
        entries, found = values.reshape(-1).unbind(), []
        for index, value in enumerate(entries):
            keep = index + 1 < len(entries)
            if own:
                model.zero_grad()
                value.backward(retain_graph=keep)  # type: ignore[no-untyped-call]
                found.append(model.params.grad.clone())  # type: ignore[union-attr]
            else:
                found.append(torch.autograd.grad(value, leaf, retain_graph=keep)[0])
        return torch.stack(found).view(*values.shape, -1), values.detach()


class VectorizedForward(Forward):
    """The forward of one client inside ``vmap``, whose buffers are slices of stacked ones; or of a second model.

    Args:
        model: See :class:`Forward`.
        task: See there.
        buffers: By name; updated in place.
    """

    def __init__(self, model: FlatModel, task: Task, buffers: dict[str, Tensor]) -> None:
        super().__init__(model, task)
        self.buffers = buffers

    def __call__(self, params: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Forward`."""
        return self.model.functional_forward(params, inputs, self.buffers)

    def frozen(self, params: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Forward`."""
        return self.model.functional_forward(params, inputs, {n: b.clone() for n, b in self.buffers.items()})

    def evaluated(self, params: Tensor, inputs: Tensor, buffers: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Forward`."""
        with self.model.evaluation_mode():
            return self.model.functional_forward(params, inputs, self.model.unflatten_buffers(buffers))

    def with_buffers(self, buffers: Tensor) -> VectorizedForward:
        """See :class:`Forward`."""
        own = {name: buffer.clone() for name, buffer in self.buffers.items()}
        for name, buffer in self.model.unflatten_buffers(buffers).items():
            own[name].copy_(buffer)  # one per client, even of statistics that are one object for all of them
        return VectorizedForward(self.model, self.task, own)

    @property
    def statistics(self) -> Tensor:
        """Running statistics as they are now, ``(buffers,)``."""
        return self.model.flatten_statistics(self.buffers)

    def gradients(self, function: Callable[[Tensor], Tensor], params: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Forward`."""
        outer = self.buffers

        def traced(argument: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            # a gradient transform refuses writes into what it captured: running statistics leave as an extra result
            self.buffers = {name: buffer.clone() for name, buffer in outer.items()}
            try:
                return function(argument), self.buffers
            finally:
                self.buffers = outer

        pulled: Any = vjp(traced, params, has_aux=True)
        values, pullback, after = pulled
        for name, buffer in outer.items():
            buffer.copy_(after[name])
        directions = torch.eye(values.numel(), dtype=values.dtype, device=values.device)
        rows = [pullback(direction.view(values.shape))[0] for direction in directions]
        return torch.stack(rows).view(*values.shape, -1), values
