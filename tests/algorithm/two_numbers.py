"""Two clients, one body weight b and one head weight h: ``(h b - y)^2`` with y = 2 and y = 0, from b = h = 1."""

import torch
from torch import nn

from fedgh.dataset.base import TensorDataset
from fedgh.task.regression import Regression


class TwoNumbers(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        for layer in (self.body, self.head):
            nn.init.ones_(layer.weight)

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.head(self.features(x))


def two_clients(make, algorithm, **settings):
    """Return the federation; a rate of 0.05 here is one of 0.1 for ``1/2 (h b - y)^2``. Columns: b, h."""
    inputs, targets = torch.ones(2, 1), torch.tensor([2.0, 0.0])
    task = Regression(variance=1.0, edges=(1.0,), outputs=1)
    dataset = TensorDataset("two", inputs, targets, inputs, targets, task)
    parts = {"dataset": dataset, "module": TwoNumbers(), "owners": torch.tensor([1, 0]).numpy()[::-1].copy()}
    return make.federation(algorithm=algorithm, num_clients=2, **parts, **settings)
