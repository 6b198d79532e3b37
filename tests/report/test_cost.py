import math

import pytest

from fedgh.report.cost import cost_line, hardware, reach, rounds_to_reach, sample_passes, seconds
from fedgh.storage.run import Run
from tests.report.made import cell, make_run


@pytest.fixture
def run(tmp_path):
    row = {"time/train_seconds": 2.0, "time/aggregate_seconds": 0.25, "federation/num_examples": 100.0}
    return make_run(tmp_path, cell("table1", "cifar10_a0.1_k20"), accuracies=(0.1, 0.4, 0.3, 0.5), row=row)


def test_what_a_run_cost(run):
    assert run.settings["algorithm.local_epochs"] == 5
    assert sample_passes(run) == 4 * 100 * 5
    assert (seconds(run), seconds(run, "aggregate")) == (8.0, 1.0)
    assert hardware(run) == "Abacus, 1 thread"


def test_what_is_not_known_is_not_zero(run):
    without_rounds = Run(run.path, run.settings, run.summary, {}, [])
    line = cost_line([without_rounds])
    assert math.isnan(line["train_seconds"])
    assert math.isnan(line["samples"])
    assert line["hardware"] == "unknown"
    assert line["rounds"] == run.summary["rounds"]


def test_a_gpu_is_named(run):
    assert hardware(Run(run.path, {}, {}, {**run.provenance, "device": "A100"}, [])) == "A100"


def test_the_first_round_at_a_level(run):
    assert rounds_to_reach(run, 0.4) == 2
    assert rounds_to_reach(run, 0.41) == 4
    assert math.isnan(rounds_to_reach(run, 0.6))


def test_every_seed_is_measured_against_its_own_baseline(tmp_path):
    ours, mean = cell("table1", "cifar10_a0.1_k20", aggregator="fedgh"), cell("table1", "cifar10_a0.1_k20")
    fedgh = {1: make_run(tmp_path, ours, 1, (0.2, 0.6)), 2: make_run(tmp_path, ours, 2, (0.5, 0.6))}
    fedavg = {1: make_run(tmp_path, mean, 1, (0.1, 0.3)), 2: make_run(tmp_path, mean, 2, (0.1, 0.5))}
    soon = reach(fedgh, fedavg)
    assert (soon.mean, soon.seeds) == (1.5, 2)
    never = {1: make_run(tmp_path, mean, 1, (0.1, 0.9)), 2: fedavg[2]}
    assert (reach(fedgh, never).mean, reach(fedgh, never).seeds) == (1.0, 1)
