import re

import numpy as np
import pytest

from fedgh.core.errors import ConfigurationError, PartitionError
from fedgh.core.seeding import numpy_generator
from fedgh.partition.domain import Domain

LABELS, DOMAINS = np.arange(6000) % 5, np.arange(6000) // 5 % 3  # every class in every domain, 400 of each
INF = float("inf")


def deal(*settings, seed=1, labels=LABELS, domains=DOMAINS):
    partition = Domain(*settings)(labels, 5, numpy_generator(seed, "partition"), domains=domains)
    counts = np.stack([np.bincount(domains[rows], minlength=domains.max() + 1) for rows in partition.client_indices])
    return partition, counts


def test_one_domain_a_client():
    partition, counts = deal(1, 1.0, INF, 1, 0)
    assert counts.tolist() == [[2000, 0, 0], [0, 2000, 0], [0, 0, 2000]]
    _, several = deal(2, 1.0, INF, 1, 0)
    assert several.tolist() == [[1000, 0, 0]] * 2 + [[0, 1000, 0]] * 2 + [[0, 0, 1000]] * 2
    assert partition.class_counts.tolist() == [[400] * 5] * 3


@pytest.mark.parametrize("concentration", [0.0, 0.5, 0.9])
def test_a_share_stays_at_home_and_the_rest_is_everywhere(concentration):
    """Of client k's samples, lambda + (1 - lambda) / 3 come from its own domain."""
    _, counts = deal(1, concentration, INF, 1, 0)
    shares = np.diag(counts) / counts.sum(1)
    assert shares == pytest.approx(concentration + (1 - concentration) / 3, abs=0.04)


def test_inside_a_domain_classes_are_dirichlet():
    """Of two clients with q ~ Dir(alpha, alpha), (q - 1/2)^2 is 1 / (4 (2 alpha + 1)) on average."""
    shares = [deal(2, 1.0, 0.3, 1, 1000, seed=seed)[0].class_counts[0::2] / 400 for seed in range(60)]
    assert np.square(np.array(shares) - 0.5).mean() == pytest.approx(1 / (4 * 1.6), rel=0.1)


def test_domains_need_not_be_numbered_from_zero_and_sizes_are_kept():
    partition, _ = deal(2, 1.0, 0.1, 100, 1000, domains=DOMAINS * 4 + 3)
    assert partition.num_clients == 6
    assert partition.sizes.min() >= 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, 1.0, 1.0, 1, 1), "partition.clients_per_domain must be at least 1, got 0"),
        ((1, 1.1, 1.0, 1, 1), "partition.concentration must be in [0, 1], got 1.1"),
        ((1, 1.0, 0.0, 1, 1), "partition.alpha must be positive, got 0.0"),
        ((1, 1.0, 1.0, 0, 1), "partition.min_size must be at least 1, got 0"),
        ((1, 1.0, 1.0, 1, -1), "partition.max_redraws must not be negative, got -1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        Domain(*settings)


def test_a_set_without_domains_is_refused():
    with pytest.raises(PartitionError, match="needs a data set that knows the domain of each example"):
        Domain(1, 1.0, INF, 1, 0)(LABELS, 5, numpy_generator(1, "partition"))
