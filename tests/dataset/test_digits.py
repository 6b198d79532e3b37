import numpy as np
import torch
from sklearn.datasets import load_digits

from fedgh.dataset import digits
from fedgh.dataset.base import channel_statistics


def test_sizes_values_and_statistics():
    dataset = digits.load(1.0, None)
    assert dataset.image_shape == (1, 8, 8)
    assert dataset.num_classes == 10
    assert len(dataset.train_labels) + len(dataset.test_labels) == 1797
    assert (dataset.mean, dataset.std) == channel_statistics(dataset.train_images)
    assert set(dataset.train_images.unique().tolist()) == {round(value * 255 / 16) for value in range(17)}


def test_the_test_split_is_a_fifth_of_each_class():
    dataset = digits.load(1.0, None)
    total = np.bincount(load_digits().target)
    assert dataset.test_labels.bincount().tolist() == [int(0.2 * count + 0.5) for count in total]


def test_splits_are_disjoint_and_cover_the_original():
    dataset = digits.load(1.0, None)
    both = torch.cat([dataset.train_images, dataset.test_images]).flatten(1)
    original = torch.from_numpy(np.rint(load_digits().images * 255 / 16).astype(np.uint8)).flatten(1)
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, original.tolist()))


def test_the_split_never_changes():
    # A changed split would change every published number on digits: this fingerprint is part of the interface.
    assert digits.load(1.0, None).fingerprint == "66861d70554936c5"


def test_fraction_keeps_the_test_split():
    dataset = digits.load(0.1, None)
    assert 130 < len(dataset.train_labels) < 160
    assert torch.equal(dataset.test_images, digits.load(1.0, None).test_images)


def test_the_fingerprint_is_that_of_version_0_1():
    """Checkpoints hold it: runs begun before data sets were more than images go on."""
    assert digits.load(1.0, None).fingerprint == "66861d70554936c5"
