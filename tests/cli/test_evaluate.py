"""``fedgh-evaluate checkpoint=...`` needs nothing else."""

import csv
import json
import re

import pytest
import torch

from fedgh.tracking.recorder import read_csv

ARGUMENTS = (
    *(
        "num_rounds=2",
        "partition=dirichlet",
        "partition.num_clients=5",
        "partition.alpha=1",
        "algorithm.local_epochs=1",
    ),
    *("logger=csv", "callback=none", "trainer=cpu", "model.hidden=[8]", "dataset.train_fraction=0.3", "seed=7"),
)


def results(answer):
    (folder,) = (answer.log_dir / "evaluate" / "runs").iterdir()
    with (folder / "clients.csv").open(newline="") as file:
        return json.loads((folder / "evaluation.json").read_text()), list(csv.DictReader(file))


@pytest.mark.parametrize("what", ["run", "file"])
def test_a_saved_federation_gives_what_the_run_had_recorded(cli, what):
    run_dir = cli(*ARGUMENTS).run_dir
    newest = run_dir / "checkpoints" / "round_000002.ckpt"
    answer = cli(f"checkpoint={run_dir if what == 'run' else newest}", task="evaluate")
    assert answer.code == 0, answer.err
    evaluation, clients = results(answer)
    assert evaluation.pop("checkpoint") == str(newest)
    recorded = read_csv(run_dir / "metrics.csv")[-1]
    assert evaluation == {name: recorded[name] for name in evaluation}
    assert set(evaluation) == {
        *("global/test/acc", "global/test/loss"),
        *(f"client/test/acc_{end}" for end in ("mean", "mean_examples", "std", "worst10", "worst")),
    }
    assert [int(row["client"]) for row in clients] == list(range(5))
    accuracies = torch.tensor([float(row["acc"]) for row in clients], dtype=torch.float64)
    assert float(accuracies.mean()) == pytest.approx(evaluation["client/test/acc_mean"])
    assert sum(float(row["num_examples"]) for row in clients) > 400
    assert f"{newest} after round 2" in answer.out
    assert f"{evaluation['global/test/acc']:.4f}" in answer.out


def test_an_older_round_can_be_evaluated(cli):
    run_dir = cli(*ARGUMENTS).run_dir
    answer = cli(f"checkpoint={run_dir}/checkpoints/round_000001.ckpt", task="evaluate")
    evaluation, _ = results(answer)
    assert evaluation["global/test/loss"] == read_csv(run_dir / "metrics.csv")[0]["global/test/loss"]


def test_a_run_that_trained_on_a_gpu_can_be_evaluated_without_one(cli):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    run_dir = cli(*ARGUMENTS).run_dir
    path = run_dir / "checkpoints" / "round_000002.ckpt"
    content = torch.load(path, weights_only=True)
    assert "accelerator: cpu" in content["config"]
    torch.save({**content, "config": content["config"].replace("accelerator: cpu", "accelerator: gpu")}, path)
    answer = cli(f"checkpoint={path}", task="evaluate")
    assert answer.code == 0, answer.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"these keys need a value: checkpoint"),
        (["checkpoint=/nonexistent.ckpt"], r"there is no checkpoint /nonexistent.ckpt; expected a file round_<t>.ckpt"),
        (["checkpoint=/"], r"holds no file round_<t>.ckpt"),
    ],
)
def test_nothing_to_evaluate(cli, arguments, message):
    answer = cli(*arguments, task="evaluate")
    assert answer.code == 2
    assert re.search(message, answer.err), answer.err


def test_a_checkpoint_of_other_data_is_refused(cli):
    run_dir = cli(*ARGUMENTS).run_dir
    path = run_dir / "checkpoints" / "round_000002.ckpt"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "dataset": "0" * 16}, path)
    answer = cli(f"checkpoint={path}", task="evaluate")
    assert answer.code == 2
    assert "is of another dataset: fingerprint 000000000000 there and" in answer.err


def test_a_checkpoint_of_another_model_is_refused(cli):
    run_dir = cli(*ARGUMENTS).run_dir
    path = run_dir / "checkpoints" / "round_000002.ckpt"
    content = torch.load(path, weights_only=True)
    layout = {**content["layout"], "head.weight": [10, 99]}
    torch.save({**content, "layout": layout}, path)
    answer = cli(f"checkpoint={path}", task="evaluate")
    assert answer.code == 2
    assert "is of another model: parameter head.weight has shape [10, 99] there and [10, 8] here" in answer.err
