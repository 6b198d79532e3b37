"""CIFAR-10, CIFAR-100, MNIST and Fashion-MNIST from both sources, with tiny files in the official formats."""

import shutil

import numpy as np
import pytest
import torch
import torchvision.datasets as reference

from fedgh.core.errors import ConfigurationError, DataError
from fedgh.dataset import cifar10, cifar100, fashion_mnist, mnist
from fedgh.dataset.base import take_fraction

from .fixtures import pixels, write_cifar, write_idx, write_parquet_set

CIFAR = {
    "cifar10": (cifar10, reference.CIFAR10, "labels", 10),
    "cifar100": (cifar100, reference.CIFAR100, "fine_labels", 100),
}
IDX = {"mnist": (mnist, "MNIST"), "fashion_mnist": (fashion_mnist, "FashionMNIST")}
COLOR = (pixels(20, 32, 32, 3), [i % 10 for i in range(20)]), (pixels(5, 32, 32, 3, seed=1), [0, 9, 8, 1, 2])
GREY = (pixels(20, 28, 28), [i % 10 for i in range(20)]), (pixels(5, 28, 28, seed=1), [0, 9, 8, 1, 2])


def load(module, root, source="torchvision", download=False, train_fraction=1.0, augmentation=None):
    return module.load(root, source, download, train_fraction, augmentation)


def assert_same(one, other):
    assert one.fingerprint == other.fingerprint
    assert (one.class_names, one.mean, one.std) == (other.class_names, other.mean, other.std)


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_is_the_same_from_both_sources(name, tmp_path, monkeypatch):
    module, reader, label_key, num_classes = CIFAR[name]
    write_cifar(tmp_path, monkeypatch, reader, *COLOR, label_key)
    columns = {"image_column": "img", "label_column": "fine_label" if name == "cifar100" else "label"}
    write_parquet_set(tmp_path / "hub", *COLOR, **columns)
    official, hub = load(module, tmp_path), load(module, tmp_path / "hub", "parquet")
    assert_same(official, hub)
    half = load(module, tmp_path, train_fraction=0.5)
    assert_same(half, load(module, tmp_path / "hub", "parquet", train_fraction=0.5))
    assert_same(half, take_fraction(official, 0.5))
    assert torch.equal(official.train_images, torch.from_numpy(COLOR[0][0]).permute(0, 3, 1, 2))
    assert official.test_labels.tolist() == COLOR[1][1]
    assert official.num_classes == num_classes
    assert official.train_images.is_contiguous()


@pytest.mark.parametrize("name", IDX)
def test_mnist_is_the_same_from_both_sources(name, tmp_path):
    module, folder = IDX[name]
    write_idx(tmp_path / folder / "raw", *GREY)
    write_parquet_set(tmp_path / "hub", *GREY, names=None)
    official, hub = load(module, tmp_path), load(module, tmp_path / "hub", "parquet")
    assert_same(official, hub)
    assert torch.equal(official.train_images[:, 0], torch.from_numpy(GREY[0][0]))
    assert official.class_names[0] == {"mnist": "0", "fashion_mnist": "T-shirt/top"}[name]


def test_class_names_are_torchvisions():
    assert fashion_mnist.FASHION_MNIST.class_names == tuple(reference.FashionMNIST.classes)
    assert [name[0] for name in reference.MNIST.classes] == list(mnist.MNIST.class_names)
    assert len(set(cifar100.CIFAR100.class_names)) == 100
    assert list(cifar100.CIFAR100.class_names) == sorted(cifar100.CIFAR100.class_names)


def test_published_statistics():
    assert np.round(np.multiply(cifar10.CIFAR10.mean, 255), 6).tolist() == [125.3, 123.0, 113.9]
    assert np.round(np.multiply(cifar10.CIFAR10.std, 255), 6).tolist() == [63.0, 62.1, 66.7]
    assert cifar100.CIFAR100.mean == (0.5071, 0.4865, 0.4409)
    assert (mnist.MNIST.mean, mnist.MNIST.std) == ((0.1307,), (0.3081,))


def test_fraction_and_augmentation_are_passed_on(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw", *GREY)

    def augmentation(images, generator):
        return images

    dataset = load(mnist, tmp_path, train_fraction=0.5, augmentation=augmentation)
    assert dataset.train_labels.bincount().tolist() == [1] * 10
    assert len(dataset.test_labels) == 5
    assert dataset.augmentation is augmentation


def test_missing_files_say_where_and_what_to_type(tmp_path):
    text = (
        r"cifar10: looked for torchvision's files in .*cifar-10-batches-py, which does not exist; .*"
        r"Type dataset.download=true to fetch them, dataset.root=<folder which holds cifar-10-batches-py>, "
        r"or dataset.source=parquet with dataset.root=<folder which directly holds train-\*.parquet>"
    )
    with pytest.raises(DataError, match=text):
        load(cifar10, tmp_path)


def test_half_copied_cifar(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch, reference.CIFAR10, *COLOR, "labels")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"which holds batches.meta, data_batch_1, .*half copied or damaged"):
        load(cifar10, tmp_path)


def test_damaged_cifar_fails_the_checksum(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch, reference.CIFAR10, *COLOR, "labels")
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"half copied or damaged .*corrupted"):
        load(cifar10, tmp_path)


@pytest.mark.parametrize("length", [3, 500])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte"])
def test_half_copied_mnist(tmp_path, file, length):
    raw = tmp_path / "MNIST" / "raw"
    write_idx(raw, *GREY)
    (raw / file).write_bytes((raw / file).read_bytes()[:length])
    with pytest.raises(
        DataError, match=r"mnist: looked for torchvision's files in .*raw, which holds t10k-images.*damaged"
    ):
        load(mnist, tmp_path)
    shutil.rmtree(raw)
    raw.mkdir()
    with pytest.raises(DataError, match=r"which holds nothing; they are missing"):
        load(mnist, tmp_path)


def test_source_and_download_are_checked(tmp_path):
    with pytest.raises(ConfigurationError, match=r"dataset.source must be torchvision or parquet, got 'hub'"):
        load(mnist, tmp_path, "hub")
    with pytest.raises(ConfigurationError, match=r"download=true works with dataset.source=torchvision only.*=false"):
        load(mnist, tmp_path, "parquet", download=True)


def test_a_download_without_a_network_does_not_advise_to_download(tmp_path, monkeypatch):
    def fail(self):
        raise OSError("Tried a mirror, got:\nNetwork is unreachable\n")

    monkeypatch.setattr(reference.CIFAR10, "download", fail)
    with pytest.raises(DataError, match=r"could not be fetched into .*got: Network is unreachable\)") as caught:
        load(cifar10, tmp_path, download=True)
    assert "dataset.download=true" not in str(caught.value)
    assert "type dataset.download=false" in str(caught.value)


@pytest.mark.parametrize("there", ["", "deeper", "deeper/MNIST"])
def test_a_download_that_fails_leaves_no_empty_folder(tmp_path, monkeypatch, there):
    def fail(*_, **__):
        raise OSError("no route to host")

    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(reference.mnist, "download_and_extract_archive", fail)
    with pytest.raises(DataError, match=r"could not be fetched"):
        load(mnist, tmp_path / "deeper", download=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_download_is_passed_to_torchvision_only_when_asked(tmp_path, monkeypatch):
    asked = []

    def fetch(self):
        asked.append(self.train)
        raise OSError("no network")

    monkeypatch.setattr(reference.CIFAR10, "download", fetch)
    with pytest.raises(DataError, match=r"which does not exist.*corrupted"):
        load(cifar10, tmp_path)
    assert not asked
    with pytest.raises(DataError, match=r"could not be fetched .*\(no network\)"):
        load(cifar10, tmp_path, download=True)
    assert asked == [True]


def test_another_set_is_refused(tmp_path):
    write_parquet_set(tmp_path / "grey", *GREY)
    with pytest.raises(DataError, match=r"are \(1, 28, 28\) .*expected \(3, 32, 32\); dataset.root points at another"):
        load(cifar10, tmp_path / "grey", "parquet")
    write_parquet_set(tmp_path / "few", *COLOR, names=list("abcdefghijk"))
    with pytest.raises(DataError, match=r"name 11 classes; expected the 10 published ones in their order \(airplane, "):
        load(cifar10, tmp_path / "few", "parquet")
    swapped = ["automobile", "airplane", *cifar10.CIFAR10.class_names[2:]]
    write_parquet_set(tmp_path / "swapped", *COLOR, names=swapped)
    with pytest.raises(DataError, match=r"name 10 classes, 'automobile' at another place; expected"):
        load(cifar10, tmp_path / "swapped", "parquet")
    write_parquet_set(tmp_path / "wide", COLOR[0], (COLOR[1][0], [0, 1, 10, 1, 1]))
    with pytest.raises(DataError, match=r"test-00000.*row 2: label 10 is outside the classes 0 to 9"):
        load(cifar10, tmp_path / "wide", "parquet")


def test_another_spelling_of_a_class_name_is_let_pass(tmp_path):
    names = ["T - shirt / top", *fashion_mnist.FASHION_MNIST.class_names[1:-1], "Boot"]
    write_parquet_set(tmp_path, *GREY, names=names)
    assert load(fashion_mnist, tmp_path, "parquet").class_names[0] == "T-shirt/top"
