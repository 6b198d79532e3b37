"""``fedgh-paper``: what is selected, what is said, and whole tables through real processes at ``preset=smoke``."""

import csv
import re

import pytest
import yaml

from fedgh.cli import paper as reproduce
from fedgh.cli.paper import read
from fedgh.core.errors import ConfigurationError
from fedgh.paper.matrix import cell_of, cells
from fedgh.storage.run import flatten


@pytest.fixture
def paper(monkeypatch, tmp_path, capfd):
    """Return ``paper(*arguments)``, which gives exit status, standard output and standard error."""
    monkeypatch.setenv("FEDGH_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["fedgh-paper", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            reproduce.main()
        return end.value.code, *capfd.readouterr()

    return run


def names(*arguments):
    return [cell.name for cell in read(arguments).cells]


def test_parts_are_selected():
    assert len(names("table=1")) == 48
    assert len(names("table=1,2")) == 72
    assert len(names("table=1", "rows=fedavg,fedprox", "seeds=1,2,3")) == 72
    assert names(
        "table=1", "columns=cifar10_a0.1*", "rows=fedprox", "aggregators=fedgh", "preset=quick", "seeds=2"
    ) == ["cifar10_a0.1_k10/fedprox+fedgh/seed2"]
    assert len(names("table=3", "columns=cifar10_*")) == 8


def test_another_rule_takes_the_place_of_the_mean():
    request = read(["table=1", "columns=cifar10_a0.1*", "rows=fedprox", "aggregators=fedgh,upgrad", "preset=quick"])
    assert [cell.name for cell in request.cells] == [
        "cifar10_a0.1_k10/fedprox+fedgh/seed1",
        "cifar10_a0.1_k10/fedprox+upgrad/seed1",
    ]
    assert "aggregator=upgrad" in request.cells[1].overrides
    assert request.cells[1].published is None


def test_cells_in_several_places_are_run_once():
    assert len(names("table=1,2,3,4")) == 96
    assert len(names("table=1", "figure=4")) == 48
    everything = names("table=1,2,3,4", "figure=2,4,5", "variant=matched_rate,plain_dirichlet,silent_mu")
    assert len(everything) == len({cell.name for cell in cells()})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table=7"], "there is no table=7; known: 1, 2, 3, 4"),
        (["figure=3"], "there is no figure=3; known: 2, 4, 5"),
        (["variant=matched"], "there is no variant=matched (did you mean matched_rate?)"),
        (["table=1", "preset=fast"], "there is no preset=fast; known: paper, quick, smoke"),
        (
            ["table=1", "rows=fedavgm"],
            "there is no rows=fedavgm (did you mean fedavg?); known: fedavg, fedprox, fednova",
        ),
        (["table=1", "columns=cifar10_a1_k10"], "did you mean cifar10_a1_k20?"),
        (["table=1", "aggregators=fedgg"], "there is no aggregators=fedgg (did you mean fedgh?)"),
        (["table=1", "seeds=one"], "seeds must be whole numbers of 0 or more, got 'one'"),
        (["table=1", "workers=0"], "workers must be whole numbers of 1 or more, got '0'"),
        (["table=1", "dry_run=maybe"], "there is no dry_run=maybe; known: true, false"),
        (["table=1", "table=2"], "table= is given twice"),
        (["preset=quick"], "say what to run: table=1, table=2, table=3, table=4, figure=2"),
        (["table=1", "seed=3"], "seed=3 would go to every cell, but sets cells apart; use seeds="),
        (["table=1", "algorithm=fedprox"], "but sets cells apart; use rows="),
        (["table=1", "hydra.run.dir=x"], "but sets cells apart; use paths.log_dir="),
        (["table=1", "tags=[ü]"], "tags=[ü] cannot be read: settings want quotes of their own"),
        (["table=1", "partition.alpha=0,1"], "type partition.alpha=0.1 for a decimal number"),
        (["table"], "expected key=value, got 'table'; `fedgh-paper --help` shows the keys"),
    ],
)
def test_input_that_cannot_be_right(arguments, message):
    with pytest.raises(ConfigurationError) as error:
        read(arguments)
    assert message in str(error.value)


def test_errors_are_one_line_and_status_two(paper):
    assert paper("table=7") == (2, "", "\nerror: there is no table=7; known: 1, 2, 3, 4\n")


def test_help_names_everything(paper):
    code, out, _ = paper("--help")
    assert code == 0
    assert "table=1, table=2, table=3, table=4, figure=2, figure=4, figure=5, variant=matched_rate" in out
    assert "paper, quick, smoke; default paper" in out
    assert paper()[0] == 2


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("columnz=cifar10*", "there is no key columnz (did you mean columns?)"),
        ("num_round=3", "there is no key num_round (did you mean num_rounds?)"),
        ("algorithm.local_epochs=many", "algorithm.local_epochs must be a whole number"),
    ],
)
def test_what_does_not_fit_any_cell_stops_before_the_first(paper, tmp_path, extra, message):
    code, _, err = paper("table=1", "preset=smoke", extra)
    assert code == 2
    assert f"cell smoke/digits_a0.1_k4/fedavg+mean/seed1 cannot be composed: {message}" in err
    assert not (tmp_path / "logs").exists()


def test_data_that_is_not_there_is_named_with_the_remedy(paper, tmp_path):
    code, out, _ = paper("table=1,2", "preset=quick", "rows=fedavg", "paths.data_dir=nowhere", "columns=*_a0.1_k20")
    assert code == 1
    assert "6 cells at preset quick: 0 finished, 0 to resume, 0 to run, 6 that cannot be run" in out
    assert re.search(r"failed: quick/cifar10_a0.1_k10/fedavg\+mean/seed1, quick/cifar10_a0.1_k10/.*\n", out)
    assert "cifar10 is not at nowhere/cifar10; type paths.data_dir=<folder that holds cifar10/>" in out
    assert "dataset.download=true, or dataset.source=parquet" in out
    (tiny,) = set(re.findall("tiny_imagenet is not .*", out))
    assert "nowhere/tiny-imagenet-200" in tiny
    assert "download" not in tiny
    assert not (tmp_path / "logs").exists()


def test_a_dry_run_prints_commands_and_starts_nothing(paper, tmp_path):
    code, out, _ = paper("table=3", "preset=smoke", "columns=cifar10_a0.1_k5", "dry_run=true", "logger=csv")
    assert code == 0
    commands = [line for line in out.splitlines() if line.startswith("fedgh-train ")]
    assert len(commands) == 2
    assert all("experiment=cifar10 dataset=digits" in line and "logger=csv" in line for line in commands)
    assert not (tmp_path / "logs").exists()


def test_a_dry_run_keeps_what_cannot_be_run_apart_from_the_commands(paper, tmp_path):
    """Commands can be piped into a shell; a reason is given once, with the cells it is true of."""
    (tmp_path / "cifar10").mkdir()
    code, out, _ = paper("figure=2,4,5", "preset=quick", "dry_run=true", f"paths.data_dir={tmp_path}")
    assert code == 1
    lines = out.splitlines()
    commands = [line for line in lines if line.startswith("fedgh-train ")]
    comments = lines[len(commands) :]
    assert (len(commands), lines[: len(commands)]) == (6, commands)
    assert all(line.startswith("# ") for line in comments)
    assert comments[0] == "# 26 cells at preset quick: 0 finished, 0 to resume, 6 to run, 20 that cannot be run"
    reasons = [line for line in comments if line.startswith("# cannot be run: ")]
    assert [reason.split()[4] for reason in reasons] == ["cifar100", "tiny_imagenet"]
    assert len(comments) == 5, "one line for the cells of a reason, however many they are"
    assert all(line.startswith("#     quick/") and line.endswith(" more") for line in comments[2::2])
    assert "go on" not in out
    assert not (tmp_path / "logs").exists()


def measured(source):
    """The rows of a ``metrics.csv``, without what a clock says."""
    text = source if isinstance(source, str) else source.read_text()
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(text.splitlines())]


PART = (
    *("table=3", "preset=smoke", "columns=cifar10_a0.1_k30,cifar10_a0.1_k5", "aggregators=fedgh"),
    *("partition.min_size=100", "logger=csv", "callback=none"),
)
"""431 images are enough for two clients with a hundred each, not for five."""


def test_a_part_of_a_table_through_processes(paper, tmp_path):
    """One cell fails and does not stop the other, which then is interrupted, finished, and of other settings."""
    code, out, _ = paper(*PART)
    assert code == 1
    assert "\ndone      smoke/digits_a0.1_k2/fedavg+fedgh/seed1 (1 of 2)\n" in out
    report = out.partition("\n1 done, 1 failed\n")[2]
    assert report.startswith("failed: smoke/digits_a0.1_k5/fedavg+fedgh/seed1\n    error: ")
    assert "partition.min_size" in report
    assert "\ngo on           the same command again\n" in report
    assert report.endswith(f"\ntables          fedgh-report runs={tmp_path}/logs/paper/smoke\n")

    run = tmp_path / "logs" / "paper" / "smoke" / "digits_a0.1_k2" / "fedavg+fedgh" / "seed1"
    assert "rounds          2 of 2" in run.with_name("seed1.log").read_text()
    cell = cell_of(flatten(yaml.safe_load((run / "config.yaml").read_text().replace("min_size: 100", "min_size: 1"))))
    assert (cell.place, cell.preset, cell.aggregator) == ("table3", "smoke", "fedgh")

    rows = (run / "metrics.csv").read_text()
    (run / "summary.json").unlink()  # as if it had been killed after its first round
    (run / "checkpoints" / "round_000002.ckpt").unlink()
    one = [word.replace("cifar10_a0.1_k30,", "") for word in PART]
    code, out, _ = paper(*one)
    assert code == 0
    assert "1 cell at preset smoke: 0 finished, 1 to resume, 0 to run, 0 that cannot be run" in out
    assert "resuming  smoke/digits_a0.1_k2/fedavg+fedgh/seed1" in out
    assert measured(run / "metrics.csv") == measured(rows)

    code, out, _ = paper(*one)
    assert code == 0
    assert "\n\n1 finished\n" in out

    code, out, _ = paper(*one, "num_rounds=1")
    assert code == 1
    assert f"{run} holds a run with other settings: num_rounds=2 instead of 1. Give the settings it was started" in out
    assert "or choose another folder with paths.log_dir=<folder>" in out


@pytest.mark.slow
@pytest.mark.parametrize("place", ["table=1", "table=2", "table=3", "table=4", "figure=2", "figure=4", "figure=5"])
def test_a_whole_table_with_one_command(paper, place):
    code, out, _ = paper(place, "preset=smoke", "workers=2")
    assert code == 0, out
    assert re.search(r"^\d+ done$", out, flags=re.MULTILINE)
