"""The arithmetic behind the benchmark's estimate of what the paper's tables take."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def cell(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "benchmarks"))
    return importlib.import_module("cell")


def test_sample_passes_worked_by_hand(cell):
    found = {table: sum(map(cell.passes, cell.distinct([table]))) for table in cell.TABLES}
    cifar = 50_000 * 5 * 100  # images, epochs, rounds; K = 100 trains a fifth of them a round
    assert found["table1"] == pytest.approx(16 * (cifar + cifar / 5 + cifar))
    assert found["table2"] == pytest.approx(8 * 100_000 * 5 * 50 * (1 + 1 / 5 + 1))
    assert found["table3"] == pytest.approx(16 * cifar)
    assert found["table4"] == pytest.approx(4 * 50_000 * 100 * (1 + 5 + 10 + 15))


def test_cells_that_tables_share_count_once(cell):
    assert len(cell.distinct(cell.TABLES)) == 48 + 24 + 16 + 16 - 4 - 4  # K = 20 of table 3, E = 5 of table 4


def test_hours_add_training_and_an_evaluation_each_round(cell):
    example = next(c for c in cell.distinct(["table2"]) if c.settings["partition.num_clients"] == 20)
    costs = {"tiny_imagenet": cell.Cost(train=0.1, test=0.01)}
    assert cell.hours([example], costs) == pytest.approx((100_000 * 5 * 50 * 0.1 + 50 * 10_000 * 0.01) / 3600)
