"""The golden run: three rounds of the engine against a plain PyTorch loop, equal in every bit."""

from copy import deepcopy

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedgh.algorithm.fedavg import FedAvg
from fedgh.algorithm.fedprox import FedProx
from fedgh.core.flat import FlatModel
from fedgh.core.seeding import numpy_generator, torch_generator, torch_seed
from fedgh.dataset.augmentation import Augmentation
from fedgh.dataset.stream import batch_sizes, client_batches
from fedgh.federation.round import initial_state, run_round
from fedgh.model.cnn2 import CNN2

SEED, MU, SHAPE = 1, 0.1, (3, 12, 12)
OWNERS = torch.repeat_interleave(torch.arange(4), torch.tensor([5, 9, 16, 30])).numpy()


def small_cnn():
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return CNN2(SHAPE, 3, channels=[5, 7], hidden=11, dropout=[0.25, 0.5])


def train_alone(module, federation, client, round_index, mu):
    """Train a copy of a plain module, parameter by parameter, with PyTorch's own optimizer; return its update."""
    local = deepcopy(module).train()
    dropout = torch.Generator().manual_seed(torch_seed(SEED, "client", round_index, client))
    for layer in local.modules():
        if hasattr(layer, "generator"):
            layer.generator = dropout
    torch.manual_seed(torch_seed(SEED, "client", round_index, client))  # of PyTorch's own dropout
    start = [p.detach().clone() for p in local.parameters()]
    optimizer = torch.optim.SGD(local.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    batches = client_batches(
        federation.dataset,
        torch.from_numpy(federation.partition.client_indices[client]),
        4,
        2 * len(batch_sizes(len(federation.partition.client_indices[client]), 4)),
        numpy_generator(SEED, "shuffle", round_index, client),
        torch_generator(SEED, "augment", round_index, client),
    )
    for images, labels in batches:
        optimizer.zero_grad()
        loss = cross_entropy(local(images), labels)
        if mu:
            distance = torch.cat([(p - s).flatten() for p, s in zip(local.parameters(), start, strict=True)])
            loss = loss + 0.5 * mu * distance.square().sum()
        loss.backward()
        optimizer.step()
    return torch.cat([(p.detach() - s).flatten() for p, s in zip(local.parameters(), start, strict=True)]), local


@pytest.mark.parametrize("mu", [0.0, MU])
@pytest.mark.parametrize("build", [small_cnn, "normed"])
def test_golden_run(make, build, mu):
    """Dropout, batch normalisation, augmentation, momentum, weight decay and FedProx included."""
    plain = make.normed(shape=SHAPE) if build == "normed" else build()
    federation = make.federation(
        num_clients=4,
        owners=OWNERS,
        dataset=make.dataset(shape=SHAPE, augmentation=Augmentation(crop_padding=1, flip=True, auto_augment=True)),
        module=deepcopy(plain),
        algorithm=make.algorithm(
            FedProx if mu else FedAvg,
            lr=0.1,
            momentum=0.9,
            weight_decay=0.01,
            batch_size=4,
            local_epochs=2,
            **({"mu": mu} if mu else {}),
        ),
        aggregator=make.rule("fedgh"),
    )
    server = initial_state(federation.model)
    for t in range(3):
        outcome = run_round(federation, server)
        for row, client in enumerate(outcome.result.client_ids):
            update, local = train_alone(plain, federation, client, t, mu)
            assert torch.equal(outcome.result.updates.rows[row], update), (t, client)
            buffers = [b.flatten() for b in local.buffers() if b.is_floating_point()]
            assert torch.equal(outcome.result.buffers[row], torch.cat([torch.zeros(0), *buffers])), (t, client)
        server = outcome.server
        scribe = FlatModel(plain)  # writes the new global model into the plain module
        scribe.load(server.params, server.buffers, server.counters)
