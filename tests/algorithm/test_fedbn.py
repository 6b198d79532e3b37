"""FedBN: which layers stay, what the server keeps, and running statistics of two domains by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fedgh.algorithm.fedbn import FedBN
from fedgh.core.errors import ConfigurationError
from fedgh.core.flat import FlatModel
from fedgh.federation.round import first_state, run_round
from fedgh.model.mobilenet_v2 import MobileNetV2


def fedbn(make, norm="batch", **settings):
    return make.algorithm(FedBN, norm=norm, **settings)


class Net(nn.Module):
    """Names say nothing about what a layer is."""

    def __init__(self, layer):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), layer)
        self.bn = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def features(self, x):
        return self.bn(self.body(x))

    def forward(self, x):
        return self.head(self.features(x))


class Renamed(nn.BatchNorm1d):
    pass


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), Renamed(4)])
def test_layers_are_found_by_what_they_are(make, layer):
    assert fedbn(make).own_names(FlatModel(Net(layer)).blocks) == ["body.1.weight", "body.1.bias"]


def test_every_normalization_of_a_deep_network(make):
    module = MobileNetV2((3, 32, 32), 10)
    wanted = {
        f"{n}.{p}" for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d) for p in ("weight", "bias")
    }
    assert set(fedbn(make).own_names(FlatModel(module).blocks)) == wanted
    assert len(wanted) > 60


def test_other_normalization_is_refused_unless_asked_for(make):
    blocks = FlatModel(Net(nn.LayerNorm(4))).blocks
    assert fedbn(make, norm="any").own_names(blocks) == ["body.1.weight", "body.1.bias"]
    with pytest.raises(ConfigurationError, match=r"this model has none; .* algorithm.norm=any"):
        fedbn(make).own_names(blocks)
    with pytest.raises(ConfigurationError, match=r"algorithm.norm must be batch or any, got 'group'"):
        fedbn(make, norm="group")


def test_statistics_of_two_domains_stay_apart(make):
    """One batch each: mean 0.1 m, variance 0.9 + 0.1 v, of the client's own inputs; the server's stay 0 and 1."""
    dataset = make.dataset(num_train=40)
    images = dataset.train_images.clone()
    images[20:] = images[20:] // 4
    dataset = replace(dataset, train_images=images)
    owners = torch.repeat_interleave(torch.arange(2), 20).numpy()
    algorithm = fedbn(make, batch_size=20)
    parts = {"dataset": dataset, "owners": owners, "num_clients": 2, "module": Net(nn.BatchNorm1d(4))}
    federation = make.federation(algorithm=algorithm, **parts)
    server = run_round(federation, first_state(federation)).server
    assert server.buffers.tolist() == [0] * 4 + [1] * 4
    for k, rows in enumerate((slice(20), slice(20, 40))):
        inputs = dataset.normalize(images[rows]).flatten(1)
        wanted = torch.cat([0.1 * inputs.mean(0), 0.9 + 0.1 * inputs.var(0)])
        torch.testing.assert_close(server.clients[k]["buffers"], wanted)
        model = algorithm.personal(next(federation.executor.views([k], server)))
        torch.testing.assert_close(model.buffers, wanted)
    first, second = (server.clients[k]["own"] for k in (0, 1))
    assert first.shape == (8,)
    assert not torch.equal(first, second)


def test_the_second_visit_goes_on_from_the_own_statistics(make):
    algorithm = fedbn(make, batch_size=20)
    federation = make.federation(algorithm=algorithm, num_clients=3, module=Net(nn.BatchNorm1d(4)))
    server = first_state(federation)
    inputs = federation.dataset.normalize(federation.dataset.train_images[federation.executor.client_indices[0]])
    for visit in (1, 2):
        server = run_round(federation, server).server
        wanted = (1 - 0.9**visit) * inputs.flatten(1).mean(0)
        torch.testing.assert_close(server.clients[0]["buffers"][:4], wanted)
    assert server.buffers.tolist() == [0] * 4 + [1] * 4
