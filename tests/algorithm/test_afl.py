"""AFL: projection and mixture by hand, also where some are absent; it equalizes two clients that disagree."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from fedgh.algorithm.afl import AFL, onto_simplex
from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import first_state, run_round
from tests.algorithm.drive import begin
from tests.algorithm.stand_in import state_of


def afl(make, gamma=0.1, weights="uniform", **settings):
    return make.algorithm(AFL, gamma=gamma, weights=weights, **settings)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def after(make, losses, gamma, client_ids=(0, 1), num_examples=(1, 1)):
    algorithm = afl(make, gamma)
    server = begin(algorithm, state_of([0.0]), num_examples)
    result = SimpleNamespace(client_ids=client_ids, messages={"loss": vector(*losses)})
    return algorithm.conclude(server, server, result).memory["lambda"].tolist()


def test_the_mixture_by_hand(make):
    """(.5, .5) + .1 (1, 3) = (.6, .8), nearest point (.4, .6); with gamma 1 (1.5, 3.5), nearest point (0, 1)."""
    assert after(make, [1, 3], 0.1) == pytest.approx([0.4, 0.6])
    assert after(make, [1, 3], 1.0) == pytest.approx([0, 1])


def test_absent_clients_by_hand(make):
    """Client 1 of 2 alone: (.5, .5 + .1 * 2 * 1) = (.5, .7), nearest point (.4, .6)."""
    assert after(make, [1], 0.1, client_ids=(1,)) == pytest.approx([0.4, 0.6])


def test_projection_against_a_search_over_all_supports():
    """The nearest point has some support S and is there the point less its mean excess."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        point = torch.randn(5, generator=generator, dtype=torch.float64)
        best = None
        for size in range(1, 6):
            for support in map(list, itertools.combinations(range(5), size)):
                candidate = torch.zeros(5, dtype=torch.float64)
                candidate[support] = point[support] - (point[support].sum() - 1) / size
                if (candidate >= 0).all() and (best is None or (candidate - point).norm() < (best - point).norm()):
                    best = candidate
        torch.testing.assert_close(onto_simplex(point), best)
    inside = vector(0.2, 0.3, 0.5)
    torch.testing.assert_close(onto_simplex(inside), inside)


def weights_of(make, mixture, ids, **settings):
    result = SimpleNamespace(memory={"lambda": vector(*mixture)}, client_ids=ids)
    return afl(make, **settings).client_weights(vector(0.25, 0.75), result).tolist()


def test_weights_are_the_old_mixture_over_the_participants(make):
    assert weights_of(make, [0.2, 0.5, 0.3], (0, 2)) == pytest.approx([0.4, 0.6])
    assert weights_of(make, [0, 1, 0], (0, 2)) == [0.25, 0.75]  # nobody has a weight
    assert weights_of(make, [0.2, 0.5, 0.3], (0, 2), gamma=0.0) == [0.25, 0.75]


def test_where_the_mixture_begins(make):
    for weights, wanted in (("uniform", [0.5, 0.5]), ("examples", [0.25, 0.75])):
        server = begin(afl(make, weights=weights), state_of([0.0]), [1, 3])
        assert server.memory["lambda"].tolist() == wanted


def test_the_engine_hands_the_mixture_of_the_rounds_beginning(make):
    federation = make.federation(algorithm=afl(make, 0.5))
    first = run_round(federation, first_state(federation))
    second = run_round(federation, first.server)
    torch.testing.assert_close(first.weights, torch.full((3,), 1 / 3, dtype=torch.float64))
    torch.testing.assert_close(second.weights, first.server.memory["lambda"])
    assert not torch.equal(second.weights, first.weights)


def test_the_worst_client_gains(make):
    """Labels of one of three clients are turned round: its loss ends lower than under FedAvg."""
    dataset = make.dataset(num_train=90)
    owners = torch.arange(90) // 30
    labels = dataset.train_labels.clone()
    labels[owners == 0] = (labels[owners == 0] + 1) % 3
    turned, worst = type(dataset)(**{**vars(dataset), "train_labels": labels}), {}
    for gamma in (0.0, 0.1):
        algorithm = afl(make, gamma)
        federation = make.federation(dataset=turned, owners=owners.numpy(), algorithm=algorithm)
        server = first_state(federation)
        for _ in range(25):
            server = run_round(federation, server).server
        worst[gamma] = max(view.loss(server.params) for view in federation.executor.views(range(3), server))
    assert worst[0.1] < 0.92 * worst[0.0]


def test_bad_settings_are_refused(make):
    with pytest.raises(ConfigurationError, match=r"algorithm.gamma must be 0 .* got -0.1"):
        afl(make, -0.1)
