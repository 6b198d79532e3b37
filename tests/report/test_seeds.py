import csv
from dataclasses import replace

import numpy as np
import pytest

from fedgh.metric.summary import closing_numbers
from fedgh.report.groups import Groups, differing
from fedgh.report.seeds import (
    gain_lines,
    gains_table,
    of_groups,
    over_seeds,
    runs_table,
    seeds_table,
    text_of,
    write_csv,
)
from fedgh.report.write import curve_panels, write_report
from fedgh.storage.jobs import JobRecord
from fedgh.sweep.tables import mean_over_seeds
from tests.report.made import cell, make_run

FEDAVG, FEDPROX = cell("table1", "cifar10_a0.1_k20"), cell("table1", "cifar10_a0.1_k20", "fedprox")
FEDGH = cell("table1", "cifar10_a0.1_k20", aggregator="fedgh")
BESIDE = {"algorithm.batch_size": 32}  # no cell of the paper


def sweep(
    tmp_path, algorithms=("FedNova", "FedAvg", "FedProx", "FedDecorr"), rules=("FedGH", "Mean"), seeds=(2, 1), **of
):
    """Runs of every algorithm under every rule, in an order that nobody would choose."""
    return [
        make_run(
            tmp_path,
            FEDAVG,
            seed,
            (0.25, 0.5 + 0.01 * index + 0.001 * seed),
            name=f"{algorithm}-{rule}-{seed}",
            row={"conflict/ratio": 0.5},
            **{
                "algorithm._target_": f"fedgh.algorithm.{algorithm.lower()}.{algorithm}",
                "aggregator._target_": f"fedgh.aggregator.{rule.lower()}.{rule}",
                **BESIDE,
                **of,
            },
        )
        for index, algorithm in enumerate(algorithms)
        for rule in rules
        for seed in seeds
    ]


def test_the_one_table_over_seeds():
    results = [{"final/acc": 0.5, "mean/conflict_ratio": 0.25}, {"final/acc": 0.75}]
    (line,) = seeds_table([({"alpha": 1}, results)])
    assert (line["alpha"], line["seeds"], line["accuracy_mean"], line["conflict_mean"]) == (1, 2, 0.625, 0.25)
    assert line["accuracy_sd"] == pytest.approx(np.std([0.5, 0.75], ddof=1))
    assert np.isnan([line["conflict_sd"], line["last10_mean"]]).all()
    assert text_of([line]).splitlines() == [
        "alpha  seeds  accuracy (%)   last10 (%)  conflict (%)",
        "1      2      62.50 ± 17.68  -           25.00",
    ]


def test_a_score_of_a_tasks_own_has_its_name_and_is_no_percentage():
    """Of a regression, which has no accuracy at all."""
    results = [{"final/r2": 0.25, "last10/r2_mean": 0.2, "mean/conflict_ratio": 0.5}, {"final/r2": 0.75}]
    (line,) = seeds_table([({}, results)])
    assert list(line) == ["seeds", "r2_mean", "r2_sd", "r2_last10_mean", "r2_last10_sd", "conflict_mean", "conflict_sd"]
    assert text_of([line]).splitlines() == [
        "seeds  r2             r2_last10  conflict (%)",
        "2      0.500 ± 0.354  0.200      50.00",
    ]
    both = seeds_table([({"data": "a"}, results), ({"data": "b"}, [{"final/acc": 0.5}])])
    assert text_of(both).splitlines()[2].split() == ["b", "1", "-", "-", "50.00", "-", "-"]


def test_a_report_of_regressions_tells_and_draws_their_score(tmp_path):
    runs = []
    for number, run in enumerate(sweep(tmp_path, ["FedAvg"])):
        rows = [{**row, "global/test/r2": row["global/test/acc"] - 0.125 * (number < 2)} for row in run.rows]
        rows = [{key: value for key, value in row.items() if key != "global/test/acc"} for row in rows]
        runs.append(replace(run, rows=rows, summary={"rounds": run.summary["rounds"], **closing_numbers(rows, "r2")}))
    groups = Groups.of(runs)
    assert over_seeds(groups)[0] == ["method", "seeds", "r2", "mean r2 of the last ten rounds", "pairs in conflict (%)"]
    head, rows = gains_table(groups)
    assert (head[1], rows[0][1]) == ("gain in r2", "-0.125")
    (score, _), *_ = (panels for panels in curve_panels(groups))
    assert (score[1], len(score[2])) == ("Test r2", 2)
    assert 0.3 < float(score[2][0].values.max()) < 1, "not in percent"
    assert "| 0.5" in write_report(runs, tmp_path / "report")
    assert "r2" in (tmp_path / "report" / "runs.csv").read_text().partition("\n")[0]


def test_personal_models_have_a_column_where_there_are_any(tmp_path):
    runs = [make_run(tmp_path, FEDAVG, seed) for seed in (1, 2)] + [make_run(tmp_path, FEDPROX)]
    head, rows = over_seeds(Groups.of(runs))
    assert "personal models (%)" not in head
    runs[2].summary["final/personal_acc"] = 0.75
    head, rows = over_seeds(Groups.of(runs))
    place = head.index("personal models (%)")
    assert head[place - 1 :] == ["mean of the last ten rounds (%)", "personal models (%)", "pairs in conflict (%)"]
    assert sorted(row[place] for row in rows) == ["", "75.00"]
    runs[0].summary["final/fine_tuned_acc"] = 0.5
    head, rows = over_seeds(Groups.of(runs))
    assert head[place : place + 2] == ["personal models (%)", "fine-tuned models (%)"]
    assert all(len(row) == len(head) for row in rows)


def test_jobs_of_a_sweep_go_by_what_was_typed(tmp_path):
    def job(number, alpha, seed, status="finished"):
        settings = {"partition.alpha": alpha, "seed": seed}
        results = {"final/acc": 0.5} if status == "finished" else {}
        return JobRecord(number, [], settings, tmp_path, status, "", results)

    table = mean_over_seeds([job(0, "0.1", "1"), job(1, "0.1", "2", "failed"), job(2, "1", "1")])
    assert [(line["partition.alpha"], line["seeds"]) for line in table] == [("0.1", 1), ("1", 1)]


def test_a_setting_that_only_some_parts_have_tells_their_versions_apart(tmp_path):
    runs = [
        make_run(tmp_path, FEDAVG),
        make_run(tmp_path, FEDPROX, accuracies=(0.4,)),
        make_run(tmp_path, FEDPROX, accuracies=(0.6,), **{"algorithm.mu": 0.01}),
    ]
    assert differing(runs) == ["algorithm._target_", "algorithm.mu"]
    assert sorted(line["accuracy_mean"] for line in of_groups(Groups.of(runs))) == [0.4, 0.5, 0.6]


def test_a_setting_of_nothing_is_a_value_too(tmp_path):
    runs = [make_run(tmp_path, FEDGH, 1, name=f"{value}", **{"aggregator.rescale": value}) for value in (None, "norm")]
    assert differing(runs) == ["aggregator.rescale"]
    assert len(Groups.of(runs).members) == 2


def test_a_setting_that_only_one_part_has_says_nothing(tmp_path):
    assert differing([make_run(tmp_path, FEDAVG), make_run(tmp_path, FEDGH)]) == ["aggregator._target_"]


def test_server_optimizers_are_methods(tmp_path):
    adam = {"server_optimizer._target_": "fedgh.server_optimizer.adam.Adam", "server_optimizer.tau": 0.001}
    groups = Groups.of([make_run(tmp_path, FEDAVG), make_run(tmp_path, FEDAVG, name="adam", **adam)])
    assert groups.methods == ["Part, server Adam", "Part, server Part"]


def test_versions_of_one_aggregator_are_compared_with_the_mean_one_by_one(tmp_path):
    runs = [make_run(tmp_path, FEDAVG, seed, (0.5,)) for seed in (1, 2)]
    runs += [make_run(tmp_path, FEDGH, seed, (0.5 + seed / 10,)) for seed in (1, 2)]
    runs += [make_run(tmp_path, FEDGH, 1, (0.75,), **{"aggregator.sweeps": 2})]
    once, twice = gain_lines(Groups.of(runs))
    assert (once["aggregator.sweeps"], once["pairs"], once["gain"]) == (1, 2, pytest.approx(0.15))
    assert (twice["aggregator.sweeps"], twice["pairs"], twice["gain"]) == (2, 1, pytest.approx(0.25))
    assert gains_table(Groups.of(runs))[1][1] == ["Part + Part, sweeps 2", "+25.00", "", "", "1"]


def test_a_list_can_be_what_differs(tmp_path):
    runs = [make_run(tmp_path, FEDAVG, **{"model.channels": channels}) for channels in ([8, 16], [16, 32])]
    assert sorted(line["model.channels"] for line in of_groups(Groups.of(runs))) == ["[16, 32]", "[8, 16]"]


def test_every_run_has_its_commit_command_and_place(tmp_path):
    run = make_run(tmp_path, FEDAVG, row={"time/train_seconds": 1.5, "federation/num_examples": 10.0})
    (line,) = runs_table([run])
    assert (line["commit"], line["command"], line["run"]) == ("abc123", "fedgh-train made=up", str(run.path))
    assert (line["train_seconds"], line["samples"], line["rounds"]) == (3.0, 100.0, 20)


@pytest.mark.parametrize(
    ("algorithms", "rules"),
    [
        (("FedNova", "FedAvg", "FedProx", "FedDecorr"), ("FedGH", "Mean")),
        (("FedAvg", "FedProx", "FedNova"), ("UPGrad", "Mean", "FedGH", "PCGrad", "Krum")),
        (("FedAvg",), tuple(f"Rule{index:02d}" for index in range(22))),
    ],
)
def test_a_report_of_a_sweep_draws_and_names_every_method(tmp_path, algorithms, rules):
    runs = sweep(tmp_path, algorithms, rules)
    groups = Groups.of(runs)
    expected = len(algorithms) * len(rules)
    assert len(groups.methods) == len(set(groups.methods)) == expected
    if expected <= 14:
        assert len(set(groups.styles)) == expected
    ((accuracy, conflict),) = curve_panels(groups)
    assert [curve.label for curve in accuracy[2]] == [curve.label for curve in conflict[2]] == groups.methods
    text = write_report(runs, tmp_path / "out")
    assert sum(line.startswith("| Fed") and " | 2 | " in line for line in text.splitlines()) >= 2 * expected
    for name in groups.methods:
        assert f"| {name} | 2 | " in text


def test_a_report_is_for_readers(tmp_path):
    """In percent, sorted with the baseline first, no header out of the config, no number cut, the CSV beside it."""
    text = write_report(sweep(tmp_path), tmp_path / "out")
    for raw in ("_target_", "final_mean", "p_value", "final/acc", "0.5"):
        assert raw not in text.replace("runs.csv", ""), raw
    head = "| method | seeds | accuracy (%) | mean of the last ten rounds (%) | pairs in conflict (%) |"
    lines = text[text.index(head) :].splitlines()[2:10]
    names = [line.split(" | ")[0] for line in lines]
    rest = [f"| {name}{rule}" for name in ("FedDecorr", "FedNova", "FedProx") for rule in ("", " + FedGH")]
    assert names == ["| FedAvg", "| FedAvg + FedGH", *rest]
    assert lines[0].startswith("| FedAvg | 2 | 51.15 ± 0.07 | ")
    assert "| gain in accuracy (points) |" in text
    with (tmp_path / "out" / "seeds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == [name.removeprefix("| ") for name in names]
    assert float(rows[0]["accuracy_mean"]) == pytest.approx(0.5115)  # for programs: as the runs have it
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<th class=words>method</th>" in page


def test_federations_are_panels_side_by_side(tmp_path):
    alphas = [{"partition.alpha": alpha} for alpha in (10.0, 0.1, 1.0, 0.5, 2.0)]
    runs = [run for alpha in alphas for run in sweep(tmp_path, ("FedAvg",), **alpha)]
    rows = curve_panels(Groups.of(runs))
    titles = [[panel[0] for panel in row] for row in rows]
    first = ["α 0.1", "α 0.5", "α 1", "α 2"]
    assert titles == [first[:3], first[:3], ["α 2", "α 10"], ["α 2", "α 10"]]
    head, table = over_seeds(Groups.of(runs))
    assert head[:2] == ["federation", "method"]
    assert [row[0] for row in table[::2]] == [*first, "α 10"]


def test_what_is_not_known_stays_empty(tmp_path):
    write_csv([{"a": float("nan"), "b": None, "c": 1}], tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text().split() == ["a,b,c", ",,1"]
    write_csv([], tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists()
