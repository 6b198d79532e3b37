"""FedBABU: the body by hand, the head at rest to the bit, and what fine-tuning makes of them."""

import pytest
import torch

from fedgh.algorithm.fedbabu import FedBABU
from fedgh.core.errors import ConfigurationError
from fedgh.federation.personal import fine_tuned_models, tuning_of
from fedgh.federation.round import first_state, run_round
from tests.algorithm.two_numbers import two_clients


def fedbabu(make, **settings):
    return make.algorithm(FedBABU, **{"fixed_parameters": ["head.*"], "lr": 0.05, **settings})


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "weight_decay": 0.1}])
def test_a_round_by_hand(make, settings):
    """y = 2: b = 1.1; y = 0: b = 0.9; mean 1.0, h = 1 to the bit, whatever momentum and weight decay would do to it."""
    federation = two_clients(make, fedbabu(make, **settings))
    outcome = run_round(federation, first_state(federation))
    decay = 0.05 * settings.get("weight_decay", 0.0)
    assert outcome.result.updates.rows[:, 0].tolist() == pytest.approx([0.1 - decay, -0.1 - decay])
    assert outcome.server.params.tolist() == [pytest.approx(1.0 - decay), 1.0]
    assert not outcome.result.updates.rows[:, 1].any()
    assert outcome.server.clients == {}


def test_fine_tuning_moves_body_and_head(make):
    """One step from (1, 1): (1.1, 1.1) and (0.9, 0.9); five are what the paper does."""
    federation = two_clients(make, fedbabu(make))
    server = first_state(federation)
    for epochs, expected in ((1, [1.1, 0.9]), (None, [1.4, 0.58])):
        executor = federation.executor.playing(tuning_of(federation.algorithm, epochs), "fine_tune/")
        found = [model.params.tolist() for _, model in fine_tuned_models(executor, server, [0, 1])]
        assert [b == pytest.approx(h) for b, h in found] == [True, True]
        if epochs:
            assert [b for b, _ in found] == pytest.approx(expected)
    by_hand = [1.0, 1.0]
    for _ in range(5):
        by_hand = [x + 0.1 * (y - x * x) * x for x, y in zip(by_hand, (2.0, 0.0), strict=True)]
    assert [b for b, _ in found] == pytest.approx(by_hand)
    assert tuning_of(federation.algorithm, 0) is None


def test_nothing_of_the_head_travels(make):
    """Four bytes of body down and up for each of two clients."""
    federation = two_clients(make, fedbabu(make))
    result = run_round(federation, first_state(federation)).result
    assert result.bytes_down == result.bytes_up == 2 * 4


def test_a_name_that_there_is_not_is_refused(make):
    with pytest.raises(ConfigurationError, match=r"no parameter of this model is named 'neck.*'"):
        make.federation(algorithm=fedbabu(make, fixed_parameters=["neck.*"]))


def test_running_statistics_of_the_body_are_averaged(make):
    federation = make.federation(module=make.normed(), algorithm=fedbabu(make, batch_size=4))
    start = first_state(federation)
    server = run_round(federation, start).server
    assert not torch.equal(server.buffers, start.buffers)
