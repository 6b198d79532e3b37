"""FedDyn: by hand, against a literal second implementation, and the identity that its memory must keep."""

import pytest
import torch

from fedgh.algorithm.feddyn import FedDyn
from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import first_state, run_round
from tests.algorithm.drive import Quadratics, begin, play
from tests.algorithm.stand_in import Quadratic, StandIn, half_square, state_of

B = [torch.tensor([0.0], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)]


def feddyn(make, alpha=1.0, weights="uniform", **settings):
    return make.algorithm(FedDyn, alpha=alpha, weights=weights, **settings)


def test_two_clients_solved_exactly_by_hand(make):
    """b = (0, 2), alpha = 1, w = 1/2: 0.25 and 1.25, H = (-0.25, 0.75), w = 0.75 + 0.25 = 1, the optimum; it stays."""
    algorithm = feddyn(make)
    server = begin(algorithm, state_of([0.5]), [1, 1])
    wanted = [((-0.25, 0.75), 0.25), ((-0.625, 0.875), 0.125)]
    for (first, second), h in wanted:
        server = play(algorithm, server, B, [0, 1], [1, 1], half_square, [60, 60], lr=0.5)  # 0.5 (1 + alpha): one step
        assert [server.clients[k]["h"].item() for k in (0, 1)] == pytest.approx([first, second])
        assert server.memory["h"].item() == pytest.approx(h)
        assert server.params.item() == pytest.approx(1.0)


def test_the_pull_is_quadratic_and_towards_the_received_model(make):
    """b = 0, w = 1, alpha = 0.1: the minimum is 0.1 / 1.1, not 0.1 of a linear term alone."""
    algorithm = feddyn(make, alpha=0.1)
    server = play(algorithm, begin(algorithm, state_of([1.0]), [1]), B, [0], [1], half_square, [200])
    assert (server.params - server.memory["h"]).item() == pytest.approx(0.1 / 1.1)


def test_the_direction_by_hand(make):
    """g = theta - b = 3, alpha (theta - w + H) = 0.5 (3 - 1 + 4) = 3; the loss stays the task's."""
    one = torch.tensor([1.0], dtype=torch.float64)
    batch = 0 * one, torch.zeros(1, dtype=torch.int64)
    forward = StandIn(half_square, Quadratic())
    direction, loss, state = feddyn(make, alpha=0.5).local_gradient(batch, forward, 3 * one, one, {"h": 4 * one})
    assert (direction.item(), loss.item(), state) == (6.0, 4.5, {"h": 4 * one})


def test_updates_of_zero_leave_the_memory(make):
    algorithm = feddyn(make)
    flat = lambda params, target: (0 * params.sum(), params)  # noqa: E731
    server = play(algorithm, begin(algorithm, state_of([1.0]), [1, 1]), B, [0, 1], [1, 1], flat, [3, 3])
    assert server.memory["h"].item() == 0
    assert server.params.item() == 1


@pytest.mark.parametrize("weights", ["examples", "uniform"])
def test_reaches_the_common_optimum_with_two_of_five_clients(make, weights):
    """Against the paper's text with h = -alpha sum p_k H_k: same iterates; the identity; the right optimum."""
    problem, alpha, lr, steps = Quadratics(), 2.0, 0.1, [10, 12, 14, 10, 11]
    algorithm = feddyn(make, alpha=alpha, weights=weights, lr=lr)
    server = begin(algorithm, state_of([1.0, -2.0, 0.5]), problem.num_examples)
    p, w = problem.shares(weights), server.params
    h, dual = torch.zeros(3, dtype=torch.float64), torch.zeros(5, 3, dtype=torch.float64)
    for t in range(150):
        ids = problem.two_of_five(t)
        server = play(algorithm, server, problem.targets, ids, problem.num_examples, problem.run, steps, lr)
        theta = {}
        for k in ids:
            theta[k] = w
            for _ in range(steps[k]):
                theta[k] = theta[k] - lr * (problem.gradient(k, theta[k]) - dual[k] + alpha * (theta[k] - w))
        for k in ids:
            dual[k] = dual[k] - alpha * (theta[k] - w)
        h = h - alpha * sum(p[k] * (theta[k] - w) for k in ids)
        w = sum(p[k] * theta[k] for k in ids) / sum(p[k] for k in ids) - h / alpha
        if t < 20:
            torch.testing.assert_close(server.params, w, rtol=1e-11, atol=1e-11)
        together = sum(p[k] * state["h"] for k, state in server.clients.items())
        torch.testing.assert_close(server.memory["h"], together, rtol=0, atol=1e-9)
    torch.testing.assert_close(server.params, problem.optimum(weights), rtol=0, atol=1e-6)
    for k in range(5):  # at the end lambda_k is the client's gradient
        torch.testing.assert_close(
            -alpha * server.clients[k]["h"], problem.gradient(k, server.params), rtol=0, atol=1e-4
        )


def test_memory_after_every_round_of_the_engine(make):
    """h = sum of p_k H_k over all clients, from raw updates although the server harmonizes; w = own step + h."""
    owners = torch.repeat_interleave(torch.arange(6), torch.tensor([5, 7, 9, 10, 13, 16])).numpy()
    shares = torch.tensor([5, 7, 9, 10, 13, 16]).double() / 60
    algorithm = feddyn(make, 0.1, "examples", batch_size=4)
    parts = {"owners": owners, "num_clients": 6, "module": make.normed(), "fraction": 0.5}
    federation = make.federation(algorithm=algorithm, aggregator=make.rule("fedgh"), **parts)
    server = first_state(federation)
    for _ in range(5):
        before, outcome = server, run_round(federation, server)
        server = outcome.server
        wanted = sum(shares[k] * state["h"].double() for k, state in server.clients.items())
        torch.testing.assert_close(server.memory["h"].double(), wanted, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(server.params, before.params + outcome.aggregate.update + server.memory["h"])
        assert (server.buffers[6:] > 0).all()  # variances have no h


def test_bad_settings_are_refused(make):
    with pytest.raises(ConfigurationError, match=r"algorithm.alpha must be positive .*algorithm=fedavg.*, got 0"):
        feddyn(make, alpha=0)
    with pytest.raises(ConfigurationError, match=r"algorithm.weights must be examples"):
        feddyn(make, weights="n")
