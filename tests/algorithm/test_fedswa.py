"""FedSWA: the rates of a round by hand, momentum among them."""

import pytest
import torch

from fedgh.algorithm.fedswa import FedSWA
from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import first_state, run_round
from tests.algorithm.drive import local_steps
from tests.algorithm.stand_in import client_of, state_of


def moved(make, final_rate, momentum=0.0, steps=4):
    """Return how far a constant gradient of one moves a client at rate 0.1."""
    algorithm = make.algorithm(FedSWA, final_rate=final_rate, momentum=momentum)
    client = client_of(state_of([0.0]), num_steps=steps)
    trained, _ = local_steps(algorithm, client, lambda params, target: (params.sum(), params), None, steps)
    return -trained.update.item()


def test_the_rate_falls_in_equal_parts(make):
    """Four steps: 0.1 (1 + 3/4 + 2/4 + 1/4) = 0.25, and to a half 0.1 (1 + 7/8 + 6/8 + 5/8) = 0.325."""
    assert moved(make, 0.0) == pytest.approx(0.25)
    assert moved(make, 0.5) == pytest.approx(0.325)
    assert moved(make, 1.0) == pytest.approx(0.4)


def test_with_momentum_the_whole_step_is_shortened(make):
    """Momentum 0.5: velocities 1, 3/2, 7/4, 15/8; 0.1 (1 + 9/8 + 7/8 + 15/32) = 0.346875."""
    assert moved(make, 0.0, momentum=0.5) == pytest.approx(0.346875)


def test_the_fall_is_over_the_whole_round_and_begins_anew(make):
    """In the engine, two epochs of unequal clients: each takes its own number of steps, and none is too long."""
    algorithm = make.choice("algorithm", "fedswa", local_epochs=2, batch_size=4)
    federation = make.federation(algorithm=algorithm, num_clients=4)
    server = run_round(federation, first_state(federation)).server
    for client in federation.executor.views(range(4), server):
        state = algorithm.prepare(client).state
        assert (int(state["steps"]), int(state["taken"])) == (2 * -(-client.num_examples // 4), 0)
        last = {**state, "taken": state["steps"]}
        one = torch.ones(1)
        assert algorithm.after_step(0 * one, one, last).item() == pytest.approx(1 / int(state["steps"]))


def test_bad_settings_are_refused(make):
    with pytest.raises(ConfigurationError, match=r"algorithm.final_rate must be from 0 to 1 .*, got 1.5"):
        make.algorithm(FedSWA, final_rate=1.5)
