"""The data's own clients, their test rows, and what comes back from the saved file."""

import numpy as np
import pytest

from fedgh.core.errors import ConfigurationError, PartitionError
from fedgh.core.seeding import numpy_generator
from fedgh.partition.base import Partition
from fedgh.partition.natural import Natural

LABELS = np.array([0, 1, 0, 1, 0, 1, 0])
WRITERS = np.array([7, 2, 7, 5, 2, 7, 5])
TEST_WRITERS = np.array([5, -1, 7, 9, 7])


def draw(partitioner=None, seed=1, **ids):
    partitioner = partitioner or Natural("client", None)
    ids = {"client_ids": WRITERS, "test_client_ids": TEST_WRITERS} | ids
    return partitioner(LABELS, 2, numpy_generator(seed, "partition"), **ids)


def test_each_writer_is_a_client_with_test_rows_of_its_own():
    partition = draw()
    assert [rows.tolist() for rows in partition.client_indices] == [[1, 4], [3, 6], [0, 2, 5]]
    assert [rows.tolist() for rows in partition.test_indices] == [[], [0], [2, 4]]
    assert partition.class_counts.tolist() == [[1, 1], [1, 1], [2, 1]]


def test_it_comes_back_from_its_file(tmp_path):
    partition = draw()
    partition.save(tmp_path / "p.npz")
    back = Partition.load(tmp_path / "p.npz")
    assert [rows.tolist() for rows in back.test_indices] == [[], [0], [2, 4]]
    assert back.hash == partition.hash


def test_without_test_ids_nobody_owns_test_rows():
    assert draw(test_client_ids=None).test_indices is None


def test_writers_are_dealt_out_whole():
    for seed in range(5):
        partition = draw(Natural("client", 2), seed)
        owners = np.empty(7, dtype=int)
        for client_id, rows in enumerate(partition.client_indices):
            owners[rows] = client_id
        assert all(len(set(owners[writer == WRITERS])) == 1 for writer in (2, 5, 7))
        assert [TEST_WRITERS[rows].min(initial=9) for rows in partition.test_indices] >= [5]
    hashes = {draw(Natural("client", 2), seed).hash for seed in range(20)}
    assert len(hashes) > 1


def test_domains():
    partition = draw(Natural("domain", None), domains=np.array([0, 0, 1, 1, 1, 0, 0]), test_domains=np.array([1, 0]))
    assert [rows.tolist() for rows in partition.client_indices] == [[0, 1, 5, 6], [2, 3, 4]]
    assert [rows.tolist() for rows in partition.test_indices] == [[1], [0]]


def test_what_cannot_be_is_refused():
    with pytest.raises(PartitionError, match=r"knows the client of each example; .*dataset.client_column"):
        draw(client_ids=None)
    with pytest.raises(PartitionError, match=r"num_clients is 4, but the data has 3 natural clients"):
        draw(Natural("client", 4))
    with pytest.raises(ConfigurationError, match=r"partition.by must be client or domain, got 'role'"):
        Natural("role", None)
