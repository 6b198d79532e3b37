"""``dataset.validation_fraction`` from the command line: a run, resumed; a search."""

import csv
import json

import pytest
import torch

from fedgh import config
from fedgh.core.errors import ConfigurationError
from fedgh.tracking.recorder import read_csv

TINY = [
    *("num_rounds=2", "partition=iid", "partition.num_clients=3", "algorithm.local_epochs=1", "trainer=cpu"),
    *("dataset.train_fraction=0.2", "model.hidden=[4]", "executor=sequential", "callback=none", "logger=csv"),
]


def test_a_run_says_it_records_it_and_resumes_with_the_same_part(cli, tmp_path):
    held = [*TINY, "dataset.validation_fraction=0.25"]
    answer = cli(*held, f"hydra.run.dir={tmp_path}/straight")
    assert answer.code == 0, answer.err
    rows = read_csv(tmp_path / "straight" / "metrics.csv")
    assert all({"global/val/acc", "global/val/loss", "client/val/acc_mean", "global/test/acc"} <= set(r) for r in rows)
    summary = json.loads((tmp_path / "straight" / "summary.json").read_text())
    assert summary["final/val_acc"] == rows[-1]["global/val/acc"] != summary["final/acc"]
    assert f"validation      {summary['final/val_acc']:.2%} final, on held-out training data" in answer.out
    told = answer.out.splitlines()[0].split()
    train, part = int(told[1]), int(told[3])
    assert (told[2], told[4]) == ("training,", "held-out")
    assert 0.2 < part / (train + part) < 0.3
    assert f"together {train} samples" in answer.out

    cli(*held, "num_rounds=1", f"hydra.run.dir={tmp_path}/stopped")
    answer = cli(f"resume={tmp_path}/stopped", "num_rounds=2")
    assert answer.code == 0, answer.err
    resumed = read_csv(tmp_path / "stopped" / "metrics.csv")
    assert [row["global/val/loss"] for row in resumed] == [row["global/val/loss"] for row in rows]


def test_a_search_is_judged_by_it_and_the_table_has_both(cli):
    pytest.importorskip("optuna", reason="Optuna is not installed: pip install 'fedgh[search]'")
    search = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "algorithm.optimizer.lr=interval(0.01,1)"]
    answer = cli(*search, *TINY, "dataset.validation_fraction=0.25")
    assert answer.code == 0, answer.out
    (folder,) = (answer.log_dir / "train" / "multiruns").iterdir()
    with (folder / "trials.csv").open(newline="") as file:
        told = [float(line["accuracy"]) for line in csv.DictReader(file)]
    summaries = [json.loads((folder / str(number) / "summary.json").read_text()) for number in range(2)]
    assert told == [summary["final/val_acc"] for summary in summaries]
    assert told != [summary["final/acc"] for summary in summaries]
    assert f"{max(told):.2%} of held-out training data with" in answer.out
    assert "validation_mean" in (folder / "seeds.csv").read_text()


def test_zero_is_null_to_the_bit(root_config):
    def built(*overrides):
        return config.build_federation(config.resolve(root_config(*TINY, *overrides)))

    null, zero, half = (built(f"dataset.validation_fraction={value}") for value in ("null", "0", "0.5"))
    assert null.validation is zero.validation is None
    assert null.partition.hash == zero.partition.hash != half.partition.hash
    assert torch.equal(null.dataset.train_inputs, zero.dataset.train_inputs)
    assert half.validation.partition.hash == half.partition.hash


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1", r"dataset.validation_fraction must be null or in \[0, 1\), got 1; try 0.1"),
        ("yes", "dataset.validation_fraction must be a number or null, got 'yes'"),
    ],
)
def test_what_cannot_be_is_refused_before_any_file_is_read(root_config, value, message):
    with pytest.raises(ConfigurationError, match=message):
        config.validate(config.resolve(root_config(*TINY, f"dataset.validation_fraction={value}")))
