"""The paper's experiments as data: complete, and the same as what ``fedgh-train`` makes of them."""

from collections import Counter

import pytest
from omegaconf import OmegaConf

from fedgh import config
from fedgh.paper.matrix import EXPERIMENTS, GROUPS, cell_of, cells, cells_of, layered, places, presets, variants
from fedgh.storage.run import flatten

SIZES = {"table1": 48, "table2": 24, "table3": 16, "table4": 16, "figure2": 6, "figure4": 4, "figure5": 16}


def of(place, preset="paper", **attributes):
    found = [cell for cell in cells(preset) if cell.place == place]
    return [cell for cell in found if all(getattr(cell, key) == value for key, value in attributes.items())]


def composed(overrides):
    cfg = config.compose(overrides)
    config.validate(cfg)
    return flatten(OmegaConf.to_container(cfg))


def test_the_tables_have_their_104_numbers():
    counts = Counter(cell.place for cell in cells())
    assert {place: counts[place] for place in SIZES} == SIZES
    assert sum(counts[f"table{k}"] for k in range(1, 5)) == 104
    assert all((cell.published is not None) == cell.place.startswith("table") for cell in cells())
    assert places() == (*SIZES, *variants())


@pytest.mark.parametrize(
    ("place", "column", "row", "aggregator", "published"),
    [
        ("table1", "cifar10_a0.1_k20", "fedavg", "mean", 68.66),
        ("table1", "cifar100_a0.1_k100_c0.2", "feddecorr", "fedgh", 47.59),
        ("table2", "tiny_imagenet_a0.01_k20", "fednova", "fedgh", 33.03),
        ("table3", "cifar10_a0.1_k30", "fedavg", "fedgh", 67.04),
        ("table4", "cifar100_a0.01_k20_e15", "fedavg", "mean", 44.33),
    ],
)
def test_numbers_of_the_paper(place, column, row, aggregator, published):
    (cell,) = of(place, column=column, row=row, aggregator=aggregator)
    assert cell.published == published


def test_tables_share_runs():
    tables = [cell for cell in cells() if cell.place.startswith("table")]
    assert len({cell.name for cell in tables}) == 96  # K = 20 of table 3 and E = 5 of table 4 stand in table 1, too
    assert {cell.name for cell in of("figure4")} < {cell.name for cell in of("table1")}


@pytest.mark.parametrize("preset", presets())
def test_a_name_is_one_setting_and_a_setting_one_name(preset):
    settings = {}
    for cell in cells(preset):
        assert settings.setdefault(cell.name, cell.settings) == cell.settings
    assert len({repr(sorted(map(str, s.items()))) for s in settings.values()}) == len(settings)


@pytest.mark.parametrize("preset", presets())
def test_a_run_of_a_cell_is_found_to_be_that_cell(preset):
    """A sample of all places; the slow tests take every one."""
    chosen = {cell.name: cell for cell in cells(preset, (7,))[:: 17 if preset == "paper" else 29]}
    for cell in chosen.values():
        settings = composed(cell.overrides)
        assert cell in cells_of(settings), cell.overrides
        assert all(found.name == cell.name and found.preset == preset for found in cells_of(settings))


@pytest.mark.slow
@pytest.mark.parametrize("preset", presets())
def test_every_run_of_a_cell_is_found_to_be_that_cell(preset):
    for cell in {cell.name: cell for cell in cells(preset, (7,))}.values():
        assert cell in cells_of(composed(cell.overrides)), cell.overrides


def test_another_run_is_no_cell():
    (cell,) = of("table1", column="cifar10_a0.1_k20", row="fedprox", aggregator="fedgh")
    settings = composed(cell.overrides)
    assert cell_of(settings) == cell
    for key, value in (
        ("algorithm.mu", 0.2),
        ("num_rounds", 99),
        ("server_optimizer.lr", 1.8),
        ("aggregator.sweeps", 2),
        ("dataset.train_fraction", 0.5),
    ):
        assert key in settings
        assert cell_of({**settings, key: value}) is None, key
    assert cell_of({}) is None


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_as_it_stands_is_a_cell_of_the_paper(name):
    cell = cell_of(composed([f"experiment={name}"]))
    assert cell is not None
    assert (cell.preset, cell.row, cell.aggregator) == ("paper", "fedavg", "fedgh")
    assert cell.column == f"{name}_a0.1_k20"


def test_quick_halves_the_clients_but_where_they_are_the_subject():
    def clients(place, column):
        return {cell.settings["partition.num_clients"] for cell in of(place, "quick", column=column)}

    assert clients("table1", "cifar10_a0.1_k20") == {10}
    assert clients("table1", "cifar10_a1_k100_c0.2") == {50}
    assert clients("table4", "cifar10_a0.1_k20_e1") == {10}
    assert clients("figure5", "cifar100_classes_k20") == {10}
    for number in (5, 10, 20, 30):
        assert clients("table3", f"cifar10_a0.1_k{number}") == {number}
    assert clients("figure2", "cifar10_iid_k5") == {5}


def test_quick_takes_a_small_network_and_little_data():
    for cell in cells("quick"):
        share = 0.02 if cell.column.startswith("tiny_imagenet") else 0.05
        assert cell.settings["dataset.train_fraction"] == share
        assert (cell.settings["model"], cell.settings["model.channels"]) == ("cnn2", [16, 32])
        assert cell.settings["num_rounds"] == 20


def test_the_variants_differ_from_their_cell_in_what_they_are_about():
    about = {
        "matched_rate": {"aggregator"},
        "plain_dirichlet": {"aggregator", "partition"},
        "silent_mu": {"aggregator", "algorithm"},
    }
    assert about.keys() == variants().keys()
    for place, groups in about.items():
        arms = of(place, column="cifar10_a0.1_k20")
        assert len({cell.name for cell in arms}) == len(variants()[place]["arms"])
        (plain,) = of("table1", column="cifar10_a0.1_k20", row=arms[0].row, aggregator="mean")
        for cell in arms:
            keys = {
                key for key in {*cell.settings, *plain.settings} if cell.settings.get(key) != plain.settings.get(key)
            }
            assert {key.partition(".")[0] for key in keys} <= groups


def test_another_choice_takes_the_values_of_the_old_one_along():
    before = {"algorithm": "fedprox", "algorithm.mu": 0.1, "algorithm.local_epochs": 5, "aggregator": "mean"}
    after = layered(before, {"algorithm": "feddecorr"})
    assert "algorithm.mu" not in after
    assert (after["algorithm.beta"], after["algorithm.local_epochs"]) == (0.1, 5)
    assert layered(before, {"algorithm.mu": 0.0})["algorithm.mu"] == 0.0
    assert set(GROUPS) >= {"algorithm", "aggregator"}
