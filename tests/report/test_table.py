import pytest

from fedgh.report.table import differing, paired_gains, runs_table, seeds_table
from fedgh.report.write import labels
from tests.report.made import cell, make_run

FEDAVG, FEDPROX = cell("table1", "cifar10_a0.1_k20"), cell("table1", "cifar10_a0.1_k20", "fedprox")
FEDGH = cell("table1", "cifar10_a0.1_k20", aggregator="fedgh")


def test_a_setting_that_only_some_parts_have_tells_their_versions_apart(tmp_path):
    runs = [
        make_run(tmp_path, FEDAVG),
        make_run(tmp_path, FEDPROX, accuracies=(0.4,)),
        make_run(tmp_path, FEDPROX, accuracies=(0.6,), **{"algorithm.mu": 0.01}),
    ]
    assert differing(runs) == ["algorithm._target_", "algorithm.mu"]
    table = seeds_table(runs)
    assert table["final_mean"].tolist() == [0.5, 0.4, 0.6]
    assert table["seeds"].tolist() == [1, 1, 1]


def test_a_setting_that_only_one_part_has_says_nothing(tmp_path):
    assert differing([make_run(tmp_path, FEDAVG), make_run(tmp_path, FEDGH)]) == ["aggregator._target_"]


def test_versions_of_one_aggregator_are_compared_with_the_mean_one_by_one(tmp_path):
    runs = [make_run(tmp_path, FEDAVG, seed, (0.5,)) for seed in (1, 2)]
    runs += [make_run(tmp_path, FEDGH, seed, (0.5 + seed / 10,)) for seed in (1, 2)]
    runs += [make_run(tmp_path, FEDGH, 1, (0.75,), **{"aggregator.sweeps": 2})]
    once, twice = paired_gains(runs).to_dict("records")
    assert (once["aggregator.sweeps"], once["pairs"], once["gain"]) == (1, 2, pytest.approx(0.15))
    assert (twice["aggregator.sweeps"], twice["pairs"], twice["gain"]) == (2, 1, pytest.approx(0.25))


def test_a_list_can_be_what_differs(tmp_path):
    runs = [make_run(tmp_path, FEDAVG, **{"model.channels": channels}) for channels in ([8, 16], [16, 32])]
    assert seeds_table(runs)["model.channels"].tolist() == ["[8, 16]", "[16, 32]"]
    assert list(labels(runs)) == ["[8, 16] (seed 1)", "[16, 32] (seed 1)"]


def test_every_run_has_its_commit_command_and_place(tmp_path):
    run = make_run(tmp_path, FEDAVG, row={"time/train_seconds": 1.5, "federation/num_examples": 10.0})
    (line,) = runs_table([run]).to_dict("records")
    assert (line["commit"], line["command"], line["run"]) == ("abc123", "fedgh-train made=up", str(run.path))
    assert (line["train_seconds"], line["samples"], line["rounds"]) == (3.0, 100.0, 20)
