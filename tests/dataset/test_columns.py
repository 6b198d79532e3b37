"""Texts, tables and natural clients from Parquet files made here; the bundled sets beyond one label."""

import json
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fedgh.core.errors import ConfigurationError, DataError
from fedgh.dataset import diabetes, digits, digits_two, next_character, parquet, parquet_table, parquet_text
from fedgh.task.base import PADDING
from tests.dataset.fixtures import pixels, write_parquet_set


def write(folder, split, names=None, shard="00000-of-00001", **columns):
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / f"{split}-{shard}.parquet")
    return folder


def text_set(folder, **settings):
    texts = ["Good day, sir!", "bad", "good good"]
    write(folder, "train", ["no", "yes"], text=texts, label=[1, 0, 1], who=["b", "a", "b"], number=[0.5, 1.0, 2.0])
    write(folder, "test", ["no", "yes"], text=["day", ""], label=[1, 0], who=["c", "a"], number=[0.5, 1.0])
    columns = {"text_column": "text", "label_column": "label", "client_column": None}
    return parquet_text.load(
        **{"root": folder, "name": None, "test_split": None, "num_tokens": 1000, "length": 2, "train_fraction": 1.0}
        | columns
        | settings
    )


def token(word):
    return 1 + crc32(word.encode()) % 999


def test_words_become_hashed_ids_cut_and_filled_up(tmp_path):
    dataset = text_set(tmp_path / "mail")
    assert dataset.name == "mail"
    assert dataset.train_inputs.tolist() == [
        [token("good"), token("day")],
        [token("bad"), 0],
        [token("good"), token("good")],
    ]
    assert dataset.test_inputs.tolist() == [[token("day"), 0], [0, 0]]
    assert dataset.train_targets.tolist() == [1, 0, 1]
    assert dataset.task.strata_names == ("no", "yes")
    assert (dataset.num_tokens, dataset.input_shape, dataset.client_ids) == (1000, (2,), None)


def test_natural_clients_are_numbered_by_name_and_unknown_ones_are_nobody(tmp_path):
    dataset = text_set(tmp_path / "mail", client_column="who")
    assert dataset.client_ids.tolist() == [1, 0, 1]
    assert dataset.test_client_ids.tolist() == [-1, 0]
    assert text_set(tmp_path / "mail").fingerprint != dataset.fingerprint


def test_next_characters_are_each_predicted_once(tmp_path):
    folder = write(tmp_path / "play", "train", text=["abcab", "b", ""], role=["x", "y", "x"])
    write(folder, "test", text=["az"], role=["y"])
    dataset = next_character.load(folder, None, None, "text", "role", length=3, train_fraction=1.0)
    a, b, c, start, other = 2, 3, 4, 0, 1
    assert dataset.task.strata_names == ("<start>", "<other>", "a", "b", "c")
    assert dataset.train_inputs.tolist() == [[start, a, b], [start, a, start], [start, start, start]]
    assert dataset.train_targets.tolist() == [[a, b, c], [a, b, PADDING], [b, PADDING, PADDING]]
    assert dataset.client_ids.tolist() == [0, 0, 1]
    assert dataset.test_targets.tolist() == [[a, other, PADDING]]
    assert dataset.test_client_ids.tolist() == [1]
    assert dataset.train_strata.tolist() == [a, a, b]


def table_set(folder, **settings):
    write(folder, "train", age=[10, 20, 30], fixed=[1.0, 1.0, 1.0], label=[0, 1, 1], price=[1.0, 2.0, 6.0])
    write(folder, "test", age=[20], fixed=[2.0], label=[0], price=[3.0])
    return parquet_table.load(
        **{"root": folder, "name": "t", "test_split": None, "columns": ["age", "fixed"], "label_column": "label"}
        | {"client_column": None, "task": "classification", "num_strata": 2, "train_fraction": 1.0}
        | settings
    )


def test_a_table_is_standardized_by_its_train_split(tmp_path):
    dataset = table_set(tmp_path / "t")
    step = np.sqrt(1.5)
    torch.testing.assert_close(dataset.train_inputs, torch.tensor([[-step, 0.0], [0.0, 0.0], [step, 0.0]]).float())
    assert dataset.test_inputs.tolist() == [[0.0, 1.0]]
    assert dataset.train_targets.tolist() == [0, 1, 1]
    prices = table_set(tmp_path / "t", label_column="price", task="regression")
    torch.testing.assert_close(prices.train_targets, torch.tensor([-2.0, -1.0, 3.0]) / np.sqrt(14 / 3))
    assert prices.task.variance == pytest.approx(1.0)
    assert torch.bincount(prices.train_strata).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("kind", "settings", "error", "text"),
    [
        (
            text_set,
            {"text_column": "words"},
            DataError,
            r"no column 'words'; the columns are text, label, who, number. Type",
        ),
        (text_set, {"text_column": "label"}, ConfigurationError, r"column 'label' is named twice"),
        (text_set, {"text_column": "number"}, DataError, r"column 'number' holds double, expected texts"),
        (text_set, {"label_column": "who"}, DataError, r"column 'who' holds string, expected whole numbers"),
        (text_set, {"num_tokens": 1}, ConfigurationError, r"dataset.num_tokens must be at least 2"),
        (text_set, {"test_split": "dev"}, DataError, r"no dev-\*.parquet, dev.parquet or"),
        (table_set, {"columns": []}, ConfigurationError, r"dataset.columns must name the columns"),
        (table_set, {"columns": ["label"]}, ConfigurationError, r"without 'label'"),
        (table_set, {"task": "ranking"}, ConfigurationError, r"dataset.task must be classification or regression"),
        (table_set, {"label_column": "price"}, DataError, r"column 'price' holds double, expected whole numbers"),
    ],
)
def test_wrong_settings_are_named(tmp_path, kind, settings, error, text):
    with pytest.raises(error, match=text):
        kind(tmp_path / "set", **settings)


def test_null_and_shards_that_disagree_are_named(tmp_path):
    folder = write(tmp_path / "set", "train", text=["a", None])
    write(folder, "test", text=["a"])
    with pytest.raises(DataError, match=r"row 1: column 'text' is null"):
        next_character.load(folder, None, None, "text", None, length=3, train_fraction=1.0)
    other = tmp_path / "other"
    write(other, "train", ["no", "yes"], "00000-of-00002", text=["a"], label=[0])
    write(other, "train", ["yes", "no"], "00001-of-00002", text=["a"], label=[0])
    write(other, "test", ["no", "yes"], text=["a"], label=[0])
    both = r"00000-of-00002.parquet and .*00001-of-00002.parquet name different classes in column 'label' \(no, yes "
    with pytest.raises(DataError, match=both):
        parquet_text.load(other, None, None, "text", "label", None, num_tokens=9, length=2, train_fraction=1.0)


def test_pictures_may_have_domains(tmp_path):
    folder, images = tmp_path / "set", pixels(4, 5, 5)
    write_parquet_set(folder, (images, [0, 1, 0, 1]), (images[:2], [1, 0]), names=["a", "b"])
    for split, count in (("train", 4), ("test", 2)):
        path = folder / f"{split}-00000-of-00001.parquet"
        table = pq.read_table(path)
        pq.write_table(table.append_column("style", pa.array(["sketch", "art", "art", "art"][:count])), path)
    settings = dict.fromkeys(("name", "test_split", "label_column", "image_size", "mean", "std", "augmentation"))
    dataset = parquet.load(folder, **settings, train_fraction=1.0, domain_column="style")
    assert dataset.domains.tolist() == [1, 0, 0, 0]
    assert dataset.test_domains.tolist() == [1, 0]
    assert dataset.client_ids is None


def test_the_bundled_sets():
    two, one = digits_two.load(1.0, None), digits.load(1.0, None)
    assert torch.equal(two.train_targets[:, 0], one.train_labels)
    assert torch.equal(two.test_targets[:, 1], one.test_labels % 2)
    assert two.task.num_outputs == 12
    assert torch.equal(two.train_strata, one.train_labels)
    table = diabetes.load(num_strata=4, train_fraction=1.0)
    assert (len(table.train_targets), len(table.test_targets)) == (354, 88)
    assert table.task.variance == pytest.approx(1.0, abs=1e-5)
    assert torch.bincount(table.train_strata).min() > 80
    assert table.train_inputs.mean(0).abs().max() < 1e-5
    assert torch.equal(diabetes.load(2, 1.0).test_inputs, table.test_inputs)
