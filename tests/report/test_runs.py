"""Folders as users leave them: unfinished, damaged, mixed, empty."""

import csv
import dataclasses
import json

import pytest

from fedgh.core.errors import DataError
from fedgh.report.runs import find_runs, gather
from fedgh.storage.run import Run
from tests.report.made import cell, make_run, settings_of, write_run
from tests.tracking.test_offline import encode

FEDAVG, FEDGH = cell("table1", "cifar10_a0.1_k20"), cell("table1", "cifar10_a0.1_k20", aggregator="fedgh")


def test_finished_runs_are_read_back(tmp_path):
    run = make_run(tmp_path, FEDAVG)
    write_run(run)
    (read,), problems = gather([tmp_path])
    assert problems == []
    assert (read.path, read.seed, read.summary, read.rows) == (run.path, 1, run.summary, run.rows)
    assert read.outcome() == run.outcome()


def test_an_unfinished_run_is_left_out_with_the_command_that_goes_on(tmp_path):
    write_run(make_run(tmp_path, FEDAVG))
    half = make_run(tmp_path, FEDGH)
    write_run(dataclasses.replace(half, summary={}))
    runs, (problem,) = gather([tmp_path])
    assert [run.settings["aggregator._target_"] for run in runs] == ["fedgh.aggregator.mean.Mean"]
    assert problem == (
        f"{half.path} is not finished (2 of 20 rounds) and is left out; go on with it: fedgh-train resume={half.path}"
    )


def test_a_damaged_run_costs_only_itself(tmp_path):
    write_run(make_run(tmp_path, FEDAVG))
    bad = write_run(make_run(tmp_path, FEDGH))
    (bad / "summary.json").write_text("{half")
    runs, (problem,) = gather([tmp_path])
    assert len(runs) == 1
    assert problem.startswith(f"run {bad} cannot be read: ")
    assert problem.endswith("was it written by fedgh-train?; mend it, or leave it out of runs=.")


def test_where_there_is_nothing(tmp_path):
    with pytest.raises(DataError, match=r"no run below .*expected directories with provenance\.json.*type runs=<such"):
        gather([tmp_path])
    with pytest.raises(DataError, match=r"runs=.*nowhere does not exist; expected a folder such as logs/train"):
        gather([tmp_path / "nowhere"])


def test_nothing_finished_is_an_error_for_those_who_need_runs(tmp_path):
    write_run(dataclasses.replace(make_run(tmp_path, FEDAVG), summary={}))
    assert gather([tmp_path])[0] == []
    with pytest.raises(DataError, match=r"none of these runs is finished:\n.*go on with it: fedgh-train resume="):
        find_runs([tmp_path])


def test_a_repeated_run_counts_once(tmp_path):
    run = make_run(tmp_path, FEDAVG, name="a")
    write_run(run)
    write_run(dataclasses.replace(run, path=tmp_path / "b"))
    runs, problems = gather([tmp_path])
    assert ([run.path.name for run in runs], problems) == (["b"], [])


def test_a_repeated_run_that_ends_elsewhere_is_named(tmp_path):
    write_run(make_run(tmp_path, FEDAVG, accuracies=(0.5,), name="a"))
    write_run(make_run(tmp_path, FEDAVG, accuracies=(0.75,), name="b"))
    (run,), (problem,) = gather([tmp_path])
    assert run.path.name == "b"
    assert "a and " in problem
    assert "the same settings and seed 1 but ended at 50.00% and 75.00%" in problem
    assert problem.endswith("only the second is counted. Leave one of them out of runs=.")


def offline_file(folder, run, rows=(), summary=True):
    """Write what W&B would have written beside a run."""
    from wandb.proto import wandb_internal_pb2

    def record(kind, values, nested=False):
        made = wandb_internal_pb2.Record()
        target = {"run": made.run.config.update, "history": made.history.item, "summary": made.summary.update}[kind]
        for key, value in values.items():
            item = target.add()
            item.key = "" if nested else key
            if nested:
                item.nested_key.append(key)
            item.value_json = json.dumps(value)
        return made.SerializeToString()

    config = {}
    for key, value in run.settings.items():
        *groups, last = key.split(".")
        node = config
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    where = wandb_internal_pb2.Record()
    where.environment.program, where.environment.git.commit = "/somewhere/bin/fedgh-train", "abc123"
    where.environment.args.append("made=up")
    where.environment.cpu.model = "Abacus"
    parts = [record("run", {**config, "_wandb": {}}), where.SerializeToString()]
    parts += [record("history", {**row, "conflict/cosine": {"bins": [1]}}, nested=True) for row in rows or run.rows]
    parts += [record("summary", run.summary)] if summary else []
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run-abc.wandb").write_bytes(encode(*parts))


def test_an_offline_file_of_wandb_is_a_run(tmp_path):
    run = make_run(tmp_path, FEDGH)
    offline_file(tmp_path / "wandb" / "offline-run-1-abc", run)
    (read,), problems = gather([tmp_path])
    assert problems == []
    assert (read.summary, read.rows) == (run.summary, run.rows)
    assert read.outcome() == run.outcome()
    assert read.provenance == {"commit": "abc123", "device": "cpu", "cpu": "Abacus", "command": "fedgh-train made=up"}


def test_the_offline_files_of_a_resumed_run_are_one_run(tmp_path):
    run = make_run(tmp_path, FEDGH)
    offline_file(tmp_path / "offline-run-1-abc", run, rows=run.rows[:1], summary=False)
    offline_file(tmp_path / "offline-run-2-abc", run, rows=run.rows[1:])
    (read,), _ = gather([tmp_path])
    assert read.rows == run.rows


def test_of_a_round_that_was_repeated_after_resuming_the_last_file_counts(tmp_path):
    run = make_run(tmp_path, FEDGH)
    for stamp in (3, 1, 6, 2, 5, 4):  # whatever order the disk lists them in
        rows = [{**run.rows[0], "global/test/loss": float(stamp)}, *run.rows[1:]]
        offline_file(
            tmp_path / f"offline-run-{stamp}-abc",
            dataclasses.replace(run, summary={**run.summary, "final/acc": stamp / 10}),
            rows=rows,
        )
    (read,), _ = gather([tmp_path])
    assert read.rows[0]["global/test/loss"] == 6
    assert read.summary["final/acc"] == 0.6
    assert read.path.parent.name == "offline-run-6-abc"


def test_an_offline_file_inside_a_run_directory_is_not_read_twice(tmp_path):
    run = make_run(tmp_path, FEDGH)
    offline_file(write_run(run) / "wandb" / "offline-run-1-abc", make_run(tmp_path, FEDGH, seed=9))
    (read,), problems = gather([tmp_path])
    assert (read.path, problems) == (run.path, [])


def test_an_offline_file_of_another_project_or_of_no_project(tmp_path):
    write_run(make_run(tmp_path, FEDAVG))
    offline_file(tmp_path / "x", Run(tmp_path, {"lr": 1}, {}, {}, []))
    other = tmp_path / "y" / "run-xyz.wandb"
    other.parent.mkdir()
    other.write_bytes(encode(b"\xff\xff\xff"))
    runs, problems = gather([tmp_path])
    assert len(runs) == 1
    assert "its config lacks aggregator._target_, algorithm._target_, num_rounds, seed; mend it" in problems[0]
    assert f"{other} cannot be read: it is not an offline file of W&B" in problems[1]


def export(path, runs, leave_out=()):
    """Write W&B's table of runs as its page exports it: everything quoted, nothing for what is missing."""
    lines = []
    for run in runs:
        own = {"Name": run.path.name, "State": "finished", "Runtime": 9, "Tags": ""}
        logged = {"_step": 2, "round": 2, "global/test/acc": 0.5, "partition": "media/images/partition.png"}
        settings = {key: json.dumps(value) if isinstance(value, bool) else value for key, value in run.settings.items()}
        lines.append({**own, **settings, **logged, **run.summary})
    columns = [key for key in dict.fromkeys(key for line in lines for key in line) if key not in leave_out]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, quoting=csv.QUOTE_ALL, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)


def test_an_exported_table_of_wandb_gives_results_without_rounds(tmp_path):
    ours = [make_run(tmp_path, FEDAVG), make_run(tmp_path, FEDGH, seed=2, **{"dataset.augmentation": "auto"})]
    export(tmp_path / "wandb_export.csv", ours)
    runs, problems = gather([tmp_path / "wandb_export.csv"])
    assert problems == []
    assert [run.seed for run in runs] == [1, 2]
    assert [run.outcome() for run in runs] == [run.outcome() for run in ours]
    assert [run.summary for run in runs] == [run.summary for run in ours]
    assert all(run.rows == [] for run in runs)


def test_an_export_adds_nothing_to_the_directories_of_the_same_runs(tmp_path):
    run = make_run(tmp_path / "logs", FEDAVG)
    write_run(run)
    export(tmp_path / "export.csv", [run])
    for order in ([tmp_path / "logs", tmp_path / "export.csv"], [tmp_path / "export.csv", tmp_path / "logs"]):
        (read,), problems = gather(order)
        assert (read.path, problems) == (run.path, [])


def test_an_export_without_all_columns_says_what_to_do(tmp_path):
    export(tmp_path / "export.csv", [make_run(tmp_path, FEDAVG)], leave_out=["num_rounds", "final/acc"])
    with pytest.raises(DataError, match=r"lacks num_rounds, final/acc; show all columns of the table, then export"):
        gather([tmp_path / "export.csv"])


def test_an_exported_run_that_is_not_finished_is_left_out(tmp_path):
    done, half = make_run(tmp_path, FEDAVG), make_run(tmp_path, FEDGH, name="half")
    export(tmp_path / "export.csv", [done, dataclasses.replace(half, summary={"rounds": 7})])
    runs, (problem,) = gather([tmp_path / "export.csv"])
    assert len(runs) == 1
    assert problem == f"{tmp_path / 'export.csv' / 'half'} is not finished (7 of 20 rounds) and is left out."


def test_settings_without_effect_do_not_set_runs_apart():
    run = Run(None, settings_of(FEDAVG, **{"paths.log_dir": "a", "trainer.precision": "bf16-mixed"}), {}, {}, [])
    assert "paths.log_dir" not in run.outcome()
    assert "seed" not in run.outcome()
    assert run.outcome()["trainer.precision"] == "bf16-mixed"
