"""Local training of many clients at once: one vectorized gradient and one optimizer step for all of them.

The parameters of a group are the rows of one matrix. What an algorithm computes for one client is mapped over the rows
by ``torch.vmap``; the optimizer, elementwise, steps the matrix as it would step each row. Clients are ordered by their
number of steps, longest first: those who have finished a phase are cut off at the end of the matrix, so nobody takes a
step too many. Batches of different sizes within a step are padded where that changes nothing, and else computed one
size after the other. Buffers are stacked like parameters and updated in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.optim import Optimizer

from fedgh.algorithm.base import Algorithm
from fedgh.algorithm.contract import check_alike, check_unwritten, note_writes, wrong_type
from fedgh.client.local import begin_phase, step
from fedgh.client.view import ClientView
from fedgh.core.device import sent
from fedgh.core.errors import ConfigurationError
from fedgh.core.flat import FlatModel
from fedgh.core.forward import VectorizedForward
from fedgh.core.types import ClientResult, ClientState, GlobalModel, Phase, Start, Trained
from fedgh.task.base import Task


@dataclass(frozen=True, slots=True)
class Part:
    """Those clients of a group whose next batch has the same size.

    Attributes:
        places: Their places in the group; ``None`` means the first ones, as many as there are batches.
        inputs: Normalized inputs of each client, ``(clients, B, *shape)``.
        targets: ``(clients, B)`` or ``(clients, B, tasks)``.
        num_rows: Where short batches were padded, how many rows of each are real; the targets of the others are
            ``PADDING``. ``None``: all.
    """

    places: list[int] | None
    inputs: Tensor
    targets: Tensor
    num_rows: list[int] | None = None


@dataclass(frozen=True, slots=True)
class GroupWork:
    """What a group of clients has to do in a round; entry j of every list belongs to place j.

    Attributes:
        clients: What they were sent and keep, in descending order of their steps.
        places: Their rows in ``rows``.
        phases: The parts of their training, each with the steps of every client, in descending order.
        steps: For each step of each phase the parts that make it up: the clients that still have a batch.
        lr: Local learning rate, where a phase has none of its own.
        seeds: Of what the model draws while it trains.
        rows: The matrix of updates of the whole cohort, ``(cohort, params)``.
    """

    clients: Sequence[ClientView]
    places: Sequence[int]
    phases: Sequence[tuple[Phase, Sequence[int]]]
    steps: Iterator[list[Part]]
    lr: float
    seeds: Sequence[int]
    rows: Tensor


def train_group(
    model: FlatModel, algorithm: Algorithm, optimizer: Optimizer, matrix: Tensor, work: GroupWork
) -> list[ClientResult]:
    """Train a group of clients; their updates are written to ``work.rows``.

    Args:
        model: Its module is run at other parameters and buffers than its own, which stay.
        algorithm: What a client computes, vectorizable: no branching on the values of tensors, no ``.item()``.
        optimizer: Elementwise, of one parameter whose data this function sets; as good as new.
        matrix: Data of that parameter, whose first rows the group takes, ``(at least clients, params)``.
        work: The clients, their batches and where their updates go.
    """
    starts = [algorithm.prepare(client) for client in work.clients]
    for start in starts:
        if not isinstance(start, Start):
            raise wrong_type(algorithm, "prepare", start, Start)
    states = {f"client {one.client_id}": start.state for one, start in zip(work.clients, starts, strict=True)}
    check_alike(algorithm, "prepare", "Start.state", states)
    received = [start.received or client.received for start, client in zip(starts, work.clients, strict=True)]
    group = Group.of(model, optimizer, matrix, starts, received, work.seeds)
    for index, (phase, num_steps) in enumerate(work.phases):
        begin_phase(optimizer, phase, work.lr, first=index == 0)
        group.take_in()
        for count in range(num_steps[0]):
            parts = next(work.steps)
            active = sum(steps > count for steps in num_steps)
            group.cut(active)
            _gradient(model, algorithm, work.clients[0].task, group, parts, active)
            before = group.params.detach().clone() if algorithm.overrides("after_step") else group.params
            step(optimizer, phase.columns)
            if algorithm.overrides("after_step"):
                state, dims = group.rows_of(slice(active))
                project = vmap(algorithm.after_step, (0, 0, dims))
                group.params.data.copy_(project(before, group.params.detach(), state))
    group.params.grad = None
    return _results(model, algorithm, group, work)


class Group:
    """What a group trains with; row j of everything belongs to place j.

    Attributes:
        params: The optimizer's parameter: the rows of those that are still at work.
        matrix: Parameters of all, ``(clients, params)``.
        buffers: Each ``(clients, *shape)``.
        state: What the local steps read, each with the dimension along which it is stacked: 0, or None where it is one
            object for all clients.
        global_params: ``(params,)``, or ``(clients, params)`` where clients received different models.
        generators: Of each client's dropout.
        total_loss: Sum over the steps so far, ``(clients,)``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        matrix: Tensor,
        buffers: dict[str, Tensor],
        state: dict[str, tuple[Tensor, int | None]],
        global_params: Tensor,
        generators: list[torch.Generator],
    ) -> None:
        (self.params,) = optimizer.param_groups[0]["params"]
        self.matrix, self.buffers, self.state = matrix, buffers, state
        self.global_params, self.generators = global_params, generators
        self.total_loss = torch.zeros(len(matrix), device=matrix.device)
        self._optimizer = optimizer
        self._whole: dict[str, Tensor] = {}

    @classmethod
    def of(
        cls,
        model: FlatModel,
        optimizer: Optimizer,
        matrix: Tensor,
        starts: Sequence[Start],
        received: Sequence[GlobalModel],
        seeds: Sequence[int],
    ) -> Group:
        """Stack what the clients start from; what is one object for all of them is copied in one go."""
        (params,) = optimizer.param_groups[0]["params"]
        params.data = matrix
        _cut(optimizer, params, matrix[: len(starts)])
        matrix = matrix[: len(starts)]
        _fill(matrix, [start.params for start in starts])
        vectors, counters = [start.buffers for start in starts], [one.counters for one in received]
        if _same(vectors) and _same(counters):
            buffers = model.stack_buffers(vectors[0], counters[0], len(starts))
        else:
            single = [model.stack_buffers(b, c, 1) for b, c in zip(vectors, counters, strict=True)]
            buffers = {name: torch.cat([one[name] for one in single]) for name in single[0]}
        state: dict[str, tuple[Tensor, int | None]] = {}
        for name, first in starts[0].state.items():
            tensors = [start.state[name] for start in starts]
            state[name] = (first, None) if _same(tensors) and len(tensors) > 1 else (torch.stack(tensors), 0)
        global_params = [one.params for one in received]
        return cls(
            optimizer,
            matrix,
            buffers,
            state,
            global_params[0] if _same(global_params) else torch.stack(global_params),
            [torch.Generator().manual_seed(seed) for seed in seeds],
        )

    def rows_of(self, places: slice | Tensor) -> tuple[ClientState, dict[str, int | None]]:
        """Return some clients' state, and along which dimension each tensor is stacked."""
        taken = {name: tensor if dim is None else tensor[places] for name, (tensor, dim) in self.state.items()}
        return taken, {name: dim for name, (_, dim) in self.state.items()}

    def of_client(self, place: int) -> ClientState:
        """Return one client's state."""
        return {name: tensor if dim is None else tensor[place] for name, (tensor, dim) in self.state.items()}

    def cut(self, active: int) -> None:
        """Leave only the first clients at work."""
        if active < len(self.params):
            whole = _cut(self._optimizer, self.params, self.matrix[:active])
            self._whole = {**whole, **self._whole}

    def take_in(self) -> None:
        """Set everybody to work again, for a new phase."""
        self.params.grad = None
        self.params.data = self.matrix
        kept = self._optimizer.state.get(self.params, {})
        kept.update({name: whole for name, whole in self._whole.items() if name in kept})
        self._whole = {}


def _cut(optimizer: Optimizer, params: nn.Parameter, data: Tensor) -> dict[str, Tensor]:
    """Let a parameter have fewer rows, and whatever the optimizer keeps for it; return that as it was."""
    before, kept = params.shape, optimizer.state.get(params, {})
    params.grad = None
    params.data = data
    whole = {name: value for name, value in kept.items() if isinstance(value, Tensor) and value.shape == before}
    kept.update({name: value[: len(data)] for name, value in whole.items()})
    return whole


def _gradient(model: FlatModel, algorithm: Algorithm, task: Task, group: Group, parts: list[Part], active: int) -> None:
    """Set the gradient of the clients at work, ``(active, params)``; updates buffers, state and losses."""
    if parts[0].places is None:
        group.params.grad = gradient_of(model, algorithm, task, group, parts[0], slice(active))
        return
    gradient = torch.empty_like(group.params)
    for part in parts:
        places = sent(torch.tensor(part.places), model.device)
        gradient[places] = gradient_of(model, algorithm, task, group, part, places)
    group.params.grad = gradient


def gradient_of(
    model: FlatModel, algorithm: Algorithm, task: Task, group: Group, part: Part, places: slice | Tensor
) -> Tensor:
    """Return the direction of each client of a part, ``(clients, params)``; updates buffers, state and losses.

    Raises:
        ConfigurationError: If the algorithm or the model cannot be vectorized.
    """
    own_gradient = algorithm.overrides("local_gradient")
    params = group.params.detach()[places].requires_grad_(not own_gradient)
    buffers = {name: stacked[places] for name, stacked in group.buffers.items()}
    state, dims = group.rows_of(places)
    shared = group.global_params.dim() == 1
    received = group.global_params if shared else group.global_params[places]
    generators = group.generators if part.places is None else [group.generators[k] for k in part.places]

    def loss(params: Tensor, buffers: dict[str, Tensor], state: ClientState, *rest: Tensor) -> Tensor:
        inputs, targets, received = rest
        forward = VectorizedForward(model, task, buffers)
        return algorithm.local_loss((inputs, targets), forward, params, received, state)

    def direction(params: Tensor, buffers: dict[str, Tensor], state: ClientState, *rest: Tensor) -> tuple[Any, ...]:
        inputs, targets, received = rest
        forward = VectorizedForward(model, task, buffers)
        given = dict(state)  # a method may answer with the mapping that it was given
        gradient, value, after = algorithm.local_gradient((inputs, targets), forward, params, received, state)
        return gradient, value, {name: tensor for name, tensor in after.items() if tensor is not given.get(name)}

    held = note_writes((f"state[{name!r}]", tensor) for name, tensor in state.items())
    model.share_generators(generators[: len(part.targets)])
    in_dims = (0, 0, dims, 0, 0, None if shared else 0)
    try:
        mapped = vmap(direction if own_gradient else loss, in_dims)
        answer: Any = mapped(params, buffers, state, part.inputs, part.targets, received)
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        raise ConfigurationError(
            f"{type(algorithm).__name__} on {type(model.module).__name__} cannot be vectorized over clients "
            f"({str(error).splitlines()[0]}); type executor=sequential, or write the loss and the model without "
            "branching on values of tensors, .item() and PyTorch's own dropout"
        ) from error
    check_unwritten(algorithm, held)
    gradient: Tensor
    if own_gradient:
        gradient, losses, changed = answer
    else:
        (gradient,), losses, changed = torch.autograd.grad(answer.sum(), params), answer, {}
    if part.places is not None:
        for name, stacked in group.buffers.items():
            stacked[places] = buffers[name]
    for name, tensor in changed.items():
        group.state[name] = (_spread(group, name, dims, tensor, places), 0)
    group.total_loss[places] += losses.detach()
    return gradient.detach()


def _spread(group: Group, name: str, dims: dict[str, int | None], tensor: Tensor, places: slice | Tensor) -> Tensor:
    """Write what changed of some clients' state into that of all."""
    stacked = group.state[name][0] if name in group.state else None
    if stacked is None or dims[name] is None:  # is new, or was one object for all
        like = tensor[0] if stacked is None else stacked
        stacked = like.expand(len(group.matrix), *like.shape).clone()
    stacked[places] = tensor.detach()
    return stacked


@torch.no_grad()
def _results(model: FlatModel, algorithm: Algorithm, group: Group, work: GroupWork) -> list[ClientResult]:
    """Write the updates into their rows and let every client report."""
    local_steps = [sum(steps) for steps in zip(*(num_steps for _, num_steps in work.phases), strict=True)]
    buffers, counters = model.flatten_buffers(group.buffers, len(group.matrix))
    losses = group.total_loss / sent(torch.tensor(local_steps), model.device)
    reports = algorithm.overrides("report")
    updates = group.matrix - group.global_params if reports else group.matrix.sub_(group.global_params)
    work.rows.index_copy_(0, sent(torch.tensor(work.places), model.device), updates.to(work.rows.dtype))
    results = []
    for place, client in enumerate(work.clients):
        row = work.rows[work.places[place]]
        trained = Trained(group.matrix[place], buffers[place], row, group.of_client(place), local_steps[place])
        report = algorithm.report(client, trained)
        results.append(
            ClientResult(client.client_id, buffers[place], counters[place], losses[place], local_steps[place], report)
        )
    return results


def _same(objects: Sequence[Tensor]) -> bool:
    return all(one is objects[0] for one in objects)


def _fill(matrix: Tensor, rows: Sequence[Tensor]) -> None:
    if _same(rows):
        matrix.copy_(rows[0])
        return
    for target, row in zip(matrix, rows, strict=True):
        target.copy_(row)
