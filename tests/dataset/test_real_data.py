"""Real image sets in the Parquet layout; ``FEDGH_DATA=<folder> pytest -m data``."""

import os
from pathlib import Path

import pytest
import torch

from fedgh.dataset import (
    cifar10,
    cifar100,
    digits_domains,
    mnist,
    mtfl,
    newsgroups,
    pacs,
    parquet,
    rotated_mnist,
    shakespeare,
    tiny_imagenet,
    usps,
)
from fedgh.dataset.base import channel_statistics

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif("FEDGH_DATA" not in os.environ, reason="FEDGH_DATA does not point at a folder of image sets"),
]


def folder(name):
    path = Path(os.environ.get("FEDGH_DATA", "")) / name
    if not path.is_dir():
        pytest.skip(f"FEDGH_DATA holds no {name}")
    return path


@pytest.mark.parametrize(("module", "name"), [(cifar10, "cifar10"), (cifar100, "cifar100"), (mnist, "mnist")])
def test_published_sets_have_their_published_statistics(module, name):
    dataset = module.load(folder(name), "parquet", False, 1.0, None)
    mean, std = channel_statistics(dataset.train_images)
    assert mean == pytest.approx(dataset.mean, abs=5e-4)
    assert std == pytest.approx(dataset.std, abs=5e-4)
    per_class = dataset.train_labels.bincount().tolist()
    assert len(per_class) == dataset.num_classes
    assert name == "mnist" or set(per_class) == {50_000 // dataset.num_classes}
    assert len(dataset.test_labels) == 10_000


def test_tiny_imagenet_subset():
    dataset = tiny_imagenet.load(folder("tiny_imagenet_subset"), "parquet", 1.0, None)
    assert dataset.image_shape == (3, 64, 64)
    assert dataset.train_labels.bincount().tolist() == [150] * 200
    assert dataset.test_labels.tolist() == [label for label in range(200) for _ in range(25)]


def test_a_set_of_ones_own():
    dataset = parquet.load(folder("usps"), None, None, None, None, None, None, 1.0, None)
    assert (dataset.name, dataset.image_shape, dataset.num_classes) == ("usps", (1, 16, 16), 10)
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (7291, 2007)


def test_sets_in_domains():
    turned = rotated_mnist.load(folder("mnist"), "parquet", False, 10, 36.0, 14, 0.1, None)
    assert turned.image_shape == (1, 14, 14)
    assert max(turned.domains.bincount()) - min(turned.domains.bincount()) <= 1
    mixed = digits_domains.load(folder("mnist"), "parquet", folder("usps"), 28, 743, 1.0, None)
    assert mixed.test_domains.bincount().tolist() == [10_000, 2007, 359]
    assert all(abs(number - 743) <= 5 for number in mixed.domains.bincount().tolist())
    pictures = pacs.load(folder("pacs"), None, None, None, 1.0, None, "domain")
    assert (len(pictures.train_labels), len(pictures.test_labels)) == (7993, 1998)
    assert len(pictures.domains.bincount()) == 4
    assert pictures.num_classes == 7
    assert usps.load(folder("usps"), 1.0, None).image_shape == (1, 16, 16)


def test_texts():
    words = newsgroups.load(folder("newsgroups20"), "text", "label", "tfidf", 4096, 128, 1.0)
    assert (words.train_inputs.shape, words.test_inputs.shape) == ((11_293, 4096), (7528, 4096))
    assert words.num_classes == 20
    plays = shakespeare.load(folder("shakespeare"), 80, 0.05)
    assert int(plays.client_ids.max()) < 420
    assert plays.train_inputs.shape[1] == 80


def test_faces():
    faces = mtfl.load(folder("mtfl"), ["smile", "gender", "glasses", "head_pose"], None, 1.0, None, None)
    assert (faces.task.widths, len(faces.train_targets), len(faces.test_targets)) == ([2, 2, 2, 5], 10_000, 2995)


def test_faces_whole():
    tasks = ["smile", "gender", "glasses", "head_pose"]
    faces = mtfl.load(folder("mtfl"), tasks, None, 1.0, None, points="landmarks", clients_per_task=1)
    assert faces.task.widths == [2, 2, 2, 5, 10]
    assert torch.bincount(faces.client_ids).tolist() == [2000] * 5
    points = faces.train_targets[faces.client_ids == 4][:, 4:].unflatten(1, (2, 5))
    assert (points[:, 0, 0] < points[:, 0, 1]).float().mean() > 0.99  # the left eye is left of the right one
