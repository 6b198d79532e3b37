"""FedDC: against a literal second implementation, the identities of both memories, and what its variants reach."""

import pytest
import torch

from fedgh.algorithm.feddc import FedDC
from fedgh.core.errors import ConfigurationError
from tests.algorithm.drive import Quadratics, begin, play
from tests.algorithm.stand_in import Quadratic, StandIn, half_square, state_of

B = [torch.tensor([0.0], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)]


def feddc(make, alpha=1.0, weights="uniform", variant="released", **settings):
    return make.algorithm(FedDC, alpha=alpha, weights=weights, variant=variant, **settings)


def test_the_direction_by_hand(make):
    """g = 3, alpha (theta - w + h) = 0.5 (3 - 1 + 4) = 3, c - c_k = 0.25."""
    one = torch.tensor([1.0], dtype=torch.float64)
    batch = 0 * one, torch.zeros(1, dtype=torch.int64)
    state = {"h": 4 * one, "correction": one / 4}
    direction, loss, _ = feddc(make, alpha=0.5).local_gradient(
        batch, StandIn(half_square, Quadratic()), 3 * one, one, state
    )
    assert (direction.item(), loss.item()) == (6.25, 4.5)


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_a_round_of_one_client_by_hand(make, variant):
    """b = 0, w = 1, rate 0.1, one step: D = -0.1, h = -0.1, c_k = 0.1 / 0.1 = 1; alone, both variants: w + D + h."""
    algorithm = feddc(make, variant=variant)
    server = play(algorithm, begin(algorithm, state_of([1.0]), [1]), B, [0], [1], half_square, [1])
    assert server.clients[0]["h"].item() == pytest.approx(-0.1)
    assert server.clients[0]["c"].item() == pytest.approx(1.0)
    assert server.memory["c"].item() == pytest.approx(1.0)
    assert server.params.item() == pytest.approx(0.8)


def test_the_variants_differ_where_clients_are_absent(make):
    """Client 0 of two: released adds h / 2 (of all), paper the participant's own h."""
    for variant, wanted in (("released", 1 - 0.1 - 0.05), ("paper", 1 - 0.1 - 0.1)):
        algorithm = feddc(make, variant=variant)
        server = play(algorithm, begin(algorithm, state_of([1.0]), [1, 1]), B, [0], [1, 1], half_square, [1, 1])
        assert server.params.item() == pytest.approx(wanted)


@pytest.mark.parametrize("weights", ["examples", "uniform"])
def test_reaches_the_common_optimum_with_two_of_five_clients(make, weights):
    """Against the released rule written out: same iterates; both identities after every round; the right optimum."""
    problem, alpha, lr, steps = Quadratics(), 0.5, 0.05, [3, 4, 5, 3, 4]
    algorithm = feddc(make, alpha=alpha, weights=weights, lr=lr)
    server = begin(algorithm, state_of([1.0, -2.0, 0.5]), problem.num_examples)
    p, w = problem.shares(weights), server.params
    drift, own, c = torch.zeros(5, 3).double(), torch.zeros(5, 3).double(), torch.zeros(3).double()
    for t in range(400):
        ids = problem.two_of_five(t)
        server = play(algorithm, server, problem.targets, ids, problem.num_examples, problem.run, steps, lr)
        before, theta = own.clone(), {}
        for k in ids:
            theta[k] = w
            for _ in range(steps[k]):
                pull = alpha * (theta[k] + drift[k] - w)
                theta[k] = theta[k] - lr * (problem.gradient(k, theta[k]) + pull + c - own[k])
        for k in ids:
            own[k] = own[k] - c - (theta[k] - w) / (steps[k] * lr)
            drift[k] = drift[k] + theta[k] - w
        c = c + sum(p[k] * (own[k] - before[k]) for k in ids)
        w = sum(p[k] * theta[k] for k in ids) / sum(p[k] for k in ids) + (p[:, None] * drift).sum(0)
        if t < 20:
            torch.testing.assert_close(server.params, w, rtol=1e-10, atol=1e-10)
        for name in ("h", "c"):
            together = sum(p[k] * state[name] for k, state in server.clients.items())
            torch.testing.assert_close(server.memory[name], together, rtol=0, atol=1e-9)
    torch.testing.assert_close(server.params, problem.optimum(weights), rtol=0, atol=1e-5)


def test_bad_settings_are_refused(make):
    with pytest.raises(ConfigurationError, match=r"algorithm.variant must be released or paper, got 'code'"):
        feddc(make, variant="code")
    with pytest.raises(ConfigurationError, match=r"algorithm.alpha must be positive"):
        feddc(make, alpha=0)
    with pytest.raises(ConfigurationError, match=r"algorithm=feddc knows the normalization of SGD"):
        FedDC(optimizer=torch.optim.Adam, local_epochs=1, batch_size=8, weights="uniform", alpha=1, variant="paper")
