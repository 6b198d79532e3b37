"""What is not finite is set aside before it can spread: what clients send, and what a round makes of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgh.core.errors import TrainingError
from fedgh.core.types import CohortResult, GlobalModel, ServerState
from fedgh.core.updates import all_finite

if TYPE_CHECKING:
    from fedgh.aggregator.base import Aggregate
    from fedgh.federation.round import Federation

log = logging.getLogger(__name__)

UNUSUAL = 1e4
"""Parameters, and losses, beyond this are looked at twice."""


class NonFiniteError(TrainingError):
    """Something computed on the server is not finite; the message says what."""


def is_finite(result: CohortResult, block_grams: Tensor) -> bool:
    """Tell whether all that clients sent is finite; updates are where their products are."""
    return all_finite(block_grams.diagonal(dim1=1, dim2=2), result.buffers, *result.messages.values())


def set_aside_nonfinite(
    result: CohortResult, block_grams: Tensor, on_nonfinite: str, round_index: int, origin: str = ""
) -> tuple[CohortResult, Tensor, tuple[int, ...]]:
    """Take out the clients who sent something that is not finite, before anything is weighed.

    A NaN row would make every comparison false, so a conflict-aware rule would silently become the mean and the mean
    would still be NaN; infinite running statistics would ruin the model's evaluation only.

    Args:
        result: What all clients sent.
        block_grams: Of their updates, ``(blocks, clients, clients)``.
        on_nonfinite: ``drop`` or ``raise``.
        round_index: Round t, from 0.
        origin: What :func:`of_the_server` says about the model that they started from.

    Returns:
        The result and Gram matrices of the others, and the ids set aside.

    Raises:
        TrainingError: If there are any and ``on_nonfinite`` is ``raise``.
    """
    suspect = ~block_grams.sum(0).diagonal().isfinite()  # large finite rows overflow, too
    update = torch.zeros_like(suspect)
    for row in suspect.nonzero().flatten().tolist():
        update[row] = not bool(result.updates.rows[row].isfinite().all())
    broken = {"the update of {} is not finite (the local loss overflowed)": update}
    if result.buffers.numel():
        broken["the running statistics of {} are not finite"] = ~result.buffers.isfinite().all(1).cpu()
    for name, tensor in result.messages.items():
        if tensor.is_floating_point():
            broken[f"the message {name!r} of {{}} is not finite"] = (
                ~tensor.isfinite().reshape(len(tensor), -1).all(1).cpu()
            )
    bad, causes = torch.zeros_like(update), []
    for cause, where in broken.items():  # whoever has an earlier cause is not named again
        ids = [k for k, yes in zip(result.client_ids, (where & ~bad).tolist(), strict=True) if yes]
        if ids:
            causes.append(cause.format(f"client{'s' if len(ids) > 1 else ''} {', '.join(map(str, ids))}"))
        bad |= where
    if not causes:
        return result, block_grams, ()
    message = f"round {round_index + 1}: {'; '.join(causes)}{origin}"
    if on_nonfinite == "raise":
        rate = "server_optimizer.lr" if origin else "algorithm.optimizer.lr"
        raise TrainingError(f"{message}; lower {rate}, or go on without such clients: on_nonfinite=drop")
    log.warning("%s; set aside", message)
    dropped = tuple(k for k, yes in zip(result.client_ids, bad.tolist(), strict=True) if yes)
    return result.select(~bad), block_grams[:, ~bad][:, :, ~bad], dropped


def require_finite(after: ServerState, before: ServerState) -> None:
    """Check what a round has made of the server's state, naming the first thing that is not finite.

    Raises:
        NonFiniteError: If there is one. What has not changed is not looked at.
    """
    old = {id(tensor) for _, tensor in _tensors(before)}
    new = [(n, t) for n, t in _tensors(after) if t.is_floating_point() and t.numel() and id(t) not in old]
    for name, tensor in new:
        if not all_finite(tensor):
            raise NonFiniteError(f"{name} would not be finite; lower server_optimizer.lr or algorithm.optimizer.lr")


def require_usable(federation: Federation, after: ServerState, before: ServerState, aggregate: Aggregate) -> None:
    """Refuse global models that are finite, but too large to be computed with: their clients would seem to fail.

    Raises:
        NonFiniteError: If the loss of one is not finite on a few training examples. Looked at only where a parameter
            is larger than any of a network that learns.
    """
    for old, new in zip(before.models, after.models, strict=False):  # CFL adds models, copies of those before them
        largest = 0.0 if new.params is old.params else _largest(new.params)
        if largest > UNUSUAL and not math.isfinite(_loss(federation, new)):
            of_clients = _largest(aggregate.update) > UNUSUAL
            raise NonFiniteError(
                f"the server's step would take the global model's parameters up to {largest:.1e}, where its loss is "
                f"not finite; lower {'algorithm.optimizer.lr' if of_clients else 'server_optimizer.lr'}"
            )


def of_the_server(federation: Federation, server: ServerState) -> str:
    """Return, as the end of a sentence, that clients fail for the model that they got; empty if it is a sound one."""
    for model in server.models:
        largest = _largest(model.params)
        if largest > UNUSUAL and not _loss(federation, model) < UNUSUAL:
            left = f"as round {server.round_index} left it, " if server.round_index else ""
            return (
                f", because of the global model that they started from: {left}its parameters reach {largest:.1e} and "
                f"its loss is {_loss(federation, model):.1e}"
            )
    return ""


def _largest(tensor: Tensor) -> float:
    return max(abs(float(end)) for end in tensor.aminmax()) if tensor.numel() else 0.0


@torch.no_grad()
def _loss(federation: Federation, model: GlobalModel) -> float:
    """Return a global model's loss on a few training examples."""
    flat, dataset = federation.model, federation.dataset
    training = flat.module.training
    flat.load(model.params, model.buffers, model.counters)
    flat.module.eval()
    outputs, _ = flat.forward(flat.params, dataset.normalize(dataset.train_inputs[:8]))
    flat.module.train(training)
    return float(dataset.task.loss(outputs, dataset.train_targets[:8]))


def _tensors(server: ServerState) -> Iterator[tuple[str, Tensor]]:
    for index, model in enumerate(server.models):
        which = f"global model {index}" if len(server.models) > 1 else "the global model"
        yield f"{which}: its parameters", model.params
        yield f"{which}: its running statistics", model.buffers
        yield from _named(f"the server optimizer's state of {which}", model.optimizer)
        yield from _named(f"the aggregator's state of {which}", model.aggregator)
    yield from _named("the algorithm's memory", server.memory)


def _named(of: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        yield f"{of}: {name}", tensor
