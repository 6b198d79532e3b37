"""The paper's tables with our numbers: who is in which cell, and what is said of it."""

import csv
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from fedgh.cli import report as summarize
from fedgh.paper.matrix import cells
from fedgh.report.cells import MISSING, MIXED, results
from fedgh.report.paper import grid, long_form, size_note
from fedgh.report.runs import gather
from fedgh.report.write import write_report
from fedgh.storage.tables import write_rows
from tests.report.made import cell, make_run, write_run

ROOT = Path(__file__).parents[2]
COLUMN = "cifar10_a0.1_k20"
FEDAVG, FEDGH = cell("table1", COLUMN), cell("table1", COLUMN, aggregator="fedgh")


def made(tmp_path, seeds=(1, 2, 3), gains=(0.01, 0.02, 0.03), **more):
    """FedAvg and FedGH of one column at preset quick: 0.50 in every seed, and the gains on top."""
    runs = [make_run(tmp_path, FEDAVG, seed, (0.25, 0.5), **more) for seed in seeds]
    return runs + [
        make_run(tmp_path, FEDGH, seed, (0.5, 0.5 + gain), **more) for seed, gain in zip(seeds, gains, strict=True)
    ]


def at(found, place, column=COLUMN, row="fedavg", aggregator="fedgh"):
    wanted = (place, column, row, aggregator)
    (result,) = [r for r in found if (r.cell.place, r.cell.column, r.cell.row, r.cell.aggregator) == wanted]
    return result


def test_a_run_fills_every_cell_that_it_is(tmp_path):
    found, others, problems = results(made(tmp_path))
    assert (others, problems) == ([], [])
    assert {r.cell.place for r in found if r.runs} >= {"table1", "table4", "matched_rate", "plain_dirichlet"}
    assert {r.cell.preset for r in found} == {"quick"}
    assert len(found) == len(cells("quick"))
    result = at(found, "table1")
    assert result.score().mean == pytest.approx(52.0)
    assert result.score("last10").mean == pytest.approx((50.5 + 51 + 51.5) / 3)
    assert (result.gain().mean, result.gain().pairs) == (pytest.approx(2.0), 3)
    assert result.baseline is at(found, "table1", aggregator="mean")
    assert at(found, "table1", aggregator="mean").baseline is None
    assert at(found, "table1", row="fedprox").note == MISSING


def test_runs_beside_the_paper_are_no_cells(tmp_path):
    outside = make_run(tmp_path, FEDGH, **{"algorithm.batch_size": 32})
    found, others, _ = results([outside])
    assert (found, others) == ([], [outside])


def test_two_versions_of_a_config_are_not_averaged(tmp_path):
    one = make_run(tmp_path, FEDGH, 1, buffers="average")
    two = make_run(tmp_path, FEDGH, 2, buffers="keep_global")
    found, _, problems = results([one, two, make_run(tmp_path, FEDAVG, 1, buffers="average")])
    assert (at(found, "table1").runs, at(found, "table1").note) == ({}, MIXED)
    assert problems == [
        f"{one.path} and {two.path} are both cifar10_a0.1_k10/fedavg+fedgh at preset quick, but differ in buffers "
        "(average and keep_global); they are not averaged, and the cell is left out. Give the report one of the two "
        "versions: runs=[<folder>, ...]"
    ]
    assert at(found, "table1").gain().pairs == 0


def test_how_clients_are_executed_is_no_version(tmp_path):
    one = make_run(tmp_path, FEDGH, 1, **{"executor._target_": "fedgh.executor.cohort.CohortExecutor"})
    two = make_run(tmp_path, FEDGH, 2, **{"executor._target_": "fedgh.executor.sequential.SequentialExecutor"})
    found, _, problems = results([one, two])
    assert (len(at(found, "table1").runs), problems) == (2, [])


def test_a_seed_run_twice_counts_once_and_is_named(tmp_path):
    key = "executor._target_"
    one = make_run(tmp_path, FEDGH, 1, name="one", **{key: "fedgh.executor.cohort.CohortExecutor"})
    two = make_run(tmp_path, FEDGH, 1, name="two", **{key: "fedgh.executor.sequential.SequentialExecutor"})
    found, _, (problem,) = results([one, two])
    assert at(found, "table1").runs == {1: two}
    assert "are the same cell and seed 1; only the second is counted" in problem


def test_no_gain_where_more_than_the_aggregator_differs(tmp_path):
    runs = [make_run(tmp_path, FEDAVG, 1, buffers="average"), make_run(tmp_path, FEDGH, 1, buffers="keep_global")]
    found, _, (problem,) = results(runs)
    assert at(found, "table1").score().seeds == 1
    assert at(found, "table1").gain().pairs == 0
    assert "differ in more than the aggregator: buffers (keep_global and average); no gain is given" in problem


def test_a_table_in_the_layout_of_the_paper(tmp_path):
    found, _, _ = results(made(tmp_path))
    head, rows = grid([r for r in found if r.cell.place == "table1"])
    assert head[:3] == ["", "CIFAR-10, α 0.1, K 20, C 1", "CIFAR-10, α 1, K 100, C 0.2"]
    names = [
        "FedAvg",
        "+ FedGH",
        "gain in accuracy",
        "FedProx",
        "+ FedGH",
        "FedNova",
        "+ FedGH",
        "FedDecorr",
        "+ FedGH",
    ]
    assert [row[0] for row in rows] == [[name] for name in names]
    assert rows[0][1] == ["50.00 ± 0.00 (3)", "last ten 37.50 ± 0.00", "paper 68.66"]
    assert rows[1][1] == ["52.00 ± 1.00 (3)", "last ten 51.00 ± 0.50", "paper 70.67"]
    assert rows[2][1] == ["+2.00", "-0.48 to +4.48", "p = 0.074, n = 3", "last ten +13.50", "paper +2.01"]
    assert rows[1][2] == ["missing", "paper 66.00"]
    assert rows[2][2] == ["no pair of runs", "paper +0.60"]


def test_one_seed_is_said_to_be_one(tmp_path):
    found, _, _ = results(made(tmp_path, seeds=(1,), gains=(0.01,)))
    _, rows = grid([r for r in found if r.cell.place == "table1"])
    assert rows[1][1][0] == "51.00 (1)"
    assert rows[2][1][:2] == ["+1.00", "one seed"]


@pytest.mark.parametrize(
    ("place", "row", "first"),
    [("table3", "cifar100_a0.01_k30", "K 30: + FedGH"), ("table4", "cifar100_a0.01_k20_e15", "E 15: + FedGH")],
)
def test_tables_with_a_setting_in_rows(tmp_path, place, row, first):
    found, _, _ = results([make_run(tmp_path, cell(place, row, aggregator="fedgh"))])
    head, rows = grid([r for r in found if r.cell.place == place])
    assert head == ["", "CIFAR-10, α 0.1", "CIFAR-100, α 0.01"]
    (line,) = [row for row in rows if row[0] == [first]]
    assert line[2][0] == "50.00 (1)"
    assert line[1][0] == "missing"


def test_fedgh_is_compared_with_a_mean_of_its_own_step_too(tmp_path):
    matched = cell("matched_rate", COLUMN, aggregator="mean_at_gain")
    runs = made(tmp_path) + [make_run(tmp_path, matched, seed, (0.51,)) for seed in (1, 2, 3)]
    _, rows = grid([r for r in results(runs)[0] if r.cell.place == "matched_rate"])
    table = {tuple(row[0]): row[1] for row in rows}
    assert table["FedGH", "over FedAvg with FedGH's coefficient sum"] == ["+1.00", "-1.48 to +3.48", "p = 0.23, n = 3"]
    assert table["FedGH", "over FedAvg with FedGH's length"] == ["no pair of runs"]


def test_every_published_number_is_in_the_long_form(tmp_path):
    lines = long_form(results(made(tmp_path))[0])
    published = [line["paper"] for line in lines if line["paper"] is not None]
    assert len(published) == 104
    gains = [
        line["paper_gain"] for line in lines if line["table"].startswith("table") and line["aggregator"] == "fedgh"
    ]
    assert len(gains) == 52
    assert (sum(gain > 0 for gain in gains), max(gains)) == (49, pytest.approx(4.05))
    by_class = {line["dataset"]: line for line in lines if (line["table"], line["row"]) == ("figure5", "feddecorr")}
    assert (by_class["cifar100"]["paper_gain"], by_class["tiny_imagenet"]["paper_gain"]) == (1.93, 1.77)


def test_the_long_form_leaves_empty_what_is_not_known(tmp_path):
    lines = long_form(results(made(tmp_path))[0])
    keys = ("table", "column", "row", "aggregator")
    named = {tuple(line[key] for key in keys): line for line in lines}
    ours = named["table1", COLUMN, "fedavg", "fedgh"]
    assert (ours["ours"], ours["sd"], ours["seeds"], ours["pairs"]) == (pytest.approx(52), pytest.approx(1), 3, 3)
    assert (ours["gain_low"], ours["gain_high"]) == pytest.approx((-0.484, 4.484), abs=1e-3)
    assert (ours["rounds_to_baseline"], ours["seeds_that_reached_it"]) == (1, 3)
    missing = named["table2", "tiny_imagenet_a0.1_k20", "fednova", "fedgh"]
    assert (missing["ours"], missing["gain"], missing["paper"], missing["note"]) == (None, None, 47.13, "missing")


def test_a_preset_says_what_it_changed(tmp_path):
    found, _, _ = results(made(tmp_path))
    note = size_note([r for r in found if r.cell.place == "table1"])
    assert note.startswith("Preset `quick` (")
    assert "partition.num_clients 20 → 10, 100 → 50" in note
    assert "num_rounds 100 → 20" in note
    assert note.endswith("not comparable with the paper's in absolute terms; what is compared are the gains.")
    assert size_note(results([make_run(tmp_path, cell("table1", COLUMN, preset="paper"))])[0]) == (
        "Preset `paper`: the sizes are the paper's."
    )


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_report_of_some_cells(tmp_path):
    out = tmp_path / "out"
    text = write_report(made(tmp_path, row={"time/train_seconds": 2.0}), out, ["something was left out"])
    assert (out / "report.md").read_text() == text
    for said in (
        "# Runs beside the paper",
        "6 finished runs",
        "Commit: abc123.",
        "- something was left out",
        "### Table 1",
        "| + FedGH | 52.00 ± 1.00 (3)<br>",
    ):
        assert said in text
    assert "Not run at this preset: Table 2: Tiny-ImageNet; " in text
    assert "| cifar10_a0.1_k10/fedavg+fedgh | 3 | 20 | 4.0 | not known | not known | 1.0 | 5 % |" in text
    assert "All on: Abacus, 1 thread." in text
    assert len(read_csv(out / "paper_tables.csv")) == len(cells("quick"))
    lines = read_csv(out / "runs.csv")
    assert {(line["commit"], line["command"]) for line in lines} == {("abc123", "fedgh-train made=up")}
    page = (out / "report.html").read_text()
    assert "http:" not in page
    assert "https:" not in page
    assert page.count("src='data:image/png;base64,iVBOR") == page.count("<img")
    assert (out / "gains_quick.png").is_file()


def test_a_report_of_nothing_finished_says_so(tmp_path):
    text = write_report([], tmp_path / "out", ["logs/a is not finished (1 of 20 rounds)"])
    assert "0 finished runs" in text
    assert "- logs/a is not finished" in text
    assert "logs/a is not finished" in (tmp_path / "out" / "report.html").read_text()


def test_presets_are_kept_apart(tmp_path):
    runs = [*made(tmp_path), make_run(tmp_path, cell("table1", COLUMN, preset="paper"), accuracies=(0.6866,))]
    text = write_report(runs, tmp_path / "out")
    paper, quick = text.index("at preset paper"), text.index("at preset quick")
    assert "| FedAvg | 68.66 (1)<br>last ten 68.66<br>paper 68.66 |" in text[paper:quick]
    assert "68.66 (1)" not in text[quick:]


def test_runs_that_are_no_cells_get_their_own_tables(tmp_path):
    outside = [dataclasses.replace(run, path=run.path / "x") for run in made(tmp_path, **{"algorithm.batch_size": 32})]
    text = write_report(outside, tmp_path / "out")
    assert "None of these runs is a cell of the paper's tables; `fedgh-paper` runs those." in text
    assert "| Part |" in text
    (gain,) = read_csv(tmp_path / "out" / "gain.csv")
    assert (float(gain["gain"]), gain["pairs"]) == (pytest.approx(0.02), "3")
    assert not (tmp_path / "out" / "paper_tables.csv").exists()
    assert "## Other runs" in write_report([*outside, *made(tmp_path)], tmp_path / "both")


def test_figure_2_beside_the_paper(tmp_path):
    run = make_run(tmp_path, cell("figure2", "cifar10_a0.1_k5"), row={"conflict/ratio": 0.25})
    write_rows(run.path / "conflict" / "pairs", 2, {"cosine": np.array([-0.5, 0.25, np.nan, 0.25, 0.5])})
    text = write_report([run], tmp_path / "out")
    assert "| K 5, α 0.1 | -0.50 | -0.06 | 25 | 25 | 1 |" in text
    assert "| K 10, α 0.01 | missing | -0.22 | missing | missing | 0 |" in text
    assert (tmp_path / "out" / "figure2_quick.png").is_file()


def test_figure_4_counts_rounds_to_the_level_of_the_baseline(tmp_path):
    column = "cifar100_a0.01_k20"
    runs = [
        make_run(tmp_path, cell("figure4", column), 1, (0.1, 0.2, 0.3, 0.4)),
        make_run(tmp_path, cell("figure4", column, aggregator="fedgh"), 1, (0.2, 0.3, 0.4, 0.5)),
    ]
    for run in runs:
        run.summary["rounds"] = run.settings["num_rounds"]
    text = write_report(runs, tmp_path / "out")
    assert "| FedAvg + FedGH | 40.00 | 3.0 | 15 % | 75 % |" in text
    assert "| FedDecorr + FedGH | missing | missing | missing | 78 % |" in text
    assert (tmp_path / "out" / "figure4_quick.png").is_file()


def test_without_rounds_tables_are_filled_and_figures_missing(tmp_path):
    """As from a CSV that W&B exported."""
    runs = [dataclasses.replace(run, rows=[], provenance={}) for run in made(tmp_path)]
    runs.append(dataclasses.replace(make_run(tmp_path, cell("figure4", "cifar100_a0.01_k20")), rows=[], provenance={}))
    text = write_report(runs, tmp_path / "out")
    assert "| + FedGH | 52.00 ± 1.00 (3)<br>" in text
    assert "figure4_quick: missing; none of these runs has its rounds at hand." in text
    assert "| not known | not known | not known | not known |  |" in text
    assert "All on: unknown." in text
    assert not math.isnan(float(read_csv(tmp_path / "out" / "runs.csv")[0]["final"]))


def test_the_entry_point_reads_folders_and_says_what_it_left_out(tmp_path, capsys):
    for run in made(tmp_path / "logs", seeds=(1,), gains=(0.01,)):
        write_run(run)
    half = make_run(tmp_path / "logs", FEDGH, 2)
    write_run(dataclasses.replace(half, summary={}))
    out = tmp_path / "out"
    summarize.run(OmegaConf.create({"run": None, "runs": [str(tmp_path / "logs")], "paths": {"output_dir": str(out)}}))
    told = capsys.readouterr().out
    assert f"{half.path} is not finished (2 of 20 rounds) and is left out; go on with it: fedgh-train resume=" in told
    assert "| + FedGH | 51.00 (1)<br>" in told
    assert f"written to {out}" in told


def test_the_kept_table_follows_from_the_kept_runs():
    kept = read_csv(ROOT / "results" / "paper" / "paper_tables.csv")
    named = dict.fromkeys(path for line in kept for path in line["runs"].split())
    runs, problems = gather(ROOT / path for path in named)
    assert (len(runs), problems) == (len(named), [])
    for line, ours in zip(kept, long_form(results(runs)[0]), strict=True):
        for key in ("table", "column", "row", "aggregator", "note"):
            assert line[key] == ours[key]
        for key in ("ours", "sd", "seeds", "last10", "paper", "gain", "p_value"):
            assert (float(line[key]) if line[key] else None) == pytest.approx(ours[key])
