"""IFCA: who chooses what, whom the server averages with whom, and how further models begin."""

import math
from types import SimpleNamespace

import pytest
import torch

from fedgh.algorithm.ifca import IFCA
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import GlobalModel, ServerState
from fedgh.core.updates import Block
from fedgh.federation.round import first_state, run_round
from tests.algorithm.drive import local_steps
from tests.algorithm.stand_in import NOTHING, client_of, half_square

BLOCKS = (Block("body.weight", 0, 6, torch.Size([2, 3])), Block("head.weight", 6, 8, torch.Size([2])))


def ifca(make, num_models=2, different=("*",), **settings):
    return make.algorithm(IFCA, num_models=num_models, different=different, **settings)


def model_of(value):
    return GlobalModel(torch.tensor([value], dtype=torch.float64), NOTHING, NOTHING.long())


def chooser(centre, losses=None):
    """A client whose loss is ``1/2 (theta - centre)^2``, with models 0 and 10."""
    models = (model_of(0.0), model_of(10.0))
    server = ServerState(
        0, *(getattr(models[0], name) for name in ("params", "buffers", "counters")), siblings=models[1:]
    )
    loss = losses or (lambda params, buffers: float((params - centre).square().sum() / 2))
    return client_of(server, loss=loss)


@pytest.mark.parametrize(("centre", "index", "after"), [(1.0, 0, 0.1), (8.0, 1, 9.8)])
def test_choice_and_step_by_hand(make, centre, index, after):
    """Losses 0.5 and 40.5, 32 and 2; one step of 0.1 from the chosen model: 0.1 and 9.8."""
    client = chooser(centre)
    algorithm = ifca(make)
    start = algorithm.prepare(client)
    assert int(start.state["model"]) == index
    assert start.received is client.models[index]
    client.received = start.received
    trained, report = local_steps(algorithm, client, half_square, torch.tensor([centre], dtype=torch.float64), 1)
    assert trained.params.item() == pytest.approx(after)
    assert int(report.message["model"]) == index
    assert algorithm.personal(client) is client.models[index]


def test_ties_go_to_the_first_model_and_nan_to_nobody(make):
    assert int(ifca(make).prepare(chooser(0, lambda *_: 1.0)).state["model"]) == 0
    losses = iter([math.nan, 1.0])
    assert int(ifca(make).prepare(chooser(0, lambda *_: next(losses))).state["model"]) == 1


def test_further_models_are_draws_of_the_same_distribution(make):
    params = torch.arange(8.0)
    server = ServerState(0, params, NOTHING, NOTHING.long())

    def begun(seed, **settings):
        return ifca(make, **settings).initialize(server, BLOCKS, torch.ones(4), seed)

    first, other = begun(0, num_models=3), begun(1, num_models=3)
    assert len(first.siblings) == 2
    assert torch.equal(first.params, params)
    for model in first.siblings:
        assert not torch.equal(model.params[:6], params[:6])
        assert model.params[:6].sort().values.tolist() == [0, 1, 2, 3, 4, 5]
        assert model.params[6:].sort().values.tolist() == [6, 7]
    assert not torch.equal(first.siblings[0].params, first.siblings[1].params)
    assert not torch.equal(first.siblings[0].params, other.siblings[0].params)
    assert torch.equal(begun(0, num_models=3).siblings[1].params, first.siblings[1].params)
    (part,) = begun(0, different=["body.*"]).siblings
    assert torch.equal(part.params[6:], params[6:])
    assert not torch.equal(part.params[:6], params[:6])


def test_each_model_is_averaged_over_its_own_clients(make):
    """With buffers; a model that nobody chose stays as it is, to the bit."""
    federation = make.federation(module=make.normed(), algorithm=ifca(make, 3, batch_size=4), num_clients=5)
    server = first_state(federation)
    outcome = run_round(federation, server)
    chosen, rows, n = outcome.result.messages["model"], outcome.result.updates.rows, outcome.result.num_examples
    assert len(set(chosen.tolist())) > 1
    for index, (before, after) in enumerate(zip(server.models, outcome.server.models, strict=True)):
        mine = chosen == index
        if not mine.any():
            assert torch.equal(before.params, after.params)
            assert torch.equal(before.buffers, after.buffers)
            continue
        shares = (n[mine] / n[mine].sum()).float()
        torch.testing.assert_close(after.params, before.params + shares @ rows[mine])
        torch.testing.assert_close(after.buffers, shares @ outcome.result.buffers[mine])


def test_it_finds_two_kinds_of_clients(make):
    """Half of the clients have their labels turned round: the two halves end with different models."""
    dataset = make.dataset(num_train=240)
    labels = dataset.train_labels.clone()
    owners = torch.arange(240) % 8
    labels[owners % 2 == 1] = (labels[owners % 2 == 1] + 1) % 3
    turned = type(dataset)(**{**vars(dataset), "train_labels": labels})
    algorithm = ifca(make, lr=0.3, local_epochs=4)
    federation = make.federation(dataset=turned, owners=owners.numpy(), num_clients=8, algorithm=algorithm)
    server = first_state(federation)
    for _ in range(8):
        outcome = run_round(federation, server)
        server = outcome.server
    assert outcome.result.messages["model"].tolist() in ([0, 1] * 4, [1, 0] * 4)


@pytest.mark.parametrize("count", [0, 1.5])
def test_bad_settings_are_refused(make, count):
    with pytest.raises(ConfigurationError, match=r"algorithm.num_models must be a positive integer"):
        ifca(make, num_models=count)


def test_a_group_is_told_by_the_message(make):
    result = SimpleNamespace(messages={"model": torch.tensor([1, 0, 1])})
    assert ifca(make).group(result).tolist() == [1, 0, 1]
