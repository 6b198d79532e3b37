"""FedACG: two rounds by hand, the same as Nesterov's momentum on the server; the pull is towards the look-ahead."""

import pytest
import torch

from fedgh.algorithm.fedacg import FedACG
from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import first_state, run_round
from tests.algorithm.drive import Quadratics, begin, play
from tests.algorithm.stand_in import Quadratic, StandIn, half_square, state_of

ZERO = torch.tensor([0.0], dtype=torch.float64)


def fedacg(make, lam=0.5, beta=0.0, **settings):
    return make.algorithm(FedACG, lam=lam, beta=beta, **settings)


def test_two_rounds_by_hand(make):
    """f = theta^2 / 2, w = 1, lr 0.1: theta = 0.9, m = -0.1; v = 0.85, theta = 0.765, step -0.085, m = -0.135."""
    algorithm = fedacg(make)
    server = begin(algorithm, state_of([1.0]), [1])
    for w, m in ((0.9, -0.1), (0.765, -0.135)):
        server = play(algorithm, server, [ZERO], [0], [1], half_square, [1])
        assert server.params.item() == pytest.approx(w)
        assert server.memory["m"].item() == pytest.approx(m)


def test_the_pull_is_towards_the_look_ahead_with_the_half(make):
    """theta = 3, v = 1, beta = 0.5: loss 4.5 + 1, gradient 3 + 1."""
    one = torch.tensor([1.0], dtype=torch.float64)
    batch = 0 * one, torch.zeros(1, dtype=torch.int64)
    algorithm = fedacg(make, beta=0.5)
    gradient, loss, _ = algorithm.local_gradient(batch, StandIn(half_square, Quadratic()), 3 * one, one, {})
    assert (gradient.item(), loss.item()) == (4.0, 5.5)


def test_the_model_is_the_mean_of_the_local_ones(make):
    """What the paper's server sets: w = sum p_k theta_k, each from v, for any momentum and two of five clients."""
    problem, lam, beta, lr = Quadratics(), 0.85, 0.3, 0.05
    algorithm = fedacg(make, lam=lam, beta=beta, lr=lr)
    server = begin(algorithm, state_of([1.0, -2.0, 0.5]), problem.num_examples)
    w, m = server.params, torch.zeros(3, dtype=torch.float64)
    for t in range(20):
        ids = problem.two_of_five(t)
        server = play(algorithm, server, problem.targets, ids, problem.num_examples, problem.run, [4] * 5, lr)
        v, total = w + lam * m, sum(problem.num_examples[k] for k in ids)
        mean = torch.zeros(3, dtype=torch.float64)
        for k in ids:
            theta = v
            for _ in range(4):
                theta = theta - lr * (problem.gradient(k, theta) + beta * (theta - v))
            mean += problem.num_examples[k] / total * theta
        m, w = mean - w, mean
        torch.testing.assert_close(server.params, w)
        torch.testing.assert_close(server.memory["m"], m)


def test_updates_are_relative_to_the_look_ahead(make):
    """In the engine: without a step nothing is sent, though the start is far from the model; statistics get no m."""
    algorithm = fedacg(make, lam=0.9, batch_size=4, lr=1e-12)
    federation = make.federation(module=make.normed(), algorithm=algorithm)
    server = first_state(federation)
    server.memory["m"] = torch.ones_like(server.params)
    outcome = run_round(federation, server)
    assert float(outcome.result.updates.rows.abs().max()) < 1e-6
    torch.testing.assert_close(outcome.server.params, server.params + 0.9)
    shares = outcome.result.num_examples / outcome.result.num_examples.sum()
    torch.testing.assert_close(outcome.server.buffers, shares.float() @ outcome.result.buffers)


@pytest.mark.parametrize(("settings", "key"), [({"lam": 1.0}, "lam"), ({"lam": -0.1}, "lam"), ({"beta": -1.0}, "beta")])
def test_bad_settings_are_refused(make, settings, key):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{key} must be "):
        fedacg(make, **settings)
