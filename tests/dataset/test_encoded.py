"""Images through a frozen encoder, once: what is kept, when it is made anew, and whose file it is."""

import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedgh.core.errors import ConfigurationError, DataError
from fedgh.dataset import diabetes, digits, digits_two, encoded, parquet
from fedgh.dataset.encoder import Encoder, initial, open_encoder, save_encoder, train_encoder
from fedgh.model.conv6 import Conv6
from fedgh.task.multi_task import MultiTask
from tests.dataset.fixtures import pixels, png, write_parquet_set, write_shard

SETTINGS = {"channels": [4, 4, 4, 4, 4, 6], "norm": "batch"}
FEW = {"train_fraction": 0.05, "augmentation": None}


@pytest.fixture(scope="module")
def small():
    return digits.load(**FEW)


@pytest.fixture(scope="module")
def file(tmp_path_factory, small):
    model = initial(lambda: Conv6(small.input_shape, small.num_classes, **SETTINGS), seed=1)
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    save_encoder(path, model.eval(), SETTINGS, small, command="none")
    return path


def load(file, cache, images=None, standardize=False, train_fraction=1.0):
    return encoded.load(images or partial(digits.load, **FEW), file, cache, standardize, train_fraction)


def test_features_are_the_networks_and_everything_else_stays(file, small, tmp_path):
    dataset = load(file, tmp_path)
    weights = load_file(file)
    model = Conv6(small.input_shape, 10, **SETTINGS).eval()
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    with torch.no_grad():
        expected = model.features(small.normalize(small.test_images))
    torch.testing.assert_close(dataset.test_inputs, expected, rtol=2e-3, atol=1e-3)  # kept in half precision
    assert dataset.train_inputs.shape == (len(small.train_images), 6)
    assert torch.equal(dataset.train_targets, small.train_labels)
    assert dataset.task.class_names == small.class_names
    assert dataset.name == "digits_encoded"


def test_standardized_by_the_train_split_and_thinned_after(file, small, tmp_path):
    plain, scaled = load(file, tmp_path), load(file, tmp_path, standardize=True)
    mean, std = plain.train_inputs.double().mean(0), plain.train_inputs.double().std(0, correction=0)
    expected = ((plain.test_inputs.double() - mean) / std.where(std > 0, 1.0)).float()
    torch.testing.assert_close(scaled.test_inputs, expected, rtol=1e-4, atol=1e-4)
    assert len(load(file, tmp_path, train_fraction=0.5).train_inputs) < len(small.train_images)


def test_encoded_once_and_anew_when_data_or_encoder_change(file, small, tmp_path, monkeypatch):
    calls, real = [], Encoder.__call__
    monkeypatch.setattr(Encoder, "__call__", lambda self, images: calls.append(len(images)) or real(self, images))
    root, cache = tmp_path / "set", tmp_path / "cache"
    train, test = (pixels(6, 8, 8), [0, 1] * 3), (pixels(4, 8, 8, seed=1), [0, 1] * 2)
    write_parquet_set(root, train, test)
    rest = dict.fromkeys(("name", "test_split", "label_column", "image_size", "mean", "std", "augmentation"))
    images = partial(parquet.load, root=str(root), train_fraction=1.0, **rest)
    first = load(file, cache, images)
    assert calls == [6, 4]
    with monkeypatch.context() as patch:
        patch.setattr(parquet, "read_splits", None)  # not even the images are read again
        assert load(file, cache, images).fingerprint == first.fingerprint
    moved = tmp_path / "moved"
    root.rename(moved)
    load(file, cache, partial(parquet.load, root=str(moved), train_fraction=1.0, **rest))
    assert calls == [6, 4], "the same files elsewhere are the same set"
    write_parquet_set(moved, (pixels(6, 8, 8, seed=9), [0, 1] * 3), test)
    load(file, cache, partial(parquet.load, root=str(moved), train_fraction=1.0, **rest))
    other = tmp_path / "other.safetensors"
    model = initial(lambda: Conv6(small.input_shape, 10, **SETTINGS), seed=2)
    save_encoder(other, model.eval(), SETTINGS, small)
    load(other, cache, partial(parquet.load, root=str(moved), train_fraction=1.0, **rest))
    assert calls == [6, 4] * 3
    assert len(list(cache.iterdir())) == 3


def test_several_targets_domains_and_clients_come_along(file, tmp_path):
    dataset = load(file, tmp_path, partial(digits_two.load, **FEW))
    assert isinstance(dataset.task, MultiTask)
    assert dataset.train_targets.shape[1] == 2
    domains = {"train": ["photo", "sketch", "photo"], "test": ["sketch", "photo", "photo"]}
    for split, names in domains.items():
        images = [png(image) for image in pixels(3, 8, 8)]
        write_shard(tmp_path / "set" / f"{split}-00000-of-00001.parquet", images, [0, 1, 1], domain=names)
    rest = dict.fromkeys(("name", "test_split", "label_column", "image_size", "mean", "std", "augmentation"))
    settings = {"root": str(tmp_path / "set"), "train_fraction": 1.0, "domain_column": "domain", **rest}
    dataset = load(file, tmp_path / "cache", partial(parquet.load, **settings))
    assert dataset.domains.tolist() == [0, 1, 0]
    assert dataset.test_domains.tolist() == [1, 0, 0]


def test_images_of_another_size_and_grey_ones_fit(file):
    encoder = open_encoder(str(file))
    images = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)
    assert encoder(images).shape == (3, 6)
    assert encoder(images[:1].expand(1, 3, 16, 16)).shape == (1, 6)  # colour through a grey encoder
    torch.testing.assert_close(encoder(images[:1].expand(1, 3, 16, 16)), encoder(images[:1]), rtol=2e-3, atol=1e-3)


def test_notes_do_not_change_the_hash_and_weights_do(small, tmp_path):
    model = initial(lambda: Conv6(small.input_shape, 10, **SETTINGS), seed=1)
    first, noted = (save_encoder(tmp_path / "a.safetensors", model, SETTINGS, small, note=word) for word in "xy")
    assert first == noted == open_encoder(str(tmp_path / "a.safetensors")).hash
    with torch.no_grad():
        model.head.bias += 1
    assert save_encoder(tmp_path / "a.safetensors", model, SETTINGS, small) != first


@pytest.mark.parametrize("bf16", [False, True])
def test_training_learns_and_repeats(bf16):
    dataset = digits.load(train_fraction=0.2, augmentation=None)

    def trained(seed):
        model = initial(lambda: Conv6(dataset.input_shape, 10, [16] * 6, "batch"), seed)
        told = []
        settings = {"epochs": 5, "batch_size": 16, "lr": 0.05, "weight_decay": 0.0, "bf16": bf16, "seed": seed}
        train_encoder(model, dataset, **settings, report=lambda *line: told.append(line))
        return torch.cat([p.detach().flatten() for p in model.parameters()]), told

    (first, told), (again, _), (other, _) = trained(1), trained(1), trained(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert [line[0] for line in told] == [0, 1, 2, 3, 4]
    assert told[-1][2] > told[0][2] + 0.2


def test_what_cannot_be_encoded_is_one_line(file, tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match=r"dataset.encoder is not set; train one by fedgh-encode"):
        load(None, tmp_path)
    with pytest.raises(ConfigurationError, match="needs images with labels, and dataset diabetes has none"):
        load(file, tmp_path, partial(diabetes.load, num_strata=3, train_fraction=1.0))
    with pytest.raises(DataError, match="cannot be read as an encoder"):
        load(tmp_path / "missing.safetensors", tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(DataError, match="is no encoder of fedgh-encode"):
        load(tmp_path / "foreign.safetensors", tmp_path)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigurationError, match=r"needs timm: pip install 'fedgh\[timm\]'"):
        load("timm:resnet18", tmp_path)


def test_a_damaged_cache_says_what_to_do(file, tmp_path):
    load(file, tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(DataError, match="remove it to have the images encoded again"):
        load(file, tmp_path)


def test_timm_gives_features(monkeypatch):
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'fedgh[timm]'")
    real, seen = timm.create_model, []

    def untrained(name, pretrained, **settings):  # its weights are not to be fetched in a test
        seen.append(pretrained)
        return real(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", untrained)
    encoder = open_encoder("timm:test_resnet")
    assert seen == [True]
    assert (encoder.channels, encoder.size) == (3, 160)
    features = encoder(torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8))
    assert features.shape == (2, 96)
    with pytest.raises(ConfigurationError, match=r"dataset.encoder=timm:no_such: timm cannot give it here"):
        open_encoder("timm:no_such")
    with pytest.raises(ConfigurationError, match="must be the plain name of a model of timm"):
        open_encoder("timm:hf-hub:somebody/model")
