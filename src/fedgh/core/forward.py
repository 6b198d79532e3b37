"""What a local loss may do with the model: run it at any parameters, run it without a trace, differentiate.

Two implementations with one meaning: one client on the module itself, or one client among many under ``vmap``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import vjp

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
    """The forward of one client inside ``vmap``; its buffers are slices of stacked ones.

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
