"""Every setting of the leaderboard trains: a round of it, on a few made-up examples in the format of its data."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedgh import config
from fedgh.dataset import digits
from fedgh.dataset.encoder import initial, save_encoder
from fedgh.model.conv6 import Conv6
from tests.dataset.fixtures import pixels, png, write_parquet_set, write_shard

CHANNELS = {"channels": [4, 4, 4, 4, 4, 6], "norm": "batch"}
SETTINGS = ("encoded_cifar10", "sampled", "pacs_domains", "rotated_mnist", "newsgroups", "shakespeare", "cnn_mnist")
FEW = [
    "partition.num_clients=3",
    "sampler.fraction=0.7",
    "partition.alpha=10",
    "num_rounds=1",
    "trainer=cpu",
    "callback=none",
]
SKEWED = ["partition.min_size=1"]


def pictures(folder, *shape, column="image"):
    sets = [(pixels(60, *shape, seed=seed), list(range(10)) * 6) for seed in (0, 1)]
    return write_parquet_set(folder, *sets, image_column=column)


def domains(folder):
    for split in ("train", "test"):
        images = [png(image) for image in pixels(48, 8, 8, 3)]
        names = [name for name in ("art", "cartoon", "photo", "sketch") for _ in range(12)]
        write_shard(folder / f"{split}-00000-of-00001.parquet", images, [0, 1] * 24, domain=names)
    return folder


def texts(folder, **columns):
    folder.mkdir()
    for split in ("train", "test"):
        pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    small = digits.load(train_fraction=0.05, augmentation=None)
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    model = initial(lambda: Conv6(small.input_shape, small.num_classes, **CHANNELS), seed=1)
    save_encoder(path, model.eval(), CHANNELS, small, command="none")
    return path


def words_for(name, tmp_path, encoder):
    """What a command of this setting says beside its name, for made-up data."""
    root, kept = tmp_path / "set", [f"dataset.encoder={encoder}", f"dataset.cache={tmp_path / 'kept'}"]
    if name in ("encoded_cifar10", "sampled"):
        pictures(root, 32, 32, 3, column="img")
        return [*FEW, *SKEWED, *kept, f"dataset.images.root={root}", "dataset.images.source=parquet"]
    if name == "pacs_domains":
        return [*FEW[2:], *kept, f"dataset.images.root={domains(root)}", "partition.clients_per_domain=2"]
    if name == "newsgroups":
        root = texts(root, text=["aa bb", "bb cc", "cc dd", "dd aa"] * 10, label=[0, 1, 2, 3] * 10)
        return [*FEW, f"dataset.root={root}", "dataset.num_tokens=4"]
    if name == "shakespeare":
        root = texts(root, text=["to be or not to be"] * 12, role=["HAMLET", "OPHELIA", "YORICK", "GHOST"] * 3)
        return [*FEW[:2], *FEW[3:], f"dataset.root={root}", "dataset.length=6"]
    few = [*FEW, *SKEWED] if name == "cnn_mnist" else [*FEW[2:], "dataset.num_rotations=2"]
    rest = [f"dataset.root={pictures(root, 28, 28)}", "dataset.source=parquet", "dataset.train_fraction=1"]
    return [*few, *rest]


def test_these_are_all_settings():
    folder = Path(config.CONFIG_DIR)
    assert sorted(SETTINGS) == sorted(path.stem for path in (folder / "experiment" / "leaderboard").glob("*.yaml"))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_round_of_every_setting(cli, tmp_path, encoder, name):
    run = tmp_path / "run"
    words = words_for(name, tmp_path, encoder)
    answer = cli(f"experiment=leaderboard/{name}", "aggregator=fedgh", *words, f"hydra.run.dir={run}")
    assert answer.code == 0, answer.err
    header, line = (run / "metrics.csv").read_text().splitlines()
    row = dict(zip(header.split(","), map(float, line.split(",")), strict=True))
    assert 0 <= row["global/test/acc"] <= 1
    assert np.isfinite(row["conflict/ratio"])
