import re

import numpy as np
import pytest

from fedgh.core.errors import ConfigurationError, PartitionError
from fedgh.core.seeding import numpy_generator
from fedgh.partition.shards import Shards


def test_the_papers_case_in_small():
    """300 samples, 10 classes of 30; 10 clients x 2 shards of 15: a class is two whole shards."""
    labels = numpy_generator(0, "labels").permutation(np.repeat(np.arange(10), 30))
    partition = Shards(10, 2)(labels, 10, numpy_generator(1, "partition"))
    assert partition.sizes.tolist() == [30] * 10
    assert set(partition.class_counts.flatten().tolist()) <= {0, 15, 30}
    assert ((partition.class_counts > 0).sum(1) <= 2).all()
    assert (partition.class_counts.sum(0) == 30).all()


def test_shards_that_cannot_be_equal_differ_by_one():
    partition = Shards(3, 1)(np.zeros(10, dtype=np.int64), 1, numpy_generator(1, "partition"))
    assert sorted(partition.sizes.tolist()) == [3, 3, 4]


def test_who_gets_which_shard_and_which_samples_are_in_it_is_drawn():
    labels = np.repeat(np.arange(2), 10)
    drawn = [Shards(2, 1)(labels, 2, numpy_generator(seed, "partition")) for seed in range(20)]
    assert {tuple(one.class_counts[0].tolist()) for one in drawn} == {(10, 0), (0, 10)}
    halves = [Shards(4, 1)(np.zeros(8, dtype=np.int64), 1, numpy_generator(seed, "partition")) for seed in range(9)]
    assert len({tuple(np.concatenate(one.client_indices)) for one in halves}) > 1


def test_what_cannot_be():
    with pytest.raises(ConfigurationError, match=re.escape("partition.shards_per_client must be at least 1, got 0")):
        Shards(2, 0)
    with pytest.raises(PartitionError, match="3 samples cannot be cut into 4 shards; use fewer"):
        Shards(2, 2)(np.zeros(3, dtype=np.int64), 1, numpy_generator(1, "partition"))
