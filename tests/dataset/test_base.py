import dataclasses

import numpy as np
import pytest
import torch

from fedgh.core.errors import ConfigurationError, DataError
from fedgh.dataset.base import ImageDataset, channel_statistics, take_fraction


def make(count=20, **changes):
    generator = torch.Generator().manual_seed(0)
    values = {
        "name": "toy",
        "train_images": torch.randint(0, 256, (count, 3, 4, 5), generator=generator, dtype=torch.uint8),
        "train_labels": torch.arange(count) % 2,
        "test_images": torch.randint(0, 256, (6, 3, 4, 5), generator=generator, dtype=torch.uint8),
        "test_labels": torch.tensor([0, 1, 0, 1, 0, 1]),
        "class_names": ("cat", "dog"),
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.25, 0.3),
        "augmentation": None,
    }
    return ImageDataset(**(values | changes))


def test_properties():
    dataset = make()
    assert dataset.num_classes == 2
    assert dataset.image_shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"train_images": torch.zeros(20, 3, 4, 5)}, r"train split: images must be uint8 .*got torch.float32"),
        ({"test_images": torch.zeros(6, 4, 5, dtype=torch.uint8)}, r"test split: images must be uint8 .*\(6, 4, 5\)"),
        ({"train_labels": torch.zeros(19, dtype=torch.int64)}, r"train split: labels must be int64 of shape \(20,\)"),
        ({"train_labels": torch.zeros(20)}, r"one per example, got torch.float32 of shape \(20,\)"),
        (
            {"test_labels": torch.tensor([0, 1, 2, 1, -1, 1])},
            r"test split, row 2: label 2 is outside the classes 0 to 1 \(2 such labels in all\); check the labels",
        ),
        (
            {"test_images": torch.zeros(0, 3, 4, 5, dtype=torch.uint8), "test_labels": torch.zeros(0).long()},
            r"test split is empty .*copy the data set again",
        ),
        ({"test_images": torch.zeros(6, 3, 5, 5, dtype=torch.uint8)}, r"images are 3x4x5 but test images are 3x5x5"),
        ({"mean": (0.5,)}, r"3 channel\(s\), so mean and std need 3 number\(s\) each, got 1 and 3; set dataset.mean"),
        ({"std": (0.5, 0.0, 0.1)}, r"std positive, got .*set dataset.std=\[1.0\]"),
        ({"mean": (0.5, float("nan"), 0.1)}, r"mean must be finite"),
    ],
)
def test_what_does_not_fit_is_refused(changes, text):
    with pytest.raises(DataError, match=text):
        make(**changes)


def test_normalize_by_hand():
    dataset = make(mean=(0.5, 0.0, 1.0), std=(0.5, 1.0, 0.25))
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    wanted = torch.tensor([[-1.0, 0.0, -4.0], [1.0, 1.0, 0.0]])
    assert torch.allclose(dataset.normalize(images)[:, :, 0, 0], wanted, atol=1e-6)


def test_normalize_is_the_same_bits_in_any_batch_and_close_to_the_definition():
    dataset = make(count=37)
    images = dataset.train_images
    together = dataset.normalize(images)
    assert together.dtype == torch.float32
    assert torch.equal(together, torch.cat([dataset.normalize(images[i : i + 1]) for i in range(37)]))
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (dataset.mean, dataset.std))
    assert torch.allclose(together.double(), (images / 255.0 - mean) / std, atol=2e-6)


def test_fingerprint_changes_with_every_part_of_the_data_and_nothing_else():
    dataset = make()
    known = {dataset.fingerprint}
    assert len(dataset.fingerprint) == 16
    assert make(name="other", mean=(0.1, 0.1, 0.1)).fingerprint in known
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        changed = getattr(dataset, field).clone()
        changed.view(-1)[0] = 1 - changed.view(-1)[0].clamp(0, 1)
        print_ = dataclasses.replace(dataset, **{field: changed}).fingerprint
        assert print_ not in known
        known.add(print_)


def test_to_keeps_data_and_fingerprint():
    dataset = make()
    before = dataset.fingerprint
    moved = dataset.to("cpu")
    assert moved.__dict__["fingerprint"] == before
    assert torch.equal(moved.train_images, dataset.train_images)
    assert "fingerprint" not in make().to("cpu").__dict__


def test_take_fraction_is_stratified_nested_fixed_and_leaves_the_test_split():
    labels = torch.tensor([0] * 70 + [1] * 29 + [1])
    images = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1).expand(100, 3, 4, 5).contiguous()
    dataset = make(train_images=images, train_labels=labels)
    tenth, half = take_fraction(dataset, 0.1), take_fraction(dataset, 0.5)
    assert torch.bincount(tenth.train_labels).tolist() == [7, 3]
    assert torch.bincount(half.train_labels).tolist() == [35, 15]
    kept = tenth.train_images[:, 0, 0, 0].tolist()
    assert kept == sorted(kept)
    assert set(kept) <= set(half.train_images[:, 0, 0, 0].tolist())
    assert kept == take_fraction(dataset, 0.1).train_images[:, 0, 0, 0].tolist()
    assert [int(labels[row]) for row in kept] == tenth.train_labels.tolist()
    assert tenth.test_images is dataset.test_images


def test_take_fraction_keeps_one_of_each_class_and_all_at_one():
    dataset = make()
    assert take_fraction(dataset, 1.0) is dataset
    assert sorted(take_fraction(dataset, 1e-6).train_labels.tolist()) == [0, 1]


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
def test_take_fraction_range(fraction):
    with pytest.raises(ConfigurationError, match=r"dataset.train_fraction must be in \(0, 1\], got .*try 0.1"):
        take_fraction(make(), fraction)


def test_channel_statistics_are_those_of_numpy():
    images = torch.randint(0, 256, (50, 3, 6, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = channel_statistics(images)
    scaled = images.numpy().astype(np.float64) / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)))
    assert std == pytest.approx(scaled.std((0, 2, 3)))
    assert channel_statistics(images.flip(0)) == (mean, std)
