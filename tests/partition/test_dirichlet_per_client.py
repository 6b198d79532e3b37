import re

import numpy as np
import pytest

from fedgh.core.errors import ConfigurationError
from fedgh.core.seeding import numpy_generator
from fedgh.partition.dirichlet_per_client import DirichletPerClient


def test_all_clients_have_one_size():
    labels = np.arange(103) % 4
    sizes = DirichletPerClient(10, 0.1)(labels, 4, numpy_generator(1, "partition")).sizes
    assert sorted(sizes.tolist()) == [10] * 7 + [11] * 3


@pytest.mark.parametrize("alpha", [0.3, 3.0])
def test_two_samples_of_a_client_share_a_class_as_often_as_the_law_says(alpha):
    """E sum_c q_c^2 = (1 + alpha sum_c p_c^2) / (1 + alpha) for q ~ Dir(alpha p); p = (1/2, 1/4, 1/4): 3/8."""
    labels = np.repeat([0, 1, 2], [4000, 2000, 2000])
    partition = DirichletPerClient(4000, alpha)(labels, 3, numpy_generator(1, "partition"))
    same = (partition.class_counts == 2).any(1).mean()
    assert same == pytest.approx((1 + alpha * 3 / 8) / (1 + alpha), abs=0.04)  # used-up classes cost a little


def test_a_large_alpha_is_iid_and_a_small_one_a_class_a_client():
    labels = np.arange(4000) % 4
    mild = DirichletPerClient(4, 1e6)(labels, 4, numpy_generator(1, "partition"))
    assert abs(mild.class_counts - 250).max() < 5 * np.sqrt(250)
    strong = DirichletPerClient(100, 1e-3)(labels, 4, numpy_generator(1, "partition"))
    assert np.median(strong.class_counts.max(1)) > 30  # of 40; the rest came when the client's class was used up


def test_an_empty_class_is_nobodys():
    partition = DirichletPerClient(3, 0.5)(np.repeat([0, 2], 15), 4, numpy_generator(1, "partition"))
    assert partition.class_counts.sum(0).tolist() == [15, 0, 15, 0]


@pytest.mark.parametrize("alpha", [0.0, float("inf")])
def test_alpha_is_checked(alpha):
    with pytest.raises(
        ConfigurationError, match=re.escape(f"partition.alpha must be positive and finite, got {alpha}")
    ):
        DirichletPerClient(3, alpha)
