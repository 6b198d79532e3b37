"""The contract: defaults are FedAvg; settings outside their range are refused."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedgh.algorithm.base import Algorithm
from fedgh.algorithm.fedavg import FedAvg
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import Phase
from fedgh.federation.round import first_state, run_round
from tests.algorithm.stand_in import StandIn

OWNERS = torch.repeat_interleave(torch.arange(3), torch.tensor([10, 20, 30])).numpy()
SGD = partial(torch.optim.SGD, lr=0.1)


@pytest.mark.parametrize("name", ["local_epochs", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 2.5, None])
def test_epochs_and_batch_size_must_be_positive(name, value):
    settings = {"optimizer": SGD, "local_epochs": 1, "batch_size": 8, name: value}
    with pytest.raises(ConfigurationError, match=f"algorithm.{name} must be a positive integer, got {value}"):
        FedAvg(**settings)


def test_defaults_are_fedavg(make):
    algorithm = make.algorithm(Algorithm)
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    batch = torch.zeros(2, 1), torch.tensor([0, 0])
    forward = StandIn(lambda params, inputs: (logits, inputs))
    loss = algorithm.local_loss(batch, forward, torch.ones(3), torch.zeros(3), {})
    assert torch.equal(loss, cross_entropy(logits, batch[1]))
    weights = torch.tensor([0.3, 0.7])
    assert algorithm.client_weights(weights, None) is weights
    client = SimpleNamespace(state={"c": torch.ones(2)})
    assert algorithm.report(client, None).state is client.state
    assert algorithm.phases(()) == (Phase(epochs=algorithm.local_epochs),)


@pytest.mark.parametrize(("weights", "expected"), [("examples", [0.1, 0.3, 0.6]), ("uniform", [1 / 3] * 3)])
def test_how_much_clients_count(make, weights, expected):
    """In a round, too."""
    sizes = torch.tensor([10, 30, 60], dtype=torch.float64)
    algorithm = make.algorithm(weights=weights)
    assert algorithm.client_shares(sizes).tolist() == pytest.approx(expected)
    outcome = run_round(federation := make.federation(algorithm=algorithm, owners=OWNERS), first_state(federation))
    counts = outcome.result.num_examples if weights == "examples" else torch.ones(len(outcome.weights)).double()
    assert torch.equal(outcome.weights, counts / counts.sum())
    assert len(set(outcome.result.num_examples.tolist())) > 1


def test_unknown_weights_are_refused(make):
    with pytest.raises(ConfigurationError, match=r"algorithm.weights must be examples .* or uniform, got 'all'"):
        make.algorithm(weights="all")


def test_optimizer_settings_name_the_class(make):
    settings = make.algorithm(lr=0.3, momentum=0.9).optimizer_settings()
    assert (settings["name"], settings["lr"], settings["momentum"]) == ("SGD", 0.3, 0.9)
