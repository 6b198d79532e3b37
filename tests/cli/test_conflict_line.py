"""The experiments of GH and FedGradNorm, tiny, from the command line; bundled digits are dressed up as their data."""

import csv

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.dataset.fixtures import png, write_parquet_set, write_shard

QUIET = ("logger=csv", "callback=none", "trainer=cpu", "num_rounds=2", "evaluation.every=2", "algorithm.batch_size=16")
SMALL = ("model.body.channels=[4,4]", "model.body.hidden=[8]", "model.discriminator=[8]")
FEDERATED = ("partition=natural", "partition.by=domain", "partition.num_clients=2", "aggregator=fedgh")
CDAN = ("algorithm=cdan", "model.reads=products")
MCD = ("algorithm=mcd", "model.discriminator=null", "model.second_head=true")
PLAIN, GH, GHPP = ((f"algorithm.harmonize={how}",) for how in ("none", "gh", "ghpp"))


def digits(count, times, invert=False):
    """Return ``(images, labels)`` of bundled digits, each pixel a square of ``times``."""
    bunch = load_digits()
    images = np.kron(bunch.images[:count], np.ones((times, times))) * (255 / 16)
    return (255 - images if invert else images).astype(np.uint8), bunch.target[:count]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """MNIST, USPS, PACS (drawings and photographs are digits and their negatives) and MTFL, all of digits."""
    root = tmp_path_factory.mktemp("data")
    mnist, usps = digits(60, 4), digits(60, 2, invert=True)
    cut = mnist[0][:, 2:30, 2:30], mnist[1]
    write_parquet_set(root / "mnist", cut, cut)
    write_parquet_set(root / "usps", usps, usps)
    both = np.concatenate([usps[0], digits(60, 2)[0]])
    images, labels = [png(image, "RGB") for image in both], [*(usps[1] % 7), *(usps[1] % 7)]
    for split in ("train", "test"):
        file = f"{split}-00000-of-00001.parquet"
        write_shard(root / "pacs" / file, images, labels, domain=["photo"] * 60 + ["sketch"] * 60)
        more = {name: [int(label) % 2 for label in labels] for name in ("gender", "glasses", "head_pose")}
        points = [[0.2, 0.8, 0.5, 0.5, 0.5 + label / 20, 0.9] for label in labels]
        write_shard(
            root / "mtfl" / file, images, [k % 2 for k in labels], label_column="smile", landmarks=points, **more
        )
    return root


def rows(cli, tmp_path, *arguments):
    answer = cli(*QUIET, *arguments, f"hydra.run.dir={tmp_path / 'run'}")
    assert answer.code == 0, answer
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param((*SMALL, *GH, *FEDERATED), id="dann-gh-federated"),
        pytest.param((*SMALL, *CDAN, *GHPP, "algorithm.harmonize_variant=released"), id="cdan-released"),
        pytest.param((*SMALL[:2], *MCD, *PLAIN, "dataset.source=1", "dataset.target=0"), id="mcd-back"),
    ],
)
def test_uda_digits(cli, folders, tmp_path, settings):
    data = ("dataset.of.mnist_source=parquet", f"dataset.of.mnist_root={folders}/mnist")
    last = rows(cli, tmp_path, "experiment=uda_digits", *data, f"dataset.of.usps_root={folders}/usps", *settings)[-1]
    assert 0 <= last["global/test/acc"] <= 1
    assert last["federation/num_clients"] == (2 if set(FEDERATED) <= set(settings) else 1)
    if set(PLAIN) <= set(settings):
        assert "algorithm/harmonize_conflict" not in last
    else:
        assert 0 <= last["algorithm/harmonize_conflict"] <= 1


def test_uda_pacs(cli, folders, tmp_path):
    pair = ("dataset.source=0", "dataset.target=1", f"dataset.of.root={folders}/pacs")
    last = rows(cli, tmp_path, "experiment=uda_pacs", *SMALL, *pair, *GHPP, *FEDERATED)[-1]
    assert 0 <= last["global/test/acc"] <= 1


def test_fedgradnorm_digits(cli, tmp_path):
    shares = ("dataset.task_shares=[4,1,4,1]", "dataset.train_fraction=0.2", "model.hidden=[8]")
    equal = rows(cli, tmp_path / "0", "experiment=fedgradnorm_digits", *shares, "algorithm.weight_lr=0")
    moved = rows(cli, tmp_path / "1", "experiment=fedgradnorm_digits", *shares)
    weights = [[row[f"algorithm/loss_weight/{k}"] for k in range(4)] for row in (equal[-1], moved[-1])]
    assert weights[0] == [1] * 4
    assert weights[1] != weights[0]
    assert sum(weights[1]) == pytest.approx(4)


@pytest.mark.parametrize("name", ["mtfl_balanced", "mtfl_imbalanced"])
def test_mtfl(cli, folders, tmp_path, name):
    small = ("model.channels=[4,4]", "model.hidden=[8]", f"dataset.root={folders}/mtfl")
    first, last = rows(cli, tmp_path, f"experiment={name}", *small)
    assert [last[f"algorithm/loss/{k}"] < first[f"algorithm/loss/{k}"] for k in range(5)].count(True) >= 3
    assert first["federation/num_examples"] == 120
    assert last["global/test/error/landmarks"] > 0
