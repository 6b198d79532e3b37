"""FedLESAM: the shift by hand, what a client remembers, and the length of it."""

import pytest
import torch

from fedgh.algorithm.fedlesam import FedLESAM
from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import first_state, run_round
from tests.algorithm.drive import begin, play
from tests.algorithm.stand_in import Quadratic, StandIn, client_of, half_square, state_of

ZERO = torch.zeros(2, dtype=torch.float64)


def fedlesam(make, rho=0.5, **settings):
    return make.algorithm(FedLESAM, rho=rho, **settings)


def test_the_direction_by_hand(make):
    """v = (1, 0), w = (1, -2): v - w = (0, 2), shift (0, 0.5); 1/2 |theta|^2 at w: (1, -1.5)."""
    algorithm, w = fedlesam(make), torch.tensor([1.0, -2.0], dtype=torch.float64)
    client = client_of(state_of([1.0, -2.0]))
    client.state = {"received": torch.tensor([1.0, 0.0], dtype=torch.float64)}
    state = algorithm.prepare(client).state
    batch = ZERO, torch.zeros(1, dtype=torch.int64)
    direction, _, _ = algorithm.local_gradient(batch, StandIn(half_square, Quadratic()), w, w, state)
    torch.testing.assert_close(direction, torch.tensor([1.0, -1.5], dtype=torch.float64))


def test_two_rounds_by_hand(make):
    """b = 0, w = 1, rate 0.1, one step: 0.9 without a shift; then v - w = 0.1, shift 0.5: 0.9 - 0.1 * 1.4 = 0.76."""
    algorithm = fedlesam(make)
    server = begin(algorithm, state_of([1.0]), [1])
    for wanted in (0.9, 0.76):
        server = play(algorithm, server, [ZERO[:1]], [0], [1], half_square, [1])
        assert server.params.item() == pytest.approx(wanted)


def test_a_client_compares_with_what_it_was_sent_itself(make):
    """In the engine: who is back after a pause has kept the model of its own last time, not of the round before."""
    algorithm = fedlesam(make, batch_size=4)
    federation = make.federation(algorithm=algorithm, num_clients=6, fraction=0.5, module=make.normed())
    server, sent = first_state(federation), {}
    for _ in range(5):
        outcome = run_round(federation, server)
        sent.update(dict.fromkeys(outcome.result.client_ids, server.params))
        server = outcome.server
        assert set(server.clients) == set(sent)
        assert all(torch.equal(state["received"], sent[k]) for k, state in server.clients.items())


def test_a_negative_length_is_refused(make):
    with pytest.raises(ConfigurationError, match=r"algorithm.rho must be 0 \(FedAvg\) or more"):
        fedlesam(make, rho=-1.0)
