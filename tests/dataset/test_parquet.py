import io
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fedgh.core.errors import ConfigurationError, DataError
from fedgh.dataset import parquet
from fedgh.dataset.parquet_source import read_splits

from .fixtures import pixels, png, write_parquet_set, write_shard

TRAIN, TEST = pixels(6, 5, 5, 3), pixels(3, 5, 5, 3, seed=1)


def load(root, **changes):
    settings = {
        "name": None,
        "test_split": None,
        "label_column": None,
        "image_size": None,
        "mean": None,
        "std": None,
        "train_fraction": 1.0,
        "augmentation": None,
    }
    return parquet.load(root=root, **(settings | changes))


@pytest.fixture
def folder(tmp_path):
    return write_parquet_set(tmp_path / "toys", (TRAIN, [0, 1, 2, 0, 1, 2]), (TEST, [2, 1, 0]), ["a", "b", "c"])


def nchw(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def test_pixels_labels_names_and_statistics(folder):
    dataset = load(folder)
    assert torch.equal(dataset.train_images, nchw(TRAIN))
    assert torch.equal(dataset.test_images, nchw(TEST))
    assert dataset.train_labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.test_labels.tolist() == [2, 1, 0]
    assert dataset.class_names == ("a", "b", "c")
    assert dataset.name == "toys"
    assert dataset.mean == pytest.approx((TRAIN / 255).mean((0, 1, 2)))
    assert dataset.std == pytest.approx((TRAIN / 255).std((0, 1, 2)))


def test_settings_win_over_what_is_computed(folder):
    dataset = load(folder, name="mine", mean=[0.5] * 3, std=[0.25] * 3, train_fraction=0.5)
    assert (dataset.name, dataset.mean, dataset.std) == ("mine", (0.5,) * 3, (0.25,) * 3)
    assert sorted(dataset.train_labels.tolist()) == [0, 1, 2]
    # Statistics are of the whole train split, whatever fraction is kept.
    assert load(folder, train_fraction=0.5).mean == load(folder).mean


def test_shards_are_joined_in_order(tmp_path):
    for number in (1, 0, 2):
        images = [png(image) for image in TRAIN[2 * number : 2 * number + 2]]
        write_shard(tmp_path / f"train-{number:05d}-of-00003.parquet", images, [0, 1])
    write_shard(tmp_path / "validation-00000-of-00001.parquet", [png(i) for i in TEST], [0, 1, 1])
    dataset = load(tmp_path)
    assert torch.equal(dataset.train_images, nchw(TRAIN))
    assert dataset.class_names == ("0", "1")


def test_test_split_prefers_test_then_valid_then_validation_and_can_be_chosen(folder):
    for split, count in (("validation", 1), ("valid", 2)):
        images = [png(image) for image in TEST[:count]]
        write_shard(folder / f"{split}-00000-of-00001.parquet", images, [0] * count, ["a", "b", "c"])
    assert len(load(folder).test_labels) == 3
    assert len(load(folder, test_split="validation").test_labels) == 1
    (folder / "test-00000-of-00001.parquet").unlink()
    assert len(load(folder).test_labels) == 2


def test_grey_stays_grey_and_one_colour_image_makes_all_rgb(tmp_path):
    grey = pixels(4, 5, 5)
    write_parquet_set(tmp_path / "grey", (grey, [0, 1, 0, 1]), (grey[:2], [0, 1]))
    assert torch.equal(load(tmp_path / "grey").train_images[:, 0], torch.from_numpy(grey))
    images = [png(grey[0]), png(TRAIN[0]), png(grey[1], "1"), png(TRAIN[1], "P"), png(TRAIN[2], "RGBA")]
    write_shard(tmp_path / "mixed" / "train-00000-of-00001.parquet", images, [0, 1, 0, 1, 1])
    write_shard(tmp_path / "mixed" / "test-00000-of-00001.parquet", [png(grey[3])], [0])
    mixed = load(tmp_path / "mixed")
    assert mixed.image_shape == (3, 5, 5)
    assert torch.equal(mixed.train_images[0], torch.from_numpy(grey[0]).expand(3, 5, 5))
    assert torch.equal(mixed.train_images[1], nchw(TRAIN[:1])[0])
    assert torch.equal(mixed.train_images[4], nchw(TRAIN[2:3])[0])
    assert torch.equal(mixed.test_images[0], torch.from_numpy(grey[3]).expand(3, 5, 5))


def test_img_column_fine_label_and_narrow_integers(tmp_path):
    columns = {"image_column": "img", "label_column": "fine_label", "label_type": pa.uint8()}
    write_parquet_set(tmp_path, (TRAIN, [0, 1, 2, 0, 1, 2]), (TEST, [2, 1, 0]), list("xyz"), **columns)
    dataset = load(tmp_path)
    assert dataset.class_names == ("x", "y", "z")
    assert dataset.train_labels.dtype == torch.int64


def test_another_label_column_can_be_chosen(tmp_path):
    coarse = {"label_column": "coarse"}
    write_parquet_set(tmp_path, (TRAIN, [0, 1, 1, 0, 1, 1]), (TEST, [1, 1, 0]), **coarse)
    assert load(tmp_path, label_column="coarse").num_classes == 2


def test_images_of_several_sizes_need_image_size(folder):
    images = [png(image) for image in TRAIN[:5]] + [png(pixels(1, 7, 6, 3)[0])]
    write_shard(folder / "train-00000-of-00001.parquet", images, [0, 1, 2, 0, 1, 2], ["a", "b", "c"])
    with pytest.raises(DataError, match=r"row 5: image of 7x6 pixels .* has 5x5 .*dataset.image_size=5 to resize"):
        load(folder)
    assert load(folder, image_size=4).image_shape == (3, 4, 4)
    with pytest.raises(ConfigurationError, match=r"dataset.image_size must be null or at least 1 pixel, got 0; try 32"):
        load(folder, image_size=0)


def test_missing_folder(tmp_path):
    with pytest.raises(
        DataError, match=r"nowhere is not a folder; looked there for train-\*.* Type dataset.root=<folder"
    ):
        load(tmp_path / "nowhere")


def test_folder_without_parquet(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(
        DataError, match=r"no train-\*.parquet, train.parquet or .* in .*found notes.txt; type dataset."
    ):
        load(tmp_path)


def test_missing_test_split(folder):
    (folder / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"no test-\*.parquet, valid-\*.parquet or .*found train-00000.*test_split="):
        load(folder)
    with pytest.raises(DataError, match=r"no holdout-\*.parquet, holdout.parquet or "):
        load(folder, test_split="holdout")


def test_missing_shard_is_named(folder):
    (folder / "train-00000-of-00001.parquet").rename(folder / "train-00000-of-00003.parquet")
    with pytest.raises(DataError, match=r"lacks train-00001-of-00003.parquet \(2 of 3 shards missing.*copy all 3"):
        load(folder)


def test_shards_of_two_copies_are_refused(folder):
    images = [png(image) for image in TRAIN[:2]]
    write_shard(folder / "train-00000-of-00001-abcdef.parquet", images, [0, 1], ["a", "b", "c"])
    with pytest.raises(DataError, match=r"holds 2 files for 1 shards of the train split .*remove those"):
        load(folder)


def test_truncated_file(folder):
    path = folder / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"train-00000.*cannot be read as Parquet .*300 bytes and may be half copied"):
        load(folder)


def test_damaged_pages(folder):
    path = folder / "train-00000-of-00001.parquet"
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train-00000.*cannot be read as Parquet"):
        load(folder)


@pytest.mark.parametrize("spoil", [lambda png: png[: len(png) // 2], lambda png: b"not an image", lambda png: b""])
def test_corrupt_image_is_named(folder, spoil):
    images = [png(image) for image in TRAIN]
    images[4] = spoil(images[4])
    write_shard(folder / "train-00000-of-00001.parquet", images, [0, 1, 2, 0, 1, 2], ["a", "b", "c"])
    with pytest.raises(
        DataError, match=r"train-00000-of-00001.parquet, row 4: image cannot be decoded .*copy the file"
    ):
        load(folder)


def test_the_row_counts_within_its_shard(tmp_path):
    write_shard(tmp_path / "train-00000-of-00002.parquet", [png(image) for image in TRAIN], [0] * 6)
    write_shard(tmp_path / "train-00001-of-00002.parquet", [png(TRAIN[0]), b"x"], [0, 0])
    write_shard(tmp_path / "test-00000-of-00001.parquet", [png(TEST[0])], [0])
    with pytest.raises(DataError, match=r"train-00001-of-00002.parquet, row 1: .*1 bytes of no known image format"):
        load(tmp_path)


def test_a_fraction_keeps_naming_the_original_row(folder):
    train, _ = read_splits(folder, None, ("label",))
    assert train.take(np.array([1, 4])).where(1).endswith("train-00000-of-00001.parquet, row 4")


def test_sixteen_bit_images_are_refused(folder):
    buffer = io.BytesIO()
    Image.fromarray(np.full((5, 5), 40_000, dtype=np.uint16)).save(buffer, "PNG")
    write_shard(folder / "test-00000-of-00001.parquet", [buffer.getvalue()], [0], ["a", "b", "c"])
    with pytest.raises(DataError, match=r"row 0: image of mode I;16 has more than 8 bits a channel.*convert"):
        load(folder)


def test_null_image_and_null_label_are_named(folder):
    images, labels = [png(image) for image in TRAIN], [0, 1, 2, 0, 1, 2]
    path = folder / "train-00000-of-00001.parquet"
    write_shard(path, [*images[:3], None, *images[4:]], labels, ["a", "b", "c"])
    with pytest.raises(DataError, match=r"row 3: column 'image' is null, expected bytes of a JPEG or PNG; export"):
        load(folder)
    write_shard(path, images, [0, 1, None, 0, 1, 2], ["a", "b", "c"])
    with pytest.raises(DataError, match=r"row 2: column 'label' is null, expected a label; remove the row"):
        load(folder)


@pytest.mark.parametrize("label", [3, -1])
def test_label_out_of_range_is_named(folder, label):
    images = [png(image) for image in TEST]
    write_shard(folder / "test-00000-of-00001.parquet", images, [0, label, 1], ["a", "b", "c"])
    with pytest.raises(
        DataError, match=rf"test-0.*, row 1: label {label} is outside the classes 0 to 2 \(1 such.*type"
    ):
        load(folder)


def test_wrong_columns(folder):
    path, images = folder / "train-00000-of-00001.parquet", [png(image) for image in TRAIN]
    write_shard(path, images, [0] * 6, image_column="photo")
    with pytest.raises(DataError, match=r"one image column named 'image' or 'img', found 0 .*\['photo', 'label'\]"):
        load(folder)
    write_shard(path, images, [0] * 6, label_column="target")
    with pytest.raises(
        DataError, match=r"'label' or 'fine_label', found \[\]; the integer columns are \['target'\]. Type"
    ):
        load(folder)
    write_shard(path, images, [0] * 6, fine_label=[0] * 6)
    with pytest.raises(DataError, match=r"found \['label', 'fine_label'\].*dataset.label_column=<one of them>"):
        load(folder)
    write_shard(path, images, ["cat"] * 6, label_type=pa.string())
    with pytest.raises(DataError, match=r"label column 'label' is string, expected integers from 0; type"):
        load(folder)
    pq.write_table(pa.table({"image": images, "label": [0] * 6}), path)
    with pytest.raises(DataError, match=r"column 'image' is binary, expected a struct<bytes, path>.*export"):
        load(folder)


def test_class_names_must_agree_and_be_readable(folder):
    write_shard(folder / "test-00000-of-00001.parquet", [png(TEST[0])], [0], ["b", "a", "c"])
    with pytest.raises(DataError, match=r"name different classes \(a, b, c against b, a, c\), expected the same"):
        load(folder)
    table = pq.read_table(folder / "test-00000-of-00001.parquet").replace_schema_metadata({"huggingface": "{broken"})
    pq.write_table(table, folder / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"'huggingface' metadata does not describe column 'label' .*drop the metadata"):
        load(folder)


def test_no_rows(folder):
    write_shard(folder / "train-00000-of-00001.parquet", [], [], ["a", "b", "c"])
    with pytest.raises(DataError, match=r"the train split in .* has no rows, expected at least one; copy"):
        load(folder)


def claiming(width, height, padding=0):
    """A PNG whose head speaks of more pixels than it has; who begins to decode it says something else."""
    content = png(TRAIN[0])
    return content[:16] + struct.pack(">II", width, height) + content[24:] + bytes(padding)


@pytest.mark.parametrize(
    ("sizes", "padding", "message"),
    [
        ([(13_000, 13_000)] * 24, 0, r"row 0: image of 13000x13000 pixels .*more than 89,478,485 in all; make"),
        (
            [(9_000, 9_000)] * 24,
            0,
            r"row 6: the images up to here have 567,000,000 pixels in [\d,]+ bytes, more",
        ),
        ([(9_000, 9_000)] * 6, 0, r"row 0: image cannot be decoded"),
        ([(9_000, 9_000)] * 7, 1_000_000, r"row 0: image cannot be decoded"),  # large files may hold large pictures
    ],
)
@pytest.mark.parametrize("image_size", [None, 8])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_sizes_are_looked_at_before_pixels_are_decoded(folder, sizes, padding, message, image_size):
    """One by one and in all: a few kilobytes can ask for the memory of the machine."""
    images = [claiming(*size, padding) for size in sizes]
    labels = [row % 3 for row in range(len(images))]
    write_shard(folder / "train-00000-of-00001.parquet", images, labels, ["a", "b", "c"])
    with pytest.raises(DataError, match=message):
        load(folder, image_size=image_size)


@pytest.mark.parametrize(
    "layout",
    ["{}.parquet", "{}/0000.parquet", "data/{}-00000-of-00001.parquet", "data/{}.parquet", "data/{}/part-1.parquet"],
)
def test_other_layouts_of_the_same_files(folder, tmp_path, layout):
    expected = load(folder)
    for split in ("train", "test"):
        target = tmp_path / "other" / layout.format(split)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((folder / f"{split}-00000-of-00001.parquet").read_bytes())
    assert load(tmp_path / "other").fingerprint == expected.fingerprint


def test_numbered_shards_win_over_a_single_file(folder):
    expected = load(folder)
    (folder / "train.parquet").write_bytes(b"another export")
    assert load(folder).fingerprint == expected.fingerprint


def test_shards_that_name_classes_differently_are_refused(tmp_path):
    images = [png(image) for image in pixels(2, 4, 4)]
    for index, names in enumerate((["cat", "dog"], ["dog", "cat"])):
        write_shard(tmp_path / f"train-0000{index}-of-00002.parquet", images, [0, 1], names)
    write_shard(tmp_path / "test-00000-of-00001.parquet", images, [0, 1], ["cat", "dog"])
    with pytest.raises(DataError, match=r"train-00000-of-00002.parquet and .*train-00001-of-00002.parquet name differ"):
        load(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_says(tmp_path, orientation):
    (array,) = pixels(1, 4, 4, 3)
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(array).save(buffer, "PNG", exif=exif)
    for split in ("train", "test"):
        write_shard(tmp_path / f"{split}.parquet", [buffer.getvalue()] * 2, [0, 1])
    turned = {  # by the standard: what the top and the left of the stored image are
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.transpose(1, 0, 2),
        6: array.transpose(1, 0, 2)[:, ::-1],
        7: array.transpose(1, 0, 2)[::-1, ::-1],
        8: array.transpose(1, 0, 2)[::-1],
    }[orientation]
    assert np.array_equal(load(tmp_path).train_images[0].permute(1, 2, 0).numpy(), turned)
