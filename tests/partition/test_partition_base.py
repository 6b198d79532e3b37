import json

import numpy as np
import pytest

from fedgh.core.errors import CheckpointError, ConfigurationError, DataError, PartitionError
from fedgh.core.seeding import numpy_generator
from fedgh.partition.base import Partition, check, cut, redraw, require, require_samples
from fedgh.partition.dirichlet import Dirichlet
from fedgh.partition.iid import IID


def arrays(*lists):
    return tuple(np.array(numbers, dtype=np.int64) for numbers in lists)


@pytest.fixture
def partition():
    labels = np.repeat(np.arange(10), 30)
    return Dirichlet(num_clients=6, alpha=0.3, min_size=1, max_redraws=100)(labels, 10, numpy_generator(0, "partition"))


def test_from_owners_sorts_and_counts():
    labels, owners = np.array([0, 1, 1, 2]), np.array([1, 0, 1, 0])
    partition = Partition.from_owners(labels, 3, owners, 2, {"name": "by hand"})
    assert [indices.tolist() for indices in partition.client_indices] == [[1, 3], [0, 2]]
    assert all(indices.dtype == np.int64 for indices in partition.client_indices)
    assert partition.class_counts.tolist() == [[0, 1, 1], [1, 1, 0]]
    assert partition.sizes.tolist() == [2, 2]
    assert partition.num_clients == 2


@pytest.mark.parametrize("owners", [[0, 1], [0, 1, 2, 1], [0, 1, -1, 1]])
def test_owners_that_do_not_fit_are_named(owners):
    with pytest.raises(
        PartitionError, match=r"names an owner between 0 and 1 for each of 4 samples; .* owners of shape"
    ):
        Partition.from_owners(np.zeros(4, dtype=np.int64), 1, np.array(owners), 2, {})


def test_a_good_partition_passes_the_check():
    check(arrays([0, 2], [1]), 3)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (
            arrays([0, 1], [], [2], []),
            r"leaves clients 1, 3 without samples; try another seed, a larger partition.alpha",
        ),
        (arrays([0, 1, 2], []), r"fewer partition.num_clients, .*partition=dirichlet_guarded"),
        (arrays([0, 1], [1, 2]), r"gives sample 1 to more than one place"),
        (arrays([0, 0], [1, 2]), r"gives sample 0 to more than one place"),
        (arrays([0], [2]), r"gives sample 1 to nobody"),
        (arrays([0, 1], [2, 3]), r"holds sample 3, but the data has 3 samples"),
        (arrays([0, 1], [2, -1]), r"holds sample -1"),
        (arrays(*[[]] * 13, [0, 1, 2]), r"clients 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 3 more without"),
        ((), r"without samples"),
    ],
)
def test_the_check_names_what_is_wrong(indices, message):
    with pytest.raises(PartitionError, match=message):
        check(indices, 3)


def test_the_hash_depends_on_who_holds_what_and_on_nothing_else():
    counts = np.ones((2, 2), dtype=np.int64)
    first = Partition(arrays([0, 1], [2, 3]), counts, {"a": 1})
    assert first.hash == Partition(arrays([0, 1], [2, 3]), counts, {}).hash
    assert first.hash != Partition(arrays([2, 3], [0, 1]), counts, {}).hash
    assert first.hash != Partition(arrays([0], [1, 2, 3]), counts, {}).hash
    assert len(first.hash) == 64


def test_the_card_says_the_measures_worked_by_hand():
    # Clients (4, 0) and (2, 2) of two classes: entropies 0 and 1 bit; global (3/4, 1/4), distances 1/4 and 1/4.
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    owners = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    card = Partition.from_owners(labels, 2, owners, 2, {"name": "by hand", "alpha": 0.1}).card()
    assert "name=by hand, alpha=0.1" in card
    assert "2, together 8 samples of 2 classes" in card
    assert "min 4, median 4, max 4" in card
    assert "min 1, median 2, max 2, mean 1.5" in card
    assert "0.50 bits on average (at most 1.00)" in card
    assert "0.25 on average (total variation, 0 to 1)" in card


def test_saved_and_loaded_is_the_same(partition, tmp_path):
    path = tmp_path / "folder" / "partition.npz"
    partition.save(path)
    loaded = Partition.load(path)
    assert loaded.hash == partition.hash
    assert loaded.parameters == partition.parameters
    assert np.array_equal(loaded.class_counts, partition.class_counts)
    for mine, theirs in zip(loaded.client_indices, partition.client_indices, strict=True):
        assert np.array_equal(mine, theirs)
    assert [file.name for file in path.parent.iterdir()] == ["partition.npz"]


def test_infinite_alpha_and_a_single_client_survive_the_file(tmp_path):
    partition = Dirichlet(1, float("inf"), 1, 0)(np.array([0, 1, 1]), 2, numpy_generator(0, "partition"))
    partition.save(tmp_path / "p.npz")
    loaded = Partition.load(tmp_path / "p.npz")
    assert loaded.parameters["alpha"] == float("inf")
    assert loaded.client_indices[0].tolist() == [0, 1, 2]


def test_another_index_in_the_file_is_noticed(partition, tmp_path):
    path = tmp_path / "p.npz"
    partition.save(path)
    with np.load(path) as file:
        content = dict(file)
    content["indices"][[0, -1]] = content["indices"][[-1, 0]]
    np.savez(path, **content)
    with pytest.raises(CheckpointError, match=r"p.npz is damaged: its indices have hash .* delete it"):
        Partition.load(path)


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\x03\x04 half an archive"])
def test_a_damaged_file_is_said_to_be_so(content, tmp_path):
    path = tmp_path / "p.npz"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"p.npz cannot be read as a partition"):
        Partition.load(path)


def test_a_cut_file_or_a_lacking_array_is_said_to_be_so(partition, tmp_path):
    path = tmp_path / "p.npz"
    partition.save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="cannot be read"):
        Partition.load(path)
    np.savez(path, indices=np.arange(3), parameters=json.dumps({}))
    with pytest.raises(CheckpointError, match="cannot be read"):
        Partition.load(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        Partition.load(tmp_path / "missing.npz")


def test_pieces_always_add_up():
    assert cut(np.array([0.5, 0.5]), 3).tolist() == [1, 2]
    assert cut(np.array([0.1] * 10), 7).sum() == 7
    assert cut(np.array([3.0, 1.0]), 8).tolist() == [6, 2]
    for seed in range(200):  # rounding must not hand the last client what its share denies it
        shares = numpy_generator(seed, "shares").dirichlet(np.ones(7)) * (np.arange(7) < 6)
        pieces = cut(shares / shares.sum(), 1_000)
        assert pieces[-1] == 0
        assert pieces.sum() == 1_000
    assert cut(np.array([1.0]), 5).tolist() == [5]


def test_redraws_are_counted_and_capped():
    poor, rich = np.array([[3], [0]]), np.array([[2], [1]])
    draws = iter([poor, None, rich])
    counts, redraws = redraw(lambda: next(draws), min_size=1, max_redraws=2)
    assert (counts.tolist(), redraws) == ([[2], [1]], 2)
    with pytest.raises(PartitionError, match=r"no partition found in 3 draws; in the last, client 1 had fewer than"):
        redraw(lambda: poor, min_size=1, max_redraws=2)
    with pytest.raises(PartitionError, match="all probability fell on clients that were already full"):
        redraw(lambda: None, min_size=1, max_redraws=0)


def test_labels_are_checked():
    with pytest.raises(DataError, match=r"labels must lie in 0 .. 2, got 0 .. 3"):
        require_samples(np.array([0, 3]), 3, 1, 1)
    with pytest.raises(DataError, match=r"labels must lie in 0 .. 2, got -1 .. 1"):
        require_samples(np.array([-1, 1]), 3, 1, 1)
    with pytest.raises(DataError, match="whole numbers of shape"):
        require_samples(np.array([0.0, 1.0]), 3, 1, 1)
    with pytest.raises(DataError, match="whole numbers of shape"):
        require_samples(np.zeros((2, 2), dtype=int), 3, 1, 1)
    with pytest.raises(PartitionError, match="0 samples cannot give 2 clients 1 each"):
        IID(2)(np.array([]), 3, numpy_generator(0, "partition"))


def test_other_integer_types_are_taken():
    assert require_samples(np.array([0, 1], dtype=np.uint8), 2, 1, 1).dtype == np.int64
    with pytest.raises(ConfigurationError, match="no"):
        require(False, "no")
