"""CFL: cuts by hand and against brute force, when a cluster is cut, and that it finds two kinds of clients."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fedgh.algorithm.cfl import CFL, bipartition
from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import first_state, run_round
from tests.algorithm.drive import begin
from tests.algorithm.stand_in import cohort_of, state_of


def cfl(make, **settings):
    given = {"eps1": 0.4, "eps2": 1.6, "scale": "absolute", "linkage": "single", "first_round": 0}
    return make.algorithm(CFL, **{**given, **settings})


def test_single_linkage_makes_the_largest_cosine_across_the_cut_least():
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        rows = torch.nn.functional.normalize(torch.randn(6, 3, generator=generator, dtype=torch.float64), dim=1)
        cosines, best = rows @ rows.T, 2.0
        for size in range(1, 6):
            for part in map(list, itertools.combinations(range(6), size)):
                rest = [k for k in range(6) if k not in part]
                best = min(best, float(cosines[part][:, rest].max()))
        other = bipartition(cosines, "single")
        assert float(cosines[other][:, ~other].max()) == best
        assert not other[0]


def test_linkages_by_hand():
    """On a line 0, 2, 4.5, 7.5, similarity -distance: single joins 0-2, then 4.5 (2.5 away), and leaves 7.5.

    Complete joins 0-2, then 4.5-7.5 (3 apart), as 4.5 is 4.5 from 0.
    """
    places = torch.tensor([0.0, 2.0, 4.5, 7.5])
    similarity = -(places[:, None] - places).abs()
    assert bipartition(similarity, "single").tolist() == [False, False, False, True]
    assert bipartition(similarity, "complete").tolist() == [False, False, True, True]
    assert bipartition(similarity[:2, :2], "single").tolist() == [False, True]


OPPOSITE = torch.tensor([[2.0, 0.0], [2.0, 0.0], [-2.0, 0.0], [-2.0, 0.0]])


def after(algorithm, server, rows=OPPOSITE, ids=(0, 1, 2, 3)):
    result = cohort_of(rows, ids, [1.0] * len(ids))
    states = {k: {"update": row} for k, row in zip(ids, rows, strict=True)}
    result = SimpleNamespace(**{**vars(result), "client_states": states, "memory": server.memory})
    assert algorithm.group(result).tolist() == server.memory["cluster"][list(ids)].tolist()
    return algorithm.conclude(server, server, result)


@pytest.mark.parametrize(
    ("settings", "clusters"),
    [
        ({}, [0, 0, 1, 1]),  # the mean is 0 and the longest 2
        ({"eps1": 0.0}, [0, 0, 0, 0]),
        ({"eps2": 2.0}, [0, 0, 0, 0]),
        ({"first_round": 1}, [0, 0, 0, 0]),
        ({"scale": "relative", "eps2": 0.9}, [0, 0, 1, 1]),
        ({"scale": "relative", "eps2": 1.0}, [0, 0, 0, 0]),
    ],
)
def test_when_a_cluster_is_cut(make, settings, clusters):
    algorithm = cfl(make, **settings)
    server = after(algorithm, begin(algorithm, state_of([0.0, 0.0]), [1, 1, 1, 1]))
    assert server.memory["cluster"].tolist() == clusters
    assert len(server.models) == 1 + max(clusters)
    assert all(torch.equal(model.params, server.params) for model in server.models)
    assert algorithm.metrics(server, None) == {"algorithm/clusters": 1.0 + max(clusters)}


def test_the_mean_counts_examples_and_relative_bounds_go_by_the_longest(make):
    """Rows 2, 2, -2, -2 with n = 1, 1, 1, 2: mean -0.4, a fifth of the longest."""
    for eps1, cut in ((0.19, False), (0.21, True)):
        algorithm = cfl(make, eps1=eps1, eps2=0.5, scale="relative")
        server = begin(algorithm, state_of([0.0, 0.0]), [1, 1, 1, 2])
        assert (len(after(algorithm, server).models) == 2) == cut
        algorithm = cfl(make, eps1=eps1, eps2=0.5, scale="relative", weights="uniform")
        assert len(after(algorithm, server).models) == 2  # their plain mean is 0


def test_absent_clients_are_judged_by_their_last_update(make):
    algorithm = cfl(make)
    server = begin(algorithm, state_of([0.0, 0.0]), [1, 1, 1, 1])
    first = after(algorithm, server, OPPOSITE[:3], (0, 1, 2))
    assert len(first.models) == 1  # client 3 has never taken part
    known = {k: {"update": OPPOSITE[k]} for k in (0, 1, 2)}
    second = after(algorithm, replace(first, clients=known), OPPOSITE[3:], (3,))
    assert second.memory["cluster"].tolist() == [0, 0, 1, 1]


def test_the_second_cut_keeps_client_ids(make):
    """Clients 1, 3, 4, 5 are cluster 1; 3 and 5 leave it: places 1 and 3 in the cluster, which are other clients."""
    algorithm = cfl(make)
    server = begin(algorithm, state_of([0.0, 0.0]), [1] * 6)
    server.memory["cluster"] = torch.tensor([0, 1, 0, 1, 1, 1])
    server = replace(server, siblings=server.models, round_index=5)
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0], [-2.0, 0.0], [2.0, 0.0], [-2.0, 0.0]])
    cut = after(algorithm, server, rows, tuple(range(6)))
    assert cut.memory["cluster"].tolist() == [0, 1, 0, 2, 1, 2]


def test_it_finds_two_kinds_of_clients_and_sends_one_model(make):
    """Half of the clients have their labels turned round; each is sent one model before and after the cut."""
    dataset = make.dataset(num_train=240)
    labels = dataset.train_labels.clone()
    owners = torch.arange(240) % 8
    labels[owners % 2 == 1] = (labels[owners % 2 == 1] + 1) % 3
    turned = type(dataset)(**{**vars(dataset), "train_labels": labels})
    algorithm = cfl(make, eps1=0.25, eps2=0.1, scale="relative", first_round=4, lr=0.3, local_epochs=4)
    federation = make.federation(dataset=turned, owners=owners.numpy(), num_clients=8, algorithm=algorithm)
    server = first_state(federation)
    for _ in range(8):
        outcome = run_round(federation, server)
        server = outcome.server
    assert server.memory["cluster"].tolist() == [0, 1] * 4
    assert outcome.result.bytes_down == 8 * (4 * server.params.numel() + 8)
    losses = [view.loss(algorithm.personal(view).params) for view in federation.executor.views(range(8), server)]
    assert max(losses) < 0.8


@pytest.mark.parametrize(
    "settings", [{"eps1": -1.0}, {"eps2": -1.0}, {"scale": "log"}, {"linkage": "ward"}, {"first_round": -1}]
)
def test_bad_settings_are_refused(make, settings):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{next(iter(settings))} must be "):
        cfl(make, **settings)
