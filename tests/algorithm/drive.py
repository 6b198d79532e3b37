"""Plays rounds of a method on functions of our own choice, hook by hook, and nothing of the engine."""

from dataclasses import replace

import torch

from fedgh.core.types import Trained
from tests.algorithm.stand_in import Quadratic, StandIn, client_of, cohort_of


def local_steps(algorithm, client, run, target, steps):
    """Return what plain or momentum SGD makes of a client, and what it reports; the gradient is taken at ``target``."""
    start, forward = algorithm.prepare(client), StandIn(run, Quadratic())
    settings, state = algorithm.optimizer_settings(), start.state
    received = start.received or client.received
    params, momentum = start.params.clone(), torch.zeros_like(start.params)
    for _ in range(steps):
        batch = target, torch.zeros(1, dtype=torch.int64)
        direction, _, state = algorithm.local_gradient(batch, forward, params, received.params, state)
        momentum = settings["momentum"] * momentum + direction
        params = algorithm.after_step(params, params - client.lr * momentum, state)
    trained = Trained(params, start.buffers, params - received.params, state, steps)
    return trained, algorithm.report(client, trained)


def play(algorithm, server, targets, client_ids, num_examples, run, steps, lr=0.1):
    """Return the server after a round with the plain mean.

    Args:
        algorithm: The method.
        server: After ``initialize``.
        targets: What ``run(params, target)`` is given, by client id.
        client_ids: Who takes part.
        num_examples: n_k of all.
        run: ``(params, target) -> (loss, features)``.
        steps: Local steps by client id.
        lr: Local learning rate.
    """
    sent = algorithm.broadcast(server, client_ids)
    received = server if sent.params is None else replace(server, params=sent.params)
    reports, rows = {}, []
    for k in client_ids:
        client = client_of(received, k, lr, {**sent.everyone, **sent.own.get(k, {})})
        trained, reports[k] = local_steps(algorithm, client, run, targets[k], steps[k])
        rows.append(trained.update)
    names = reports[client_ids[0]].message
    messages = {name: [reports[k].message[name] for k in client_ids] for name in names}
    sizes = [num_examples[k] for k in client_ids]
    result = cohort_of(torch.stack(rows), client_ids, sizes, messages, [steps[k] for k in client_ids])
    result = replace(result, memory=server.memory)
    weights = algorithm.client_weights(algorithm.client_shares(result.num_examples), result)
    after = replace(server, params=server.params + weights @ result.updates.rows)
    clients = {**server.clients, **{k: report.state for k, report in reports.items()}}
    return replace(algorithm.conclude(server, after, result), clients=clients, round_index=server.round_index + 1)


def begin(algorithm, server, num_examples):
    """Return the state before round 0."""
    return algorithm.initialize(server, (), torch.tensor(num_examples, dtype=torch.float64), seed=0)


class Quadratics:
    """``f_k = 1/2 (theta - b_k)^T A_k (theta - b_k)`` with A_k and b_k far apart, 5 clients of unequal sizes."""

    def __init__(self, width=3, clients=5, seed=0):
        generator = torch.Generator().manual_seed(seed)
        roots = torch.randn(clients, width, width, generator=generator, dtype=torch.float64)
        self.matrices = roots @ roots.mT / width + 0.5 * torch.eye(width, dtype=torch.float64)
        self.centres = 3 * torch.randn(clients, width, generator=generator, dtype=torch.float64)
        self.num_examples = [10, 25, 40, 5, 20][:clients]
        self.targets = list(zip(self.matrices, self.centres, strict=True))

    def run(self, params, target):
        matrix, centre = target
        return (params - centre) @ matrix @ (params - centre) / 2, params

    def gradient(self, k, params):
        return self.matrices[k] @ (params - self.centres[k])

    def shares(self, weights):
        sizes = torch.tensor(self.num_examples, dtype=torch.float64)
        return torch.full_like(sizes, 1 / len(sizes)) if weights == "uniform" else sizes / sizes.sum()

    def optimum(self, weights):
        """Return where ``sum_k p_k f_k`` is least."""
        p = self.shares(weights)[:, None, None]
        right = (p * self.matrices @ self.centres[:, :, None]).sum(0)[:, 0]
        return torch.linalg.solve((p * self.matrices).sum(0), right)

    def two_of_five(self, round_index):
        order = torch.randperm(5, generator=torch.Generator().manual_seed(round_index))
        return sorted(order[:2].tolist())
