"""Laws that every partitioner keeps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgh.core.errors import ConfigurationError, PartitionError
from fedgh.core.seeding import numpy_generator
from fedgh.partition.base import check
from fedgh.partition.classes import Classes
from fedgh.partition.dirichlet import Dirichlet
from fedgh.partition.dirichlet_guarded import DirichletGuarded
from fedgh.partition.dirichlet_per_client import DirichletPerClient
from fedgh.partition.iid import IID
from fedgh.partition.quantity import Quantity
from fedgh.partition.shards import Shards

PARTITIONERS = {
    "dirichlet": lambda clients, alpha: Dirichlet(clients, alpha, 1, 200),
    "dirichlet_guarded": lambda clients, alpha: DirichletGuarded(clients, alpha, 1, 200),
    "classes": lambda clients, alpha: Classes(clients),
    "iid": lambda clients, alpha: IID(clients),
    "shards": lambda clients, alpha: Shards(clients, 2),
    "quantity": lambda clients, alpha: Quantity(clients, alpha, 1, 200),
    "dirichlet_per_client": lambda clients, alpha: DirichletPerClient(clients, min(alpha, 1e6)),
}


@st.composite
def federations(draw):
    num_classes = draw(st.integers(1, 12))
    labels = np.array(draw(st.lists(st.integers(0, num_classes - 1), max_size=150)), dtype=np.int64)
    clients = draw(st.integers(1, 12))
    alpha = draw(st.sampled_from([0.01, 0.1, 1.0, 100.0, float("inf")]))
    return labels, num_classes, clients, alpha


@pytest.mark.parametrize("name", PARTITIONERS)
@settings(deadline=None, max_examples=60)
@given(federations(), st.integers(0, 2**32))
def test_exact_disjoint_covering_sorted_and_repeatable(name, federation, seed):
    labels, num_classes, clients, alpha = federation
    partitioner = PARTITIONERS[name](clients, alpha)
    before = labels.copy()
    try:
        partition = partitioner(labels, num_classes, numpy_generator(seed, "partition"))
    except PartitionError:
        return  # asked for the impossible, and said so
    check(partition.client_indices, len(labels))
    assert partition.num_clients == clients
    assert np.array_equal(labels, before)
    for indices, counts in zip(partition.client_indices, partition.class_counts, strict=True):
        assert (np.diff(indices) > 0).all()
        assert np.array_equal(np.bincount(labels[indices], minlength=num_classes), counts)
    assert partition.hash == partitioner(labels, num_classes, numpy_generator(seed, "partition")).hash
    assert partition.card()


@pytest.mark.parametrize("name", PARTITIONERS)
def test_another_seed_another_partition(name):
    labels = np.repeat(np.arange(10), 50)
    hashes = {PARTITIONERS[name](5, 0.5)(labels, 10, numpy_generator(seed, "partition")).hash for seed in range(5)}
    assert len(hashes) == 5


@pytest.mark.parametrize("name", PARTITIONERS)
@pytest.mark.parametrize("num_clients", [0, -3, 2.5])
def test_the_number_of_clients_is_checked(name, num_clients):
    message = f"partition.num_clients must be a whole number of at least 1, got {num_clients}; try 20."
    with pytest.raises(ConfigurationError, match=message):
        PARTITIONERS[name](num_clients, 1.0)


@pytest.mark.parametrize("kind", [Dirichlet, DirichletGuarded])
def test_the_dirichlet_settings_are_checked(kind):
    with pytest.raises(
        ConfigurationError,
        match=r"partition.alpha must be positive, got -0.5; try 0.1 \(strongly skewed\) to 100 \(nearly IID\).",
    ):
        kind(3, -0.5, 1, 10)
    with pytest.raises(ConfigurationError, match=r"partition.alpha must be positive, got nan"):
        kind(3, float("nan"), 1, 10)
    with pytest.raises(ConfigurationError, match=r"partition.min_size must be at least 1, got 0"):
        kind(3, 1.0, 0, 10)
    with pytest.raises(ConfigurationError, match=r"partition.max_redraws must not be negative, got -1"):
        kind(3, 1.0, 1, -1)


@pytest.mark.parametrize("kind", [Dirichlet, DirichletGuarded])
def test_every_client_gets_min_size_or_the_error_names_who_did_not(kind):
    labels = np.repeat(np.arange(10), 40)
    partition = kind(8, 0.5, 20, 1000)(labels, 10, numpy_generator(0, "partition"))
    assert partition.sizes.min() >= 20
    assert partition.parameters["redraws"] >= 0
    with pytest.raises(PartitionError, match=r"no partition found in 4 draws; in the last, clients? [\d, ]+ had fewer"):
        kind(8, 0.01, 50, 3)(labels, 10, numpy_generator(0, "partition"))
    with pytest.raises(PartitionError, match=r"400 samples cannot give 8 clients 51 each; use fewer partition"):
        kind(8, 0.5, 51, 3)(labels, 10, numpy_generator(0, "partition"))


@pytest.mark.parametrize("kind", [Dirichlet, DirichletGuarded])
def test_large_federations_are_dealt_at_once(kind):
    labels = numpy_generator(0, "labels").integers(0, 10, 200_000)
    partition = kind(2_000, 1.0, 1, 10)(labels, 10, numpy_generator(0, "partition"))
    assert partition.sizes.sum() == 200_000
