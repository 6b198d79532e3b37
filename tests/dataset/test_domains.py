"""Sets in domains and texts: rotated MNIST, three kinds of digits, PACS, Newsgroups, Shakespeare."""

import numpy as np
import pytest
import torch

from fedgh.core.errors import ConfigurationError, DataError
from fedgh.dataset import (
    cinic10,
    digits_domains,
    emnist,
    femnist,
    mtfl,
    newsgroups,
    pacs,
    rotated_mnist,
    shakespeare,
    svhn,
    usps,
)
from fedgh.dataset.rotated_mnist import rotated
from fedgh.task.base import PADDING
from tests.dataset.fixtures import pixels, png, write_parquet_set, write_shard


def test_quarter_turns_are_exact_and_counter_clockwise():
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    turned = rotated(images, torch.tensor([0, 90, 180, 270]))
    for quarter, (before, after) in enumerate(zip(images, turned, strict=True)):
        assert torch.equal(torch.rot90(before, quarter, (1, 2)), after)


def test_other_angles_keep_the_centre_and_darken_the_corners():
    turned = rotated(torch.full((1, 1, 15, 15), 200, dtype=torch.uint8), torch.tensor([45]))
    assert turned[0, 0, 7, 7] == 200
    assert turned[0, 0, 0, 0] == 0
    assert rotated(torch.full((1, 1, 28, 28), 200, dtype=torch.uint8), torch.tensor([0]), size=14).shape[-1] == 14


@pytest.fixture
def mnist_folder(tmp_path):
    splits = [(pixels(count, 28, 28, seed=count), [i % 10 for i in range(count)]) for count in (40, 20)]
    return write_parquet_set(tmp_path / "mnist", *splits)


def test_rotated_mnist_has_domains_of_one_size(mnist_folder):
    load = lambda **more: rotated_mnist.load(  # noqa: E731
        mnist_folder,
        "parquet",
        False,
        **{"num_rotations": 4, "step": 90.0, "image_size": None, **more},
        train_fraction=1.0,
        augmentation=None,
    )
    dataset = load()
    assert dataset.domains.bincount().tolist() == [10] * 4
    assert dataset.test_domains.bincount().tolist() == [5] * 4
    plain = load(num_rotations=1)
    row = int((dataset.domains == 1).nonzero()[0])
    assert torch.equal(dataset.train_images[row], torch.rot90(plain.train_images[row], 1, (1, 2)))
    assert torch.equal(load().domains, dataset.domains)
    assert load(image_size=14).image_shape == (1, 14, 14)
    with pytest.raises(ConfigurationError, match=r"num_rotations and dataset.image_size must be at least 1, got 0"):
        load(num_rotations=0)


def test_three_kinds_of_digits(mnist_folder, tmp_path):
    usps = write_parquet_set(
        tmp_path / "usps", (pixels(20, 16, 16), [i % 10 for i in range(20)]), (pixels(10, 16, 16), list(range(10)))
    )
    dataset = digits_domains.load(mnist_folder, "parquet", usps, 28, 20, 1.0, None)
    assert dataset.image_shape == (1, 28, 28)
    assert dataset.domains.bincount().tolist()[:2] == [20, 20]
    assert dataset.test_domains.bincount().tolist() == [20, 10, 359]
    assert torch.equal(dataset.test_images[0], rotated(dataset.test_images[:1], torch.zeros(1))[0])
    with pytest.raises(ConfigurationError, match=r"per_domain must be at least 1, got 28 and 0"):
        digits_domains.load(mnist_folder, "parquet", usps, 28, 0, 1.0, None)


def test_pacs_knows_its_domains(tmp_path):
    for split, names in (("train", ["photo", "sketch", "photo"]), ("test", ["sketch", "photo", "photo"])):
        images = [png(image) for image in pixels(3, 8, 8, 3)]
        write_shard(tmp_path / f"{split}-00000-of-00001.parquet", images, [0, 1, 1], domain=names)
    dataset = pacs.load(tmp_path, None, None, None, 1.0, None, "domain")
    assert (dataset.domains.tolist(), dataset.test_domains.tolist()) == ([0, 1, 0], [1, 0, 0])


def write_texts(folder, **splits):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split, columns in splits.items():
        pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_newsgroups_as_weighted_words_by_hand(tmp_path):
    """Words a (in 2 of 3 texts), b (2), c (1); two are kept. idf = ln((1 + 3) / (1 + df)) + 1 = 1.28768."""
    train = {"text": ["aa aa bb", "aa cc", "bb"], "label": [0, 1, 0]}
    write_texts(tmp_path, train=train, test={"text": ["aa bb bb zz", "cc"], "label": [1, 0]})
    dataset = newsgroups.load(tmp_path, "text", "label", "tfidf", 2, 8, 1.0)
    expected = np.array([[2, 1], [1, 0], [0, 1]]) / np.sqrt([[5], [1], [1]])
    assert dataset.train_inputs.numpy() == pytest.approx(expected, abs=1e-6)
    assert dataset.test_inputs.numpy() == pytest.approx(np.array([[1, 2], [0, 0]]) / np.sqrt([[5], [1]]), abs=1e-6)
    assert dataset.train_inputs.dtype == torch.float32
    tokens = newsgroups.load(tmp_path, "text", "label", "tokens", 50, 4, 1.0)
    assert (tokens.num_tokens, tokens.train_inputs.shape) == (50, (3, 4))
    with pytest.raises(ConfigurationError, match="must be tfidf or tokens, got 'words'"):
        newsgroups.load(tmp_path, "text", "label", "words", 2, 8, 1.0)
    with pytest.raises(ConfigurationError, match="num_tokens must be at least 1, got 0"):
        newsgroups.load(tmp_path, "text", "label", "tfidf", 0, 8, 1.0)


def test_shakespeares_clients_are_roles(tmp_path):
    train = {"text": ["to be", "or not"], "role": ["HAMLET", "GHOST"]}
    write_texts(tmp_path, train=train, test={"text": ["be"], "role": ["HAMLET"]})
    dataset = shakespeare.load(tmp_path, 8, 1.0)
    assert (dataset.client_ids.tolist(), dataset.test_client_ids.tolist()) == ([1, 0], [1])


def test_svhn_and_emnist_as_torchvision_has_them(tmp_path, monkeypatch):
    """Stand-ins for its readers, with the layouts that they give: (N, 3, H, W) and ``labels``; digits on their side."""
    import torchvision.datasets

    class House:
        def __init__(self, root, split, download):
            self.data, self.labels = pixels(4, 3, 32, 32, seed=len(split)), np.array([0, 9, 3, 3])

    class Letters:
        def __init__(self, root, split, train, download):
            assert split == "balanced"
            self.data, self.targets = torch.from_numpy(pixels(3, 28, 28, seed=int(train))), torch.tensor([0, 46, 11])

    monkeypatch.setattr(torchvision.datasets, "SVHN", House)
    monkeypatch.setattr(torchvision.datasets, "EMNIST", Letters)
    houses = svhn.load(tmp_path, "torchvision", False, 1.0, None)
    assert np.array_equal(houses.test_images.numpy(), pixels(4, 3, 32, 32, seed=4))
    assert houses.train_labels.tolist() == [0, 9, 3, 3]
    letters = emnist.load(tmp_path, "balanced", "torchvision", False, 1.0, None)
    assert np.array_equal(letters.train_images[0, 0].numpy(), pixels(3, 28, 28, seed=1)[0].T)
    assert [letters.class_names[label] for label in letters.train_labels] == ["0", "t", "B"]
    with pytest.raises(ConfigurationError, match=r"dataset.split must be one of byclass, balanced, digits, got 'all'"):
        emnist.load(tmp_path, "all", "torchvision", False, 1.0, None)


def test_writers_and_plain_sets(tmp_path):
    for split, writers in (("train", ["f1", "f0", "f1"]), ("test", ["f0", "f9", "f1"])):
        images = [png(image) for image in pixels(3, 8, 8)]
        path = tmp_path / f"{split}-00000-of-00001.parquet"
        write_shard(path, images, [0, 1, 1], label_column="character", writer_id=writers)
    writers = femnist.load(tmp_path, "character", "writer_id", 1.0, None)
    assert (writers.client_ids.tolist(), writers.test_client_ids.tolist()) == ([1, 0, 1], [0, -1, 1])
    plain = write_parquet_set(tmp_path / "plain", (pixels(4, 8, 8), [0, 1] * 2), (pixels(2, 8, 8), [0, 1]))
    assert [module.load(plain, 1.0, None).name for module in (usps, cinic10)] == ["usps", "cinic10"]


def faces(folder, lists, **settings):
    for split in ("train", "test"):
        images = [png(image) for image in pixels(8, 8, 8, 3)]
        path = folder / f"{split}-00000-of-00001.parquet"
        write_shard(path, images, [0, 1] * 4, label_column="smile", head_pose=[2, 0, 1, 2] * 2, landmarks=lists)
    return mtfl.load(folder, ["smile", "head_pose"], None, 1.0, None, **{"points": None, **settings})


def test_faces_have_several_tasks(tmp_path):
    points = [[row / 10, 0.5, 0.25, 0.75] for row in range(8)]
    dataset = faces(tmp_path, points)
    assert dataset.train_targets[:4].tolist() == [[0, 2], [1, 0], [0, 1], [1, 2]]
    assert dataset.task.widths == [2, 3]
    with pytest.raises(ConfigurationError, match=r"dataset.tasks must name two columns at least, each once, got"):
        mtfl.load(tmp_path, ["smile"], None, 1.0, None, None)
    whole = faces(tmp_path, points, points="landmarks")
    assert whole.task.widths == [2, 3, 4]
    torch.testing.assert_close(whole.train_targets[3], torch.tensor([1.0, 2, 0.3, 0.5, 0.25, 0.75]))


def test_faces_with_a_task_a_client(tmp_path):
    points = [[row / 10, 0.5, 0.25, 0.75] for row in range(8)]
    dealt = faces(tmp_path, points, points="landmarks", clients_per_task=1, task_shares=[1, 1, 2])
    assert torch.bincount(dealt.client_ids).tolist() == [2, 2, 4]
    own = dealt.train_targets[dealt.client_ids == 2]
    assert (own[:, :2] == PADDING).all()
    assert sorted(own[:, 2].tolist()) == pytest.approx((torch.nonzero(dealt.client_ids == 2)[:, 0] / 10).tolist())
    assert (dealt.train_targets[dealt.client_ids == 1][:, 2:] == PADDING).all()
    assert set(dealt.train_strata[dealt.client_ids == 2].tolist()) == {5}


def test_mistakes_with_points(tmp_path):
    with pytest.raises(DataError, match=r"has lists of \[3, 4\] numbers, expected one even length"):
        faces(tmp_path, [[0.1] * 4] * 7 + [[0.1] * 3], points="landmarks")
    with pytest.raises(DataError, match=r"'smile' holds int64, expected lists of numbers; type dataset.points="):
        mtfl.load(tmp_path, ["smile", "head_pose"], None, 1.0, None, points="smile")
    with pytest.raises(ConfigurationError, match=r"dataset.augmentation moves pictures and not their points"):
        mtfl.load(tmp_path, ["smile", "head_pose"], None, 1.0, lambda images, seed: images, points="landmarks")
