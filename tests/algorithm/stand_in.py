"""A forward over any function of parameters and inputs, for examples worked by hand."""

import torch

from fedgh.task.classification import Classification


class StandIn:
    """``run(params, inputs) -> (outputs, features)``, as an algorithm sees a model."""

    def __init__(self, run, task=None, blocks=()):
        self.run, self.blocks = run, blocks
        self.task = task or Classification(("a", "b"))

    def __call__(self, params, inputs):
        return self.run(params, inputs)

    frozen = __call__

    def gradients(self, function, params):
        leaf = params.detach().clone().requires_grad_()
        values = function(leaf)
        rows = [torch.autograd.grad(v, leaf, retain_graph=True)[0] for v in values.reshape(-1)]
        return torch.stack(rows).view(*values.shape, -1), values.detach()
