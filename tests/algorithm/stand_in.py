"""A forward over any function of parameters and inputs, and clients and cohorts, for examples worked by hand."""

from contextlib import nullcontext
from types import SimpleNamespace

import torch

from fedgh.core.types import CohortResult, GlobalModel, ServerState
from fedgh.core.updates import UpdateMatrix
from fedgh.task.classification import Classification

NOTHING = torch.zeros(0)


class Quadratic:
    """A task whose outputs are its losses already; targets count for nothing."""

    def loss(self, outputs, targets):
        return outputs


class StandIn:
    """``run(params, inputs) -> (outputs, features)``, as an algorithm sees a model."""

    statistics = NOTHING

    def __init__(self, run, task=None, blocks=()):
        self.run, self.blocks = run, blocks
        self.task = task or Classification(("a", "b"))

    def __call__(self, params, inputs):
        return self.run(params, inputs)

    frozen = __call__

    def evaluated(self, params, inputs, buffers):
        return self.run(params, inputs)

    def with_buffers(self, buffers):
        return self

    def same_draws(self):
        return nullcontext()

    def gradients(self, function, params):
        leaf = params.detach().clone().requires_grad_()
        values = function(leaf)
        rows = [torch.autograd.grad(v, leaf, retain_graph=True)[0] for v in values.reshape(-1)]
        return torch.stack(rows).view(*values.shape, -1), values.detach()


def half_square(params, centre):
    """``1/2 |theta - b|^2``, whatever the batch."""
    return (params - centre).square().sum() / 2, params


def state_of(params):
    """A server before its first round."""
    return ServerState(0, torch.tensor(params, dtype=torch.float64), NOTHING, NOTHING.long())


def client_of(server, client_id=0, lr=0.1, message=None, **settings):
    """A client that has just received the global model."""
    received = GlobalModel(server.params, server.buffers, server.counters)
    state = dict(server.clients.get(client_id, {}))
    given = {"client_id": client_id, "lr": lr, "message": message or {}, "state": state, "models": server.models}
    return SimpleNamespace(received=received, **{**given, **settings})


def cohort_of(rows, client_ids, num_examples, messages=None, local_steps=None):
    """What a server gets from these clients."""
    updates, count = UpdateMatrix.of(rows), len(client_ids)
    return CohortResult(
        client_ids=tuple(client_ids),
        updates=updates,
        buffers=torch.zeros(count, 0),
        counters=torch.zeros(count, 0, dtype=torch.int64),
        num_examples=torch.tensor(num_examples, dtype=torch.float64),
        local_steps=torch.tensor(local_steps or [1] * count),
        train_loss=torch.zeros(count, dtype=torch.float64),
        messages={name: torch.stack(tensors) for name, tensors in (messages or {}).items()},
    )
