import numpy as np
import pytest

from fedgh.core.errors import PartitionError
from fedgh.core.seeding import numpy_generator
from fedgh.partition.classes import Classes


def deal(num_clients, num_classes, per_class=10):
    labels = np.tile(np.arange(num_classes), per_class)
    return Classes(num_clients)(labels, num_classes, numpy_generator(0, "partition"))


@pytest.mark.parametrize(("num_clients", "num_classes", "owned"), [(20, 100, 5), (20, 200, 10), (1, 3, 3), (4, 4, 1)])
def test_every_client_owns_its_classes_whole(num_clients, num_classes, owned):
    counts = deal(num_clients, num_classes).class_counts
    assert ((counts > 0).sum(axis=1) == owned).all()
    assert ((counts > 0).sum(axis=0) == 1).all()
    assert set(counts.flatten().tolist()) <= {0, 10}


def test_the_remainder_is_spread_by_one():
    assert sorted((deal(4, 10).class_counts > 0).sum(axis=1).tolist()) == [2, 2, 3, 3]


def test_more_clients_than_classes_cannot_be():
    message = r"partition.num_clients must be at most the number of classes \(10\) for partition=classes, got 11"
    with pytest.raises(PartitionError, match=message):
        deal(11, 10)


def test_a_client_whose_classes_have_no_samples_is_named():
    message = r"client \d gets no sample, .*classes 2 have no sample: labels are expected from 0 on.*; use fewer"
    with pytest.raises(PartitionError, match=message) as caught:
        Classes(3)(np.array([0, 0, 1, 1]), 3, numpy_generator(0, "partition"))
    assert "alpha" not in str(caught.value)  # which this partition does not have
    assert "min_size" not in str(caught.value)
