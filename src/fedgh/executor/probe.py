"""What the vectorized executor finds out before it trains: does the loss vectorize, and does padding change it?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedgh.algorithm.contract import wrong_type
from fedgh.client.vectorized import Group, Part, gradient_of
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import GlobalModel, ServerState, Start
from fedgh.executor.gather import sizes_of
from fedgh.task.base import PADDING

if TYPE_CHECKING:
    from fedgh.executor.vectorized import VectorizedExecutor


def try_group(executor: VectorizedExecutor) -> None:
    """Try a step of two clients; changes nothing.

    Raises:
        ConfigurationError: If algorithm or model cannot be vectorized.
    """
    inputs, targets = _few(executor)
    _gradients(executor, Part(None, torch.stack([inputs, inputs]), torch.stack([targets, targets])))


def ignores_padding(executor: VectorizedExecutor) -> bool:
    """Tell whether rows whose target is ``PADDING`` change neither loss nor gradient, by trying it in double precision.

    They do not where every example is computed by itself and the task's loss alone reads the targets. They do under
    batch normalisation and under FedDecorr.
    """
    inputs, targets = _few(executor)
    real = len(inputs) - 1
    if real < 2:
        return False
    padded = targets.clone()
    padded[real:] = PADDING
    try:
        without = _gradients(executor, Part(None, inputs[None, :real], targets[None, :real]), torch.float64)
        among = _gradients(executor, Part(None, inputs[None], padded[None], [real]), torch.float64)
    except (RuntimeError, IndexError, ConfigurationError):
        return False
    return torch.allclose(without, among, rtol=1e-12, atol=1e-12 * float(without.abs().max()))


def step_of(executor: VectorizedExecutor, num_clients: int, num_examples: int) -> Callable[[], object]:
    """Return a step of so many clients on so many examples each."""
    inputs, targets = _few(executor)
    repeated = torch.arange(num_examples, device=targets.device) % len(targets)
    inputs, targets = (torch.stack([tensor[repeated]] * num_clients) for tensor in (inputs, targets))
    part = Part(None, inputs, targets)
    return lambda: _gradients(executor, part)


def _few(executor: VectorizedExecutor) -> tuple[Tensor, Tensor]:
    dataset = executor.dataset
    return dataset.normalize(dataset.train_inputs[:4]), dataset.train_targets[:4]


def _gradients(executor: VectorizedExecutor, part: Part, dtype: torch.dtype | None = None) -> Tensor:
    """Return loss and gradient of each client of a part, ``(clients, 1 + params)``.

    Everything is moved a little away from where training starts: there distances and contrasts between the client's
    model, the global one and what is kept vanish, and with them what padding might change in them.
    """
    model, algorithm, clients = executor.model, executor.algorithm, len(part.targets)
    training = model.module.training
    generator = torch.Generator().manual_seed(0)

    def moved(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        noise = torch.randn(tensor.shape, generator=generator).to(tensor)
        return (tensor + 0.01 * noise).to(dtype)

    start, received = _first_start(executor)
    received = replace(received, params=received.params.to(dtype))
    start = Start(moved(start.params), start.buffers.to(dtype), {n: moved(t) for n, t in start.state.items()})
    params = nn.Parameter(start.params.repeat(clients, 1))
    optimizer = torch.optim.SGD([params], lr=0.0)
    group = Group.of(model, optimizer, params.data, [start] * clients, [received] * clients, [0] * clients)
    group.total_loss = group.total_loss.to(dtype)
    # even what is one object for all clients is stacked, as it is in a group of many
    group.state = {
        n: (t if dim == 0 else t.expand(clients, *t.shape).clone(), 0) for n, (t, dim) in group.state.items()
    }
    if part.inputs.is_floating_point():
        part = replace(part, inputs=part.inputs.to(dtype))
    model.module.train()
    try:
        gradient = gradient_of(model, algorithm, executor.task, group, part, slice(clients))
    finally:
        model.module.train(training)
    return torch.cat([group.total_loss[:, None], gradient], dim=1)


def _first_start(executor: VectorizedExecutor) -> tuple[Start, GlobalModel]:
    """Return where client 0 would start in round 0, and what it would receive."""
    model, algorithm = executor.model, executor.algorithm
    server = ServerState(0, model.params.detach().clone(), model.buffers.clone(), model.counters.clone())
    server = algorithm.initialize(server, model.blocks, sizes_of(executor.client_indices), executor.seed)
    (client,) = executor.views([0], server)
    start = algorithm.prepare(client)
    if not isinstance(start, Start):
        raise wrong_type(algorithm, "prepare", start, Start)
    return start, start.received or client.received
