import re

import numpy as np
import pytest

from fedgh.core.errors import ConfigurationError
from fedgh.core.seeding import numpy_generator
from fedgh.partition.quantity import Quantity


@pytest.mark.parametrize("alpha", [0.5, 5.0])
def test_sizes_have_the_variance_of_the_law(alpha):
    """A share of Dir_K(alpha) has mean 1/K and variance (K - 1) / (K^2 (K alpha + 1)); K = 5."""
    labels = np.zeros(10_000, dtype=np.int64)
    draws = range(400)
    shares = [Quantity(5, alpha, 1, 1000)(labels, 1, numpy_generator(s, "p")).sizes / 10_000 for s in draws]
    assert np.mean(shares) == pytest.approx(0.2)
    assert np.var(shares) == pytest.approx(4 / 25 / (5 * alpha + 1), rel=0.15)


def test_labels_are_alike_and_infinity_is_equal():
    labels = np.repeat(np.arange(2), 5000)
    partition = Quantity(4, 1.0, 500, 1000)(labels, 2, numpy_generator(3, "partition"))
    shares = partition.class_counts[:, 0] / partition.sizes
    assert abs(shares - 0.5).max() < 4 * 0.5 / np.sqrt(partition.sizes.min())
    assert partition.sizes.min() >= 500
    assert Quantity(4, float("inf"), 1, 0)(labels, 2, numpy_generator(3, "partition")).sizes.tolist() == [2500] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((5, 0.0, 1, 1), "partition.alpha must be positive, got 0.0"),
        ((5, 1.0, 0, 1), "partition.min_size must be at least 1, got 0"),
        ((5, 1.0, 1, -1), "partition.max_redraws must not be negative, got -1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        Quantity(*settings)
