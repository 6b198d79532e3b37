"""FedMoSWA: the memory by hand, a constant gradient that must come back, and the first round."""

import pytest
import torch

from fedgh.algorithm.fedmoswa import FedMoSWA
from fedgh.algorithm.fedswa import FedSWA
from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import first_state, run_round
from tests.algorithm.drive import begin, local_steps
from tests.algorithm.stand_in import client_of, cohort_of, state_of


def fedmoswa(make, gamma=0.4, weights="uniform", final_rate=0.0, **settings):
    return make.algorithm(FedMoSWA, gamma=gamma, weights=weights, final_rate=final_rate, **settings)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("final_rate", [0.0, 0.3, 1.0])
def test_a_constant_gradient_comes_back_as_the_control_variate(make, final_rate, momentum):
    algorithm = fedmoswa(make, final_rate=final_rate, momentum=momentum)
    gradient = torch.tensor([3.0, -1.0], dtype=torch.float64)
    server = begin(algorithm, state_of([0.0, 0.0]), [1])
    client = client_of(server, message={"c": server.memory["c"]}, num_steps=5)
    _, report = local_steps(algorithm, client, lambda params, target: (params @ target, params), gradient, 5)
    torch.testing.assert_close(report.state["c"], gradient)


def test_c_takes_gamma_of_the_participants_mean_whoever_else_there_is(make):
    """Changes 1 and 3 of two of four clients: 0.4 * 2 = 0.8; SCAFFOLD's factor 2 / 4 would give 1. Counts 1, 3: 1."""
    for weights, wanted in (("uniform", 0.8), ("examples", 1.0)):
        algorithm = fedmoswa(make, weights=weights)
        before = begin(algorithm, state_of([0.0]), [1, 3, 5, 7])
        changes = [torch.tensor([1.0]), torch.tensor([3.0])]
        result = cohort_of(torch.zeros(2, 1), [0, 1], [1, 3], {"change": changes})
        after = algorithm.conclude(before, before, result)
        assert after.memory["c"].item() == pytest.approx(wanted)


def test_the_first_round_is_fedswas_to_the_bit(make):
    settings, ends = {"final_rate": 0.0, "momentum": 0.9, "local_epochs": 2, "batch_size": 4}, []
    for algorithm in (make.algorithm(FedSWA, **settings), fedmoswa(make, weights="examples", **settings)):
        federation = make.federation(algorithm=algorithm, num_clients=4)
        first = run_round(federation, first_state(federation)).server
        ends.append((first.params, run_round(federation, first).server.params))
    assert torch.equal(ends[0][0], ends[1][0])
    assert not torch.equal(ends[0][1], ends[1][1])


@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_bad_settings_are_refused(make, gamma):
    with pytest.raises(ConfigurationError, match=r"algorithm.gamma must be above 0 and at most 1"):
        fedmoswa(make, gamma=gamma)
