"""FedALA: the weights of the mixture by hand, when they are learnt, and from which examples."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedgh.algorithm.fedala import FedALA
from fedgh.core.errors import ConfigurationError
from fedgh.core.updates import Block
from fedgh.federation.round import first_state, run_round
from tests.algorithm.two_numbers import two_clients

BLOCKS = (Block("body", 0, 1, torch.Size([1]), "Linear"), Block("head.weight", 1, 2, torch.Size([1]), "Linear"))


def fedala(make, **settings):
    names = {"adaptive_parameters": ["head.*"], "eta": 0.1, "share": 1.0, "first_epochs": 1}
    return make.algorithm(FedALA, **{**names, **settings})


def client_with(slope, weights=1.0, learnt=0, theta=(7.0, 1.0), received=(5.0, 3.0), losses=None, examples=1):
    """A client whose loss has this slope everywhere in the head, and which notes where it is asked for it."""
    asked, told = [], iter(losses or [0.0] * 1000)

    def gradient(params, inputs, targets):
        asked.append((params.tolist(), inputs.flatten().tolist()))
        return torch.tensor([100.0, slope]), torch.tensor(next(told))

    state = {"theta": torch.tensor(theta), "weights": torch.tensor([weights]), "learnt": torch.tensor(learnt)}
    inputs = torch.arange(float(examples)).view(-1, 1)
    return SimpleNamespace(
        state=state,
        received=SimpleNamespace(params=torch.tensor(received)),
        model=SimpleNamespace(blocks=BLOCKS),
        examples=lambda: iter([(inputs, torch.zeros(examples, dtype=torch.int64))]),
        generator=lambda purpose: np.random.default_rng(0),
        gradient=gradient,
        asked=asked,
    )


def mixed(make, client, **settings):
    params, weights, learnt = fedala(make, **settings).mixed(client)
    return params.tolist(), weights.item(), learnt.item()


def test_one_step_by_hand(make):
    """theta = 1, w = 3, W = 1, slope 2 at s = 3: W = 1 - 0.1 2 2 = 0.6, s = 1 + 2 0.6; the body is the received one."""
    client = client_with(2.0)
    params, weight, learnt = mixed(make, client)
    assert (params, weight, learnt) == ([5.0, pytest.approx(2.2)], pytest.approx(0.6), 1)
    assert client.asked == [([5.0, 3.0], [0.0])]


def test_weights_stay_between_zero_and_one(make):
    assert mixed(make, client_with(-2.0))[0] == [5.0, 3.0]
    assert mixed(make, client_with(200.0))[:2] == ([5.0, 1.0], 0.0)


def test_each_batch_sees_what_the_one_before_it_made(make):
    """W = 0.6, then 0.2; s = 3, then 2.2."""
    client = client_with(2.0, examples=4)
    assert mixed(make, client, batch_size=2)[1] == pytest.approx(0.2)
    assert [params[1] for params, _ in client.asked] == pytest.approx([3.0, 2.2])
    assert [inputs for _, inputs in client.asked] == [[0.0, 1.0], [2.0, 3.0]]


def test_only_a_slice_is_looked_at(make):
    client = client_with(0.0, examples=10)
    mixed(make, client, share=0.35, batch_size=100)
    ((_, rows),) = client.asked
    assert len(rows) == 3
    assert rows == list(range(int(rows[0]), int(rows[0]) + 3))


def test_at_first_until_the_loss_settles_and_then_once(make):
    """Eleven epochs at least: the standard deviation of the last ten is 0 then. A wild loss meets the bound."""
    for losses, bound, epochs in (
        (None, 50, 11),
        ([5.0, *[0.0] * 100], 50, 11),
        ([*range(20), *[0.0] * 100], 50, 30),
        (list(range(100)), 15, 15),
        (None, 4, 4),
    ):
        client = client_with(0.0, losses=losses)
        mixed(make, client, first_epochs=bound)
        assert len(client.asked) == epochs
    client = client_with(0.0, learnt=1)
    mixed(make, client, first_epochs=50)
    assert len(client.asked) == 1


def test_nothing_is_learnt_while_the_received_model_is_the_own_one(make):
    client = client_with(2.0, theta=(5.0, 3.0))
    assert mixed(make, client) == ([5.0, 3.0], 1.0, 0)
    assert client.asked == []


def test_updates_are_relative_to_the_received_model(make):
    """Second round by hand; nothing was learnt in the first, as everybody had the initial model."""
    federation = two_clients(make, fedala(make, lr=0.05))
    first = run_round(federation, first_state(federation))
    heads = [first.server.clients[k]["theta"].tolist() for k in (0, 1)]
    assert heads == [[pytest.approx(1.1)] * 2, [pytest.approx(0.9)] * 2]
    assert first.server.params.tolist() == pytest.approx([1.0, 1.0])
    assert [first.server.clients[k]["learnt"].item() for k in (0, 1)] == [0, 0]
    # y = 2: theta = 1.1, w = 1, slope of (h b - 2)^2 in h at 1: -2, W = 1 - 0.1 -2 (1 - 1.1) = 0.98; s = 1.002
    start = federation.algorithm.prepare(next(federation.executor.views([0], first.server)))
    assert start.params.tolist() == pytest.approx([1.0, 1.002])
    second = run_round(federation, first.server)
    b, h = 1.0, 1.002
    step = [0.1 * (2 - h * b) * h, 0.1 * (2 - h * b) * b]
    assert second.result.updates.rows[0].tolist() == pytest.approx([step[0], 0.002 + step[1]], rel=1e-4)
    assert second.server.clients[0]["weights"].tolist() == pytest.approx([0.98])


def test_it_is_the_model_of_the_next_start_that_is_evaluated(make):
    federation = make.federation(module=make.normed(), algorithm=fedala(make, eta=1.0, share=0.6), fraction=0.67)
    server = run_round(federation, first_state(federation)).server
    for view in federation.executor.views(range(3), server):
        assert torch.equal(federation.algorithm.personal(view).params, federation.algorithm.prepare(view).params)


@pytest.mark.parametrize(
    ("settings", "key"), [({"eta": -1.0}, "eta"), ({"share": 0.0}, "share"), ({"first_epochs": 0}, "first_epochs")]
)
def test_bad_settings_are_refused(make, settings, key):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{key} must be "):
        fedala(make, **settings)
