"""SCAFFOLD: by hand, against a literal second implementation, and the identity that its memory must keep."""

from functools import partial

import pytest
import torch

from fedgh.algorithm.fedavg import FedAvg
from fedgh.algorithm.scaffold import Scaffold
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import Trained
from fedgh.federation.round import first_state, run_round
from tests.algorithm.drive import Quadratics, begin, local_steps, play
from tests.algorithm.stand_in import Quadratic, StandIn, client_of, half_square, state_of

B = [torch.tensor([0.0], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)]


def scaffold(make, weights="uniform", **settings):
    return make.algorithm(Scaffold, weights=weights, **settings)


def test_two_clients_by_hand(make):
    """b = (0, 2), w = 1, rate 0.1, 2 steps: 1 -> 0.9 -> 0.81, c_1 = 0.19 / 0.2 = 0.95; client 2 the mirror image."""
    algorithm = scaffold(make)
    server = play(algorithm, begin(algorithm, state_of([1.0]), [1, 1]), B, [0, 1], [1, 1], half_square, [2, 2])
    assert server.params.item() == pytest.approx(1.0)
    assert server.memory["c"].item() == pytest.approx(0.0, abs=1e-15)
    assert [server.clients[k]["c"].item() for k in (0, 1)] == pytest.approx([0.95, -0.95])
    client = client_of(server, 0, message={"c": server.memory["c"]})
    batch = B[0], torch.zeros(1, dtype=torch.int64)
    state = algorithm.prepare(client).state
    direction, _, _ = algorithm.local_gradient(batch, StandIn(half_square, Quadratic()), server.params, None, state)
    assert direction.item() == pytest.approx(0.05)  # 1.95 with the wrong sign, 1 without correction


def test_memory_is_divided_by_all_clients_not_by_the_participants(make):
    algorithm = scaffold(make)
    server = play(algorithm, begin(algorithm, state_of([1.0]), [1, 1]), B, [0], [1, 1], half_square, [2, 2])
    assert server.memory["c"].item() == pytest.approx(0.475)
    algorithm = scaffold(make, weights="examples")
    server = play(algorithm, begin(algorithm, state_of([1.0]), [1, 3]), B, [0], [1, 3], half_square, [2, 2])
    assert server.memory["c"].item() == pytest.approx(0.95 / 4)


def test_the_step_count_is_that_of_all_epochs(make):
    """w = 1, b = 0, four steps: 0.6561, c_k = 0.3439 / 0.4 = 0.85975; twice that if an epoch's steps were taken."""
    algorithm = scaffold(make)
    server = play(algorithm, begin(algorithm, state_of([1.0]), [1]), B, [0], [1], half_square, [4])
    assert server.params.item() == pytest.approx(0.6561)
    assert server.clients[0]["c"].item() == pytest.approx(0.85975)


def test_momentum_is_divided_out(make):
    """A constant gradient g must come back as c_k = g, whatever the momentum: tau alone gives 2.28 g here."""
    algorithm = scaffold(make, momentum=0.9)
    gradient = torch.tensor([3.0, -1.0], dtype=torch.float64)
    server = begin(algorithm, state_of([0.0, 0.0]), [1])
    client = client_of(server, message={"c": server.memory["c"]})
    _, report = local_steps(algorithm, client, lambda params, target: (params @ target, params), gradient, 4)
    torch.testing.assert_close(report.state["c"], gradient)


def test_the_rate_is_the_rounds_own(make):
    """The client's rate of the round counts, not the optimizer's first one."""
    algorithm = scaffold(make, lr=0.1)
    server = begin(algorithm, state_of([1.0]), [1])
    client = client_of(server, lr=0.05, message={"c": server.memory["c"]})
    update = torch.tensor([-0.2], dtype=torch.float64)
    state = algorithm.prepare(client).state
    report = algorithm.report(client, Trained(server.params + update, server.buffers, update, state, 2))
    assert report.state["c"].item() == pytest.approx(2.0)


@pytest.mark.parametrize("weights", ["examples", "uniform"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_reaches_the_common_optimum_with_two_of_five_clients(make, weights, momentum):
    """Against the paper's text written out: same iterates; the identity after every round; the right optimum."""
    problem, steps, lr = Quadratics(), [2, 3, 4, 2, 3], 0.1
    algorithm = scaffold(make, weights=weights, momentum=momentum, lr=lr)
    server = begin(algorithm, state_of([1.0, -2.0, 0.5]), problem.num_examples)
    p, w = problem.shares(weights), server.params
    c, own = torch.zeros(3, dtype=torch.float64), torch.zeros(5, 3, dtype=torch.float64)
    for t in range(100):
        ids = problem.two_of_five(t)
        server = play(algorithm, server, problem.targets, ids, problem.num_examples, problem.run, steps, lr)
        updates, new = {}, own.clone()
        for k in ids:
            theta, velocity, counted = w, torch.zeros_like(w), 0.0
            for j in range(steps[k]):
                velocity = momentum * velocity + problem.gradient(k, theta) - own[k] + c
                theta = theta - lr * velocity
                counted += sum(momentum**i for i in range(steps[k] - j))
            updates[k], new[k] = theta - w, own[k] - c + (w - theta) / (lr * counted)
        w = w + sum(p[k] * updates[k] for k in ids) / sum(p[k] for k in ids)
        c, own = c + sum(p[k] * (new[k] - own[k]) for k in ids), new
        if t < 20:
            torch.testing.assert_close(server.params, w, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(
            server.memory["c"], sum(p[k] * state["c"] for k, state in server.clients.items()), rtol=0, atol=1e-9
        )
    torch.testing.assert_close(server.params, problem.optimum(weights), rtol=0, atol=1e-6)
    other = problem.optimum("uniform" if weights == "examples" else "examples")
    assert float((server.params - other).norm()) > 0.01


def test_memory_after_every_round_of_the_engine(make):
    """c = sum of p_k c_k over all clients, at partial participation, on a model with buffers and unequal clients."""
    owners = torch.repeat_interleave(torch.arange(6), torch.tensor([5, 7, 9, 10, 13, 16])).numpy()
    shares = torch.tensor([5, 7, 9, 10, 13, 16]).double() / 60
    algorithm = scaffold(make, "examples", momentum=0.9, batch_size=4, local_epochs=2)
    parts = {"owners": owners, "num_clients": 6, "module": make.normed(), "fraction": 0.5}
    federation = make.federation(algorithm=algorithm, aggregator=make.rule("fedgh"), **parts)
    server = first_state(federation)
    for t in range(5):
        server = run_round(federation, server).server
        wanted = sum(shares[k] * state["c"].double() for k, state in server.clients.items())
        torch.testing.assert_close(server.memory["c"].double(), wanted, rtol=1e-4, atol=1e-6)
        assert t < 2 or len(server.clients) < 6 or wanted.norm() > 0


def test_the_first_round_is_fedavgs_to_the_bit(make):
    settings = {"momentum": 0.9, "local_epochs": 2, "batch_size": 4}
    after = []
    for algorithm in (make.algorithm(FedAvg, **settings), scaffold(make, "examples", **settings)):
        federation = make.federation(module=make.normed(), algorithm=algorithm, num_clients=4)
        first = run_round(federation, first_state(federation)).server
        after.append((first.params, run_round(federation, first).server.params))
    assert torch.equal(after[0][0], after[1][0])
    assert not torch.equal(after[0][1], after[1][1])


def test_what_it_cannot_do_is_refused(make):
    with pytest.raises(ConfigurationError, match=r"algorithm=scaffold knows the normalization of SGD with plain mom"):
        Scaffold(optimizer=partial(torch.optim.Adam, lr=0.01), local_epochs=1, batch_size=8, weights="uniform")
    with pytest.raises(ConfigurationError, match=r"algorithm.optimizer.momentum of at least 0 and below 1, got 1.0"):
        scaffold(make, momentum=1.0)
    with pytest.raises(ConfigurationError, match=r"algorithm.weights must be examples .* or uniform, got 'all'"):
        scaffold(make, weights="all")
