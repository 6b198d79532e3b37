"""The LightningModule of many clients at once: one vectorized gradient and one optimizer step for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import vmap

from fedgh.algorithm.base import Algorithm
from fedgh.client.base import LocalTraining
from fedgh.core.errors import ConfigurationError
from fedgh.core.flat import FlatModel
from fedgh.core.types import ClientState
from fedgh.task.base import PADDING


@dataclass(frozen=True, slots=True)
class Part:
    """Those clients of a group whose next batch has the same size.

    Attributes:
        places: Their places in the group; ``None`` means the first ones, as many as there are batches.
        images: Normalized images of each client, ``(clients, B, C, H, W)``.
        labels: ``(clients, B)``.
        num_rows: Where short batches were padded, how many rows of each are real; the labels of the others are
            ``PADDING``. ``None``: all.
    """

    places: list[int] | None
    images: Tensor
    labels: Tensor
    num_rows: list[int] | None = None


@dataclass(frozen=True, slots=True)
class GroupWork:
    """What a group of clients has to do in a round.

    Attributes:
        rows: The clients' rows in the cohort's result.
        num_steps: Steps of each, in descending order.
        steps: For each step the parts that make it up; together they hold the clients that still have a batch.
    """

    rows: list[int]
    num_steps: list[int]
    steps: Iterator[list[Part]]


class CohortClient(LocalTraining):
    """Trains one group of clients per training step, all of them to the end.

    The parameters of a group are the rows of one matrix. The local loss of every row is computed by ``torch.vmap``,
    the gradient of their sum is the matrix of the clients' gradients, and the optimizer, elementwise, steps the matrix
    as it would step each row. Clients are ordered by their number of steps, longest first: those who have finished are
    cut off at the end of the matrix, so nobody takes a step too many. Batches of different sizes within a step are
    padded where that changes nothing (:meth:`ignores_padding`) and else computed one size after the other. Buffers are
    stacked like parameters and updated in place.

    Args:
        model: See :class:`~fedgh.client.base.LocalTraining`.
        algorithm: Its ``local_loss`` must be vectorizable: no branching on the values of tensors, no ``.item()``.
        width: Clients in a group, at most.
    """

    def __init__(self, model: FlatModel, algorithm: Algorithm, width: int) -> None:
        super().__init__(model, algorithm)
        self.width = width
        self._matrix = model.params.detach().new_empty(0, model.params.numel())

    def trained(self) -> nn.Parameter:
        """Return the stacked parameters of a group; their memory is kept from round to round."""
        size = min(self.width, len(self._result.client_ids))
        if len(self._matrix) < size:
            self._matrix = self._matrix.new_empty(size, self._matrix.shape[1])
        return nn.Parameter(self._matrix)

    def training_step(self, work: GroupWork, index: int) -> None:  # noqa: ARG002
        """Train a group from the global model and write what it has learned into its rows."""
        server, model, size = self._server, self.model, len(work.rows)
        optimizer = self.fresh_optimizer()
        params: nn.Parameter = optimizer.param_groups[0]["params"][0]
        params.data = self._matrix
        _shorten(optimizer, params, size)
        params.data.copy_(server.params)
        group = _Group(
            params=params,
            buffers=model.stack_buffers(server.buffers, server.counters, size),
            state=_stack([self._states[row] for row in work.rows], model.device),
            generators=[torch.Generator(model.device).manual_seed(self._seeds[row]) for row in work.rows],
            total_loss=torch.zeros(size, device=model.device),
        )
        for step, parts in enumerate(work.steps):
            active = sum(num_steps > step for num_steps in work.num_steps)
            _shorten(optimizer, params, active)
            params.grad = self._gradient(group, parts[0], slice(active)) if parts[0].places is None else None
            if params.grad is None:
                params.grad = torch.empty_like(params)
                for part in parts:
                    places = torch.tensor(part.places).to(model.device, non_blocking=True)
                    params.grad[places] = self._gradient(group, part, places)
            optimizer.step()
        params.grad = None
        self._report(work, group)

    def _gradient(self, group: _Group, part: Part, places: slice | Tensor) -> Tensor:
        """Return the gradient of each client's loss, ``(clients, params)``; updates buffers and losses."""
        params = group.params.detach()[places].requires_grad_()
        buffers = {name: stacked[places] for name, stacked in group.buffers.items()}
        state = {name: stacked[places] for name, stacked in group.state.items()}
        sources = group.generators if part.places is None else [group.generators[k] for k in part.places]
        losses = self._losses(params, buffers, state, part, sources[: len(part.labels)], self._server.params)
        (gradient,) = torch.autograd.grad(losses.sum(), params)
        if part.places is not None:
            for name, stacked in group.buffers.items():
                stacked[places] = buffers[name]
        group.total_loss[places] += losses.detach()
        return gradient

    def _losses(
        self,
        params: Tensor,
        buffers: dict[str, Tensor],
        state: ClientState,
        part: Part,
        generators: list[torch.Generator],
        global_params: Tensor,
    ) -> Tensor:
        """Return the loss of each client's batch, ``(clients,)``; updates the buffers in place."""

        def loss(
            params: Tensor, buffers: dict[str, Tensor], state: ClientState, images: Tensor, labels: Tensor
        ) -> Tensor:
            forward = partial(self.model.functional_forward, buffers=buffers)
            return self.algorithm.local_loss((images, labels), forward, params, global_params, state)

        self.model.share_generators(generators, part.num_rows)
        try:
            result: Tensor = vmap(loss)(params, buffers, state, part.images, part.labels)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise ConfigurationError(
                f"{type(self.algorithm).__name__} on {type(self.model.module).__name__} cannot be vectorized over "
                f"clients ({str(error).splitlines()[0]}); type executor=sequential, or write the loss and the model "
                "without branching on values of tensors, .item() and PyTorch's own dropout"
            ) from error
        return result

    def check(self, images: Tensor, labels: Tensor, state: ClientState) -> None:
        """Try whether the loss can be vectorized, on two clients with this batch; changes nothing.

        Args:
            images: Normalized images, ``(B, C, H, W)``.
            labels: ``(B,)``.
            state: What a client keeps.

        Raises:
            ConfigurationError: If not.
        """
        self._try(Part(None, torch.stack([images, images]), torch.stack([labels, labels])), state)

    def ignores_padding(self, images: Tensor, labels: Tensor, state: ClientState) -> bool:
        """Tell whether rows labelled ``PADDING`` change neither loss nor gradient, by trying it in double precision.

        They do not where every example is computed by itself and cross-entropy alone reads the labels. They do under
        batch normalisation and under FedDecorr.

        Args:
            images: Normalized images, ``(B, C, H, W)`` with B >= 3; the last is used as padding of the others.
            labels: ``(B,)``.
            state: What a client keeps.
        """
        real = len(images) - 1
        padded = labels.clone()
        padded[real:] = PADDING
        try:
            without = self._try(Part(None, images[None, :real], labels[None, :real]), state, torch.float64)
            among = self._try(Part(None, images[None], padded[None], [real]), state, torch.float64)
        except (RuntimeError, IndexError, ConfigurationError):
            return False
        return torch.allclose(without, among, rtol=1e-12, atol=1e-12 * float(without.abs().max()))

    def _try(self, part: Part, state: ClientState, dtype: torch.dtype | None = None) -> Tensor:
        """Return loss and gradient of each client of a part at the model's parameters, ``(clients, 1 + params)``."""
        model, clients, training = self.model, len(part.labels), self.model.module.training
        params = model.params.detach().to(dtype).expand(clients, -1).clone().requires_grad_()
        buffers = model.stack_buffers(model.buffers.to(dtype), model.counters, clients)
        stacked = {n: t.to(dtype) if t.is_floating_point() else t for n, t in _stack([state], model.device).items()}
        stacked = {name: tensor.expand(clients, *tensor.shape[1:]) for name, tensor in stacked.items()}
        part = replace(part, images=part.images.to(dtype))
        generators = [torch.Generator(model.device).manual_seed(0) for _ in range(clients)]
        model.module.train()
        try:
            losses = self._losses(params, buffers, stacked, part, generators, params[0].detach())
        finally:
            model.module.train(training)
        (gradient,) = torch.autograd.grad(losses.sum(), params)
        return torch.cat([losses.detach()[:, None], gradient], dim=1)

    @torch.no_grad()
    def _report(self, work: GroupWork, group: _Group) -> None:
        result, device = self._result, self.model.device
        rows, num_steps = torch.tensor(work.rows), torch.tensor(work.num_steps)
        result.local_steps[rows] = num_steps
        rows = rows.to(device)
        params = self._matrix[: len(rows)]
        matrix = result.updates.rows
        matrix.index_copy_(0, rows, params.sub_(self._server.params).to(matrix.dtype))
        result.buffers[rows], result.counters[rows] = self.model.flatten_buffers(group.buffers, len(rows))
        result.train_loss[rows] = group.total_loss / num_steps.to(device)


@dataclass(frozen=True, slots=True)
class _Group:
    """What a group trains with; row j of everything belongs to place j.

    Attributes:
        params: ``(active clients, params)``, shortened as clients finish.
        buffers: Each ``(clients, *shape)``.
        state: What the clients kept, each ``(clients, *shape)``.
        generators: Of each client's dropout.
        total_loss: Sum over the steps so far, ``(clients,)``.
    """

    params: nn.Parameter
    buffers: dict[str, Tensor]
    state: ClientState
    generators: list[torch.Generator]
    total_loss: Tensor


def _stack(states: list[ClientState], device: torch.device) -> ClientState:
    return {name: torch.stack([state[name] for state in states]).to(device) for name in states[0]}


def _shorten(optimizer: torch.optim.Optimizer, params: nn.Parameter, active: int) -> None:
    """Cut the parameters and whatever the optimizer keeps for them to the first ``active`` rows."""
    if active == len(params):
        return
    before = params.shape
    params.data = params.data[:active]
    for name, value in optimizer.state[params].items():
        if isinstance(value, Tensor) and value.shape == before:
            optimizer.state[params][name] = value[:active]
