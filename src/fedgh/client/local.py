"""Local training of one client: from what it was sent to what it reports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.optim import Optimizer

from fedgh.algorithm.base import Algorithm, Batch
from fedgh.algorithm.contract import wrong_type
from fedgh.client.view import ClientView
from fedgh.core.flat import FlatModel
from fedgh.core.forward import SingleForward
from fedgh.core.types import ClientResult, Phase, Start, Trained


@dataclass(frozen=True, slots=True)
class LocalWork:
    """What one client has to do in a round.

    Attributes:
        client: What it was sent and keeps.
        batches: Its batches in order: normalized inputs ``(B, *shape)`` and targets.
        phases: The parts of its training, with their numbers of steps.
        lr: Local learning rate, where a phase has none of its own.
        seed: Of what the model draws while it trains (dropout).
        row: Where its update goes, ``(params,)``.
    """

    client: ClientView
    batches: Iterable[Batch]
    phases: Sequence[tuple[Phase, int]]
    lr: float
    seed: int
    row: Tensor


def train_client(model: FlatModel, algorithm: Algorithm, optimizer: Optimizer, work: LocalWork) -> ClientResult:
    """Train one client and return what came of it; its update is written to ``work.row``.

    Args:
        model: Overwritten: it plays the client.
        algorithm: What a client computes.
        optimizer: Of ``model.params``, as good as new.
        work: The client, its batches and where its update goes.
    """
    client = work.client
    start = algorithm.prepare(client)
    if not isinstance(start, Start):
        raise wrong_type(algorithm, "prepare", start, Start)
    received = start.received or client.received
    model.load(start.params, start.buffers, received.counters)
    model.seed(work.seed)
    forward, params, state = SingleForward(model, client.task), model.params, start.state
    own_gradient, own_step = algorithm.overrides("local_gradient"), algorithm.overrides("after_step")
    total_loss, num_steps = torch.zeros((), device=model.device), 0
    for phase, batch in in_phases(work, optimizer):
        if own_gradient:
            gradient, loss, state = algorithm.local_gradient(batch, forward, params, received.params, state)
            params.grad.copy_(gradient.detach())  # type: ignore[union-attr]
        else:
            model.zero_grad()
            loss = algorithm.local_loss(batch, forward, params, received.params, state)
            loss.backward()  # type: ignore[no-untyped-call]
        before = params.detach().clone() if own_step else params
        step(optimizer, phase.columns)
        if own_step:
            params.data.copy_(algorithm.after_step(before, params.detach(), state))
        total_loss += loss.detach()  # stays on the device: no synchronization inside a client's steps
        num_steps += 1
    torch.sub(params.detach(), received.params, out=work.row)
    trained = Trained(params.detach(), model.buffers, work.row, state, num_steps)
    report = algorithm.report(client, trained)
    buffers, counters = model.buffers.clone(), model.counters.clone()
    return ClientResult(client.client_id, buffers, counters, total_loss / num_steps, num_steps, report)


def in_phases(work: LocalWork, optimizer: Optimizer) -> Iterator[tuple[Phase, Batch]]:
    """Yield every batch with its phase, the optimizer being set to that phase."""
    batches = iter(work.batches)
    for index, (phase, num_steps) in enumerate(work.phases):
        begin_phase(optimizer, phase, work.lr, first=index == 0)
        for batch in islice(batches, num_steps):
            yield phase, batch


def begin_phase(optimizer: Optimizer, phase: Phase, lr: float, first: bool) -> None:
    """Set the optimizer's rate, if it has one, and make it forget the phase before where that is asked for."""
    for group in optimizer.param_groups:
        if "lr" in group:
            group["lr"] = lr if phase.lr is None else phase.lr
    if not first and phase.fresh_momentum:
        optimizer.state.clear()


def step(optimizer: Optimizer, columns: Tensor | None) -> None:
    """Take an optimizer step, of all columns or of those of a mask ``(params,)`` alone."""
    if columns is None:
        optimizer.step()
    else:
        step_columns(optimizer, columns)


@torch.no_grad()
def step_columns(optimizer: Optimizer, columns: Tensor) -> None:
    """Take an optimizer step of some columns: the others get neither step, momentum nor weight decay.

    Args:
        optimizer: Elementwise, with one parameter, ``(params,)`` or ``(clients, params)``, whose gradient is set.
        columns: ``(params,)`` bool.
    """
    (parameter,) = optimizer.param_groups[0]["params"]
    before = parameter.clone()
    slots = {n: t.clone() for n, t in optimizer.state[parameter].items() if _like(t, parameter)}
    parameter.grad.masked_fill_(~columns, 0.0)
    optimizer.step()
    parameter.copy_(torch.where(columns, parameter, before))
    for name, tensor in optimizer.state[parameter].items():
        if _like(tensor, parameter):
            optimizer.state[parameter][name] = torch.where(columns, tensor, slots.get(name, torch.zeros_like(tensor)))


def _like(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape
