"""Runs from the command line: stop and resume, sweeps, what is written, and input that cannot be right."""

import csv
import errno
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fedgh.cli import carry_out
from fedgh.executor.sequential import SequentialExecutor
from fedgh.storage import checkpoint as checkpoints
from fedgh.tracking import offline
from fedgh.tracking.recorder import CsvTable, read_csv

TINY = [
    *("num_rounds=4", "partition=iid", "partition.num_clients=4", "algorithm.local_epochs=1", "trainer=cpu"),
    *("dataset.train_fraction=0.2", "model.hidden=[8]", "executor=sequential"),
]
QUIET = [*TINY, "logger=csv", "callback=none"]


def final(run_dir):
    return checkpoints.load_newest(run_dir / "checkpoints")[0].server


def table(run_dir):
    """The rows of ``metrics.csv`` as text, without what a clock says."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


def assert_same(run_dir, reference):
    ours, theirs = final(run_dir), final(reference)
    assert ours.round_index == theirs.round_index
    for name in ("params", "buffers", "counters"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert ours.optimizer.keys() == theirs.optimizer.keys()
    assert all(torch.equal(ours.optimizer[k], theirs.optimizer[k]) for k in ours.optimizer)
    assert table(run_dir) == table(reference)


STRAIGHT = {}


def straight_run(cli, *arguments):
    """Run to the end, out of the way of the next run; the same arguments are run once for all tests."""
    if arguments not in STRAIGHT:
        answer = cli(*arguments)
        assert answer.code == 0, answer.err
        STRAIGHT[arguments] = answer.run_dir.rename(answer.log_dir.parent / "straight")
    return STRAIGHT[arguments]


def test_a_run_writes_what_its_reader_needs_and_says_where(cli):
    answer = cli(*QUIET)
    assert answer.code == 0
    run_dir = answer.run_dir
    files = {p.name for p in run_dir.iterdir()}
    assert {"config.yaml", "provenance.json", "partition.npz", "partition.png", "metrics.csv", "summary.json"} <= files
    assert {"run.png", "checkpoints"} <= files
    rows = table(run_dir)
    assert [row["round"] for row in rows] == ["1", "2", "3", "4"]
    for name in ("global/test/acc", "global/test/loss", "client/test/acc_worst10", "client/train/loss"):
        assert 0 <= float(rows[-1][name]) < 100
    for name in ("conflict/ratio", "conflict/cosine_min", "conflict/cosine_mean", "federation/num_clients"):
        assert name in rows[0]
    for name in ("gain", "norm_ratio", "angle", "projections", "removed_norm"):
        assert f"harmonization/{name}" in rows[0]
    summary = json.loads((run_dir / "summary.json").read_text())
    accuracies = [float(row["global/test/acc"]) for row in rows]
    assert summary["final/acc"] == accuracies[-1]
    assert summary["last10/acc_best"] == max(accuracies)
    assert f"{accuracies[-1]:.2%} final, {max(accuracies):.2%} best of the last 10" in answer.out
    assert "4 of 4" in answer.out
    assert f"written to      {run_dir}" in answer.out
    assert f"fedgh-evaluate checkpoint={run_dir}/checkpoints/round_000004.ckpt" in answer.out
    assert f"fedgh-train resume={run_dir} num_rounds=8" in answer.out
    assert "clients             4, together" in answer.out
    assert not list(run_dir.rglob("*.tmp"))


def test_same_seed_same_bits_other_seed_other_bits(cli):
    first = straight_run(cli, *QUIET)
    again = cli(*QUIET).run_dir
    assert_same(again, first)
    shutil.rmtree(again)
    other = cli(*QUIET, "seed=2").run_dir
    assert not torch.equal(final(other).params, final(first).params)
    hashes = {checkpoints.load_newest(r / "checkpoints")[0].partition for r in (first, other)}
    assert len(hashes) == 2


def test_raising_num_rounds_goes_on_as_if_it_had_been_so_from_the_start(cli):
    straight = straight_run(cli, *QUIET, "server_optimizer=adam", "algorithm=fednova")
    answer = cli(*QUIET, "server_optimizer=adam", "algorithm=fednova", "num_rounds=2")
    run_dir = answer.run_dir
    assert "2 of 2" in answer.out
    answer = cli(f"resume={run_dir}", "num_rounds=4")
    assert answer.code == 0, answer.err
    assert_same(run_dir, straight)
    assert "4 of 4" in answer.out
    assert "num_rounds: 4" in (run_dir / "config.yaml").read_text()


def test_resuming_a_finished_run_changes_nothing(cli):
    run_dir = cli(*QUIET).run_dir
    before, rows = final(run_dir), table(run_dir)
    answer = cli(f"resume={run_dir}")
    assert answer.code == 0
    assert torch.equal(final(run_dir).params, before.params)
    assert table(run_dir) == rows


def test_shadows_go_on_with_what_they_remembered(cli):
    shadows = ["callback=shadow", "shadow.aggregators=[gradvac,fedadp]", "shadow.every=1", "sampler.fraction=0.5"]

    def found(run_dir):
        rows = read_csv(run_dir / "metrics.csv")
        return [{key: value for key, value in row.items() if key.startswith("shadow/")} for row in rows]

    straight = straight_run(cli, *TINY, "logger=csv", *shadows)
    run_dir = cli(*TINY, "logger=csv", *shadows, "num_rounds=2").run_dir
    resumed = cli(f"resume={run_dir}", "num_rounds=4")
    assert resumed.code == 0, resumed.err
    assert "empty memory" not in resumed.out + resumed.err
    assert found(run_dir) == found(straight)
    assert [len(row) for row in found(straight)] == 4 * [2 * 4]


def test_resume_refuses_other_settings(cli):
    run_dir = cli(*QUIET, "num_rounds=1").run_dir
    rows = table(run_dir)
    answer = cli(f"resume={run_dir}", "algorithm.local_epochs=3", "seed=4", "num_rounds=2")
    assert answer.code == 2
    assert "a resumed run keeps its own config, but algorithm.local_epochs=3, seed=4 was given too" in answer.err
    assert "only num_rounds may change" in answer.err
    assert table(run_dir) == rows


def test_a_damaged_newest_checkpoint_is_reported_and_the_previous_one_used(cli):
    straight = straight_run(cli, *QUIET)
    run_dir = cli(*QUIET, "num_rounds=3").run_dir
    newest = run_dir / "checkpoints" / "round_000003.ckpt"
    newest.write_bytes(newest.read_bytes()[:1000])
    answer = cli(f"resume={run_dir}", "num_rounds=4")
    assert answer.code == 0
    assert "round_000003.ckpt cannot be read" in answer.out + answer.err
    assert "trying the one before it" in answer.out + answer.err
    assert_same(run_dir, straight)


def test_a_run_whose_folder_was_moved_resumes_there(cli, tmp_path):
    """Nothing is written to where it was."""
    straight = straight_run(cli, *TINY, "logger=csv")
    assert list(straight.rglob("*.parquet"))
    run_dir = cli(*TINY, "logger=csv", "num_rounds=2").run_dir
    moved = tmp_path / "elsewhere"
    shutil.move(run_dir, moved)
    answer = cli(f"resume={moved}", "num_rounds=4")
    assert answer.code == 0, answer.err
    assert_same(moved, straight)
    assert not run_dir.exists()
    assert {p.relative_to(moved) for p in moved.rglob("*.parquet")} == {
        p.relative_to(straight) for p in straight.rglob("*.parquet")
    }


class Killed(BaseException):
    """What SIGKILL would do, at a place of our choice."""


def kill_in_the_middle_of_saving(monkeypatch):
    real = torch.save

    def half(content, file):
        if content["server"]["round_index"] == 3:
            file.write(b"half a checkpoint")
            raise Killed
        real(content, file)

    monkeypatch.setattr(torch, "save", half)


def kill_before_the_checkpoint_gets_its_name(monkeypatch):
    real = Path.replace

    def replace(self, target):
        if Path(target).name == "round_000003.ckpt":
            raise Killed
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)


def kill_before_the_second_copy_gets_its_name(monkeypatch):
    real = Path.replace

    def replace(self, target):
        if Path(target).name == "round_000003.zip":
            raise Killed
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)


def kill_before_old_checkpoints_are_removed(monkeypatch):
    real = Path.unlink

    def unlink(self, missing_ok=False):
        if self.name == "round_000001.ckpt":
            raise Killed
        return real(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)


def kill_in_the_middle_of_a_line(monkeypatch):
    real = CsvTable.append

    def append(self, row):
        if row["round"] == 3:
            with self.path.open("a") as file:
                file.write("3,4.0,0.")
            raise Killed
        real(self, row)

    monkeypatch.setattr(CsvTable, "append", append)


def at_the_second_client_of(monkeypatch, round_number, act):
    """Act once while a cohort trains; only the sequential executor asks for one client's batches after another's."""
    real, acted = SequentialExecutor.batches, []

    def batches(self, client_id, round_index, *others, **settings):
        if (client_id, round_index) == (1, round_number - 1) and not acted:  # Lightning may ask twice
            acted.append(True)
            act()
        return real(self, client_id, round_index, *others, **settings)

    monkeypatch.setattr(SequentialExecutor, "batches", batches)


def kill_in_the_middle_of_a_cohort(monkeypatch):
    def die():
        raise Killed

    at_the_second_client_of(monkeypatch, 3, die)


@pytest.mark.parametrize(
    "kill",
    [
        kill_in_the_middle_of_saving,
        kill_before_the_checkpoint_gets_its_name,
        kill_before_the_second_copy_gets_its_name,
        kill_before_old_checkpoints_are_removed,
        kill_in_the_middle_of_a_line,
        kill_in_the_middle_of_a_cohort,
    ],
)
def test_killed_anywhere_and_resumed_is_as_if_nothing_had_happened(cli, monkeypatch, tmp_path, kill):
    arguments = [*QUIET, "algorithm=feddecorr", "server_optimizer=momentum"]
    straight = straight_run(cli, *arguments)
    with monkeypatch.context() as patch:
        kill(patch)
        with pytest.raises(Killed):
            cli(*arguments)
    (run_dir,) = (tmp_path / "logs" / "train" / "runs").iterdir()
    assert cli(f"resume={run_dir}").code == 0
    assert_same(run_dir, straight)
    assert not list(run_dir.rglob("*.tmp"))


def command(*arguments):
    return [sys.executable, "-m", "fedgh.cli.train", *map(str, arguments)]


def wandb_rows(run_dir):
    """What a user would sync: all rows of all offline files of the run, by name."""
    import wandb

    wandb.teardown()  # its service writes the last block when it ends
    run_id = checkpoints.load_newest(run_dir / "checkpoints")[0].wandb_id
    files = offline.offline_files(run_dir, run_id)
    return run_id, [row for path in files for row in offline.history(path)]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments(cli, tmp_path, kills):
    """Real kills of a real process, then the resume command: the same bits, the same table, no round twice.

    Started as from a notebook that uses W&B itself, whose service must not keep a killed run open.
    """
    import wandb

    num_rounds = 10 + 10 * kills
    arguments = [*TINY, f"num_rounds={num_rounds}", "callback=none", f"paths.log_dir={tmp_path / 'logs'}"]
    wandb.init(mode="offline", dir=str(tmp_path), settings=wandb.Settings(console="off", silent=True)).finish()
    assert "WANDB_SERVICE" in os.environ
    words, recorded, said = [*arguments, "logger.mode=offline"], 0, tmp_path / "said"
    for _ in range(kills):
        with said.open("w") as file:
            process = subprocess.Popen(
                command(*words),
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "WANDB_SILENT": "true", "OMP_NUM_THREADS": str(torch.get_num_threads())},
            )
        goal = recorded + 3
        while recorded < goal and process.poll() is None:
            time.sleep(0.02)
            files = list((tmp_path / "logs").glob("train/runs/*/metrics.csv"))
            recorded = len(files[0].read_text().splitlines()) - 1 if files else 0
        time.sleep(random.random() * 0.1)
        process.kill()
        process.wait()
        assert recorded >= goal, f"the process ended by itself: {said.read_text()[-2000:]}"
        (run_dir,) = (tmp_path / "logs" / "train" / "runs").iterdir()
        words = [f"resume={run_dir}"]
        rounds = final(run_dir).round_index
        assert rounds >= goal - 1
    assert rounds < num_rounds, "the kill came too late to test anything"
    answer = cli(*words)
    assert answer.code == 0, answer.err
    killed = run_dir.rename(tmp_path / "killed")
    straight = straight_run(cli, *arguments, "logger=csv")
    assert_same(killed, straight)
    _, rows = wandb_rows(killed)
    logged = [row["round"] for row in rows if "round" in row]
    assert sorted(set(logged)) == sorted(logged), "a round was logged twice"
    assert logged == list(range(1, num_rounds + 1)), "a round is missing"


def test_the_resume_command_is_printed_before_the_first_round(cli, monkeypatch):
    """Who is killed cannot print it any more."""

    def stop():
        raise Killed

    at_the_second_client_of(monkeypatch, 1, stop)
    logged = []
    monkeypatch.setattr(sys.stdout, "write", logged.append)
    with pytest.raises(Killed):
        cli(*QUIET)
    assert re.search(r"fedgh-train resume=\S+/train/runs/\S+", "".join(logged))


def signal_in_round(monkeypatch, number, round_number, times=1):
    """Send a real signal to this process while a client of that round trains."""

    def send():
        for _ in range(times):
            os.kill(os.getpid(), number)

    at_the_second_client_of(monkeypatch, round_number, send)


@pytest.mark.parametrize(
    ("number", "times", "finished"), [(signal.SIGINT, 1, 2), (signal.SIGINT, 2, 1), (signal.SIGTERM, 1, 1)]
)
def test_a_signal_ends_the_run_cleanly_and_the_printed_command_resumes_it(cli, monkeypatch, number, times, finished):
    """The first Ctrl-C finishes the round, the second and SIGTERM abandon it."""
    straight = straight_run(cli, *QUIET)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        signal_in_round(patch, number, 2, times)
        answer = cli(*QUIET)
    assert answer.code == 128 + number
    run_dir = answer.run_dir
    assert final(run_dir).round_index == finished
    assert f"rounds          {finished} of 4" in answer.out
    (printed,) = re.findall(r"resume          fedgh-train (resume=\S+)\n", answer.out)
    assert printed == f"resume={run_dir}"
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert cli(printed).code == 0
    assert_same(run_dir, straight)


def test_a_signal_between_two_checkpoints_loses_no_finished_round(cli, monkeypatch):
    with monkeypatch.context() as patch:
        signal_in_round(patch, signal.SIGINT, 2)
        answer = cli(*QUIET, "checkpoint.every=100")
    assert final(answer.run_dir).round_index == 2


def test_a_run_stopped_in_its_first_round_can_be_resumed(cli, monkeypatch):
    """The command that it prints has to work."""
    straight = straight_run(cli, *QUIET)
    with monkeypatch.context() as patch:
        signal_in_round(patch, signal.SIGTERM, 1)
        answer = cli(*QUIET)
    assert answer.code == 128 + signal.SIGTERM
    (printed,) = re.findall(r"resume          fedgh-train (resume=\S+)\n", answer.out)
    resumed = cli(printed)
    assert resumed.code == 0, resumed.err
    assert_same(answer.run_dir, straight)


def test_two_signals_outside_a_fit_end_cleanly_too(cli, monkeypatch):
    """An impatient Ctrl-C may hit evaluation or recording."""
    real = CsvTable.append

    def append(self, row):
        real(self, row)
        if row["round"] == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    straight = straight_run(cli, *QUIET)
    with monkeypatch.context() as patch:
        patch.setattr(CsvTable, "append", append)
        answer = cli(*QUIET)
    assert answer.code == 128 + signal.SIGINT
    assert f"fedgh-train resume={answer.run_dir}" in answer.out
    assert cli(f"resume={answer.run_dir}").code == 0
    assert_same(answer.run_dir, straight)


def test_many_loggers_and_offline_wandb_over_a_resume(cli):
    """One W&B run over two processes: every round once, on the round axis, with its histograms."""
    import wandb

    pytest.importorskip("tensorboard")
    answer = cli(*TINY, "num_rounds=2", "logger=many", "logger.mode=offline", "callback.cosine_picture.every=1")
    assert answer.code == 0, answer.err
    assert wandb.run is None
    run_dir = answer.run_dir
    time.sleep(1.1)  # W&B names a file by the second
    answer = cli(f"resume={run_dir}", "num_rounds=4")
    assert answer.code == 0, answer.err
    assert wandb.run is None
    run_id, rows = wandb_rows(run_dir)
    assert len(offline.offline_files(run_dir, run_id)) == 2
    assert "did not take round" not in answer.out + answer.err
    rounds = [row for row in rows if "round" in row]
    assert [row["round"] for row in rounds] == [1, 2, 3, 4]
    assert [row["_step"] for row in rounds] == [1, 2, 3, 4]
    for row, line in zip(rounds, read_csv(run_dir / "metrics.csv"), strict=True):
        for name, value in line.items():
            assert row[name] == pytest.approx(value)
        assert row["conflict/cosine._type"] == "histogram"
        assert sum(row["conflict/cosine.values"]) == 4 * 3 / 2
        edges = row["conflict/cosine.bins"]
        assert (edges[0], edges[-1], len(edges)) == (-1, 1, 65)
        assert row["conflict/cosine_matrix._type"] == "image-file"
    defined = {
        record.metric.name or record.metric.glob_name: record.metric for record in wandb_records(run_dir, run_id)
    }
    assert {"round", "*"} <= set(defined)
    assert defined["*"].step_metric == "round" or defined["*"].step_metric_index
    assert list((run_dir / "tensorboard").glob("events.*"))


def wandb_records(run_dir, run_id, kind="metric"):
    from wandb.proto import wandb_internal_pb2

    for path in offline.offline_files(run_dir, run_id):
        for payload in offline._records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(payload)
            if record.WhichOneof("record_type") == kind:
                yield record


@pytest.mark.parametrize("part", ["introduce", "Recorder"])
def test_an_error_before_the_first_round_closes_the_wandb_run_as_failed(cli, monkeypatch, part):
    import wandb

    def full(*arguments, **settings):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "provenance.json")

    monkeypatch.setattr(f"fedgh.cli.carry_out.{part}", full)
    answer = cli(*TINY, "num_rounds=1", "callback=none", "logger.mode=offline")
    assert answer.code == 2
    assert "No space left on device" in answer.err
    assert wandb.run is None, "the next run of this process would be mistaken for it"
    (file,) = answer.run_dir.glob("wandb/offline-run-*/run-*.wandb")
    wandb.teardown()
    (record,) = wandb_records(answer.run_dir, file.stem.removeprefix("run-"), "exit")
    assert record.exit.exit_code == 1


def test_a_sweep_gives_each_job_its_directory_and_its_run_in_one_group(cli):
    import wandb

    different = [a for a in TINY if not a.startswith("partition")] + ["partition=classes", "algorithm.batch_size=8"]
    parts = ["algorithm=fedavg,fednova", "aggregator=mean,fedgh"]
    answer = cli("-m", *different, "num_rounds=1", "callback=none", "logger.mode=offline", *parts)
    assert answer.code == 0, answer.err
    assert wandb.run is None
    (sweep,) = (answer.log_dir / "train" / "multiruns").iterdir()
    jobs = [sweep / str(number) for number in range(4)]
    assert all((job / "metrics.csv").exists() for job in jobs)
    runs = []
    for job in jobs:
        run_id, rows = wandb_rows(job)
        assert [row["round"] for row in rows if "round" in row] == [1]
        (record,) = wandb_records(job, run_id, "run")
        runs.append(record.run)
        assert list(wandb_records(job, run_id, "exit")), "the run was not closed"
    assert len({run.run_id for run in runs}) == 4
    assert {run.run_group for run in runs} == {sweep.name}
    names = [run.display_name for run in runs]
    assert len(set(names)) == 4
    assert all("algorithm=" in name and "aggregator=" in name for name in names)
    assert len({tuple(final(job).params.tolist()) for job in jobs}) == 4


# What cannot be right: arguments, and what the answer has to say. All of it before any training.
BAD = {
    "misspelt key": (
        ["algorithm.local_epoch=2"],
        r"there is no key algorithm.local_epoch \(did you mean algorithm.local_epochs\?\)",
    ),
    "unknown root key": (["num_round=2"], r"there is no key num_round \(did you mean num_rounds\?\)"),
    "unknown choice": (["algorithm=fedavgg"], r"fedavgg.*(.|\n)*fedavg"),
    "parameter of another algorithm": (
        ["+algorithm.mu=0.1"],
        r"algorithm.mu is not a parameter of fedgh.algorithm.fedavg.FedAvg; leave it out \(~algorithm.mu\); it has: ",
    ),
    "parameter of no executor": (["+executor.foo=1"], r"executor.foo is not a parameter"),
    "parameter of no trainer": (["+trainer.precison=32"], r"trainer.precison=32 is not .*did you mean precision\?"),
    "alpha 0": (["partition=dirichlet", "partition.alpha=0"], r"partition.alpha must be .*, got 0"),
    "alpha negative": (["partition=dirichlet_guarded", "partition.alpha=-1"], r"partition.alpha must be .*, got -1"),
    "alpha a word": (["partition=dirichlet", "partition.alpha=low"], r"partition.alpha must be a number, got 'low'"),
    "fraction 0": (["sampler.fraction=0"], r"sampler.fraction must be above 0 and at most 1, got 0"),
    "fraction 1.5": (["sampler.fraction=1.5"], r"sampler.fraction must be above 0 and at most 1, got 1.5"),
    "more clients than classes": (
        ["partition=classes", "partition.num_clients=11"],
        r"partition.num_clients must be at most the number of classes \(10\) .*got 11; use fewer clients or",
    ),
    "an empty client": (
        ["partition=dirichlet", "partition.num_clients=60", "partition.alpha=0.001", "partition.max_redraws=0"],
        r"no partition found in 1 draws; in the last, clients .* had fewer than partition.min_size=1 .*try another",
    ),
    "more clients than examples": (
        ["partition.num_clients=5000"],
        r"samples cannot give 5000 clients 1 each; use fewer",
    ),
    "missing data folder": (["dataset=cifar10", "dataset.root=/nonexistent"], r"(?s)/nonexistent.*dataset.root="),
    "missing parquet folder": (
        ["dataset=parquet", "dataset.root=/nonexistent"],
        r"dataset.root=/nonexistent is not a folder; looked there for train-\*.parquet",
    ),
    "no epochs": (["algorithm.local_epochs=0"], r"algorithm.local_epochs must be a positive integer, got 0"),
    "negative mu": (["algorithm=fedprox", "algorithm.mu=-0.5"], r"algorithm.mu must be 0 or more; .*, got -0.5"),
    "mu a word": (["algorithm=fedprox", "algorithm.mu=much"], r"algorithm.mu must be a number, got 'much'"),
    "fednova with Adam": (
        ["algorithm=fednova", "algorithm.optimizer._target_=torch.optim.Adam", "~algorithm.optimizer.momentum"],
        r"algorithm=fednova knows the normalization of SGD with plain momentum only, got Adam",
    ),
    "negative learning rate": (["algorithm.optimizer.lr=-1"], r"algorithm.optimizer.*-1"),
    "no such optimizer": (
        ["algorithm.optimizer._target_=torch.optim.Nope"],
        r"algorithm.optimizer._target_ names torch.optim.Nope, which cannot be imported",
    ),
    "no rounds": (["num_rounds=0"], r"num_rounds must be a positive integer, got 0"),
    "half a round": (["num_rounds=1.5"], r"num_rounds must be a positive integer, got 1.5"),
    "no evaluation": (["evaluation.every=0"], r"evaluation.every must be a positive integer, got 0"),
    "negative seed": (["seed=-1"], r"seed must be an integer of 0 or more, got -1"),
    "policy": (["on_nonfinite=maybe"], r"on_nonfinite must be one of drop, raise, got 'maybe'"),
    "server learning rate": (["server_optimizer.lr=0"], r"server_optimizer.lr must be positive, got 0"),
    "fedgh's order": (["aggregator.order=best"], r"aggregator.order must be one of random, .*got 'best'"),
    "shape of the model": (["model=cnn2", "model.channels=[3]"], r"model.channels must hold 2 widths, got \[3\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_training(cli, case):
    arguments, message = BAD[case]
    base = ["logger=csv", "callback=none", "trainer=cpu"]
    if not any(argument.startswith("partition=") for argument in arguments):
        base.append("partition=iid")
    answer = cli(*base, *arguments)
    assert answer.code == 2
    assert re.search(message, answer.err), answer.err
    assert "Traceback" not in answer.err
    assert not list(answer.log_dir.rglob("metrics.csv")), "training had begun"


def test_a_bad_mode_of_wandb_is_refused(cli):
    answer = cli("logger.mode=maybe")
    assert answer.code == 2
    assert "logger.mode must be one of auto, online, offline, disabled, got 'maybe'" in answer.err


def test_nothing_to_resume(cli, tmp_path):
    """Hydra must not make the missing directory first."""
    answer = cli(f"resume={tmp_path / 'nowhere'}")
    assert answer.code == 2
    assert re.search(r"resume=\S+/nowhere is not a directory; expected a run such as", answer.err), answer.err
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "empty").mkdir()
    answer = cli(f"resume={tmp_path / 'empty'}")
    assert answer.code == 2
    assert re.search(r"/empty/checkpoints holds no file round_<t>.ckpt; .*Start the run again without", answer.err)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_where_there_is_none(cli):
    answer = cli(*QUIET, "trainer=gpu")
    assert answer.code == 2
    assert "trainer=gpu was asked for, but PyTorch finds no GPU here; type trainer=cpu or trainer=auto" in answer.err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_log_directory(cli, monkeypatch, number):
    real = Path.open

    def refuse(self, *arguments, **settings):
        if self.name == ".write_probe":
            raise OSError(number, os.strerror(number), str(self))
        return real(self, *arguments, **settings)

    monkeypatch.setattr(Path, "open", refuse)
    answer = cli(*QUIET)
    assert answer.code == 2
    assert re.search(rf"cannot write to \S+: {os.strerror(number)}; free space or choose another folder", answer.err)
    assert not list(answer.log_dir.rglob("metrics.csv"))


def test_a_log_directory_that_cannot_be_made(cli, tmp_path):
    (tmp_path / "file").write_text("")
    answer = cli(*QUIET, f"paths.log_dir={tmp_path / 'file' / 'logs'}")
    assert answer.code == 2
    assert "Not a directory" in answer.err
    assert "paths.log_dir=<folder>" in answer.err
    assert "Traceback" not in answer.err


def test_a_disk_that_fills_up_while_training_is_named_and_the_rounds_before_are_kept(cli, monkeypatch):
    real = torch.save

    def full(content, file):
        if content["server"]["round_index"] == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(content, file)

    straight = straight_run(cli, *QUIET)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        answer = cli(*QUIET)
    assert answer.code == 2
    assert re.search(r"cannot write checkpoint \S+round_000003.ckpt: .*No space left on device", answer.err)
    assert cli(f"resume={answer.run_dir}").code == 0
    assert_same(answer.run_dir, straight)


def test_updates_that_are_not_finite_are_dropped_or_stop_the_run(cli, caplog):
    hot = [*QUIET, "num_rounds=2", "algorithm.optimizer.lr=1e30"]
    with caplog.at_level(logging.WARNING):
        answer = cli(*hot)
    assert answer.code == 0
    assert float(table(answer.run_dir)[0]["federation/num_dropped"]) == 4
    assert torch.equal(final(answer.run_dir).params, final(answer.run_dir).params.nan_to_num())
    shutil.rmtree(answer.run_dir)
    answer = cli(*hot, "on_nonfinite=raise")
    assert answer.code == 2
    assert re.search(r"round 1: the update of clients 0, 1, 2, 3 is not finite .*lower algorithm.optimizer", answer.err)


def test_checkpoints_and_evaluations_come_when_asked(cli):
    answer = cli(*QUIET, "num_rounds=5", "evaluation.every=2", "checkpoint.every=3", "checkpoint.keep=1")
    rows = table(answer.run_dir)
    assert [row["round"] for row in rows if row["global/test/acc"]] == ["2", "4", "5"]
    assert [p.name for p in (answer.run_dir / "checkpoints").iterdir()] == ["round_000005.ckpt"]


def test_a_phase_after_training_has_its_own_file_and_stays_out_of_the_rounds(cli, tmp_path):
    """CCVR is FedAvg to the bit until the last round; what comes after it is saved apart and can be evaluated."""
    plain = cli(*QUIET, "num_rounds=3", f"hydra.run.dir={tmp_path}/plain")
    ours = cli(*QUIET, "num_rounds=2", "algorithm=ccvr", f"hydra.run.dir={tmp_path}/ccvr")
    assert "completed       " in ours.out
    first = json.loads((tmp_path / "ccvr" / "completed.json").read_text())
    assert 0 <= first["completed/global/test/acc"] <= 1
    assert cli(f"resume={tmp_path}/ccvr", "num_rounds=3").code == 0
    rounds = [checkpoints.load_newest(tmp_path / name / "checkpoints")[0].server for name in ("plain", "ccvr")]
    assert torch.equal(rounds[0].params, rounds[1].params), "the phase after two rounds leaves no trace in the third"
    completed, path = checkpoints.load_newest(tmp_path / "ccvr" / "completed")
    assert path.name == "round_000003.ckpt"
    assert not torch.equal(completed.server.params, rounds[1].params)
    answer = cli(f"checkpoint={path}", f"paths.output_dir={tmp_path}/out", task="evaluate")
    assert answer.code == 0
    evaluated = json.loads((tmp_path / "out" / "evaluation.json").read_text())["global/test/acc"]
    again = json.loads((tmp_path / "ccvr" / "completed.json").read_text())["completed/global/test/acc"]
    assert evaluated == pytest.approx(again)
    assert plain.code == 0


def test_a_run_keeps_the_name_and_the_group_that_were_given(root_config, monkeypatch):
    monkeypatch.delenv("WANDB_NAME", raising=False)
    cfg = root_config("logger=wandb", "logger.wandb.group=mine", "logger.wandb.name=this", "name=x", "seed=3")
    assert carry_out.name_run(cfg) == ("x, seed 3", None)
    assert (cfg.logger.wandb.name, cfg.logger.wandb.group) == ("this", "mine")
    cfg = root_config("logger=wandb", "name=x", "seed=3")
    carry_out.name_run(cfg)
    assert (cfg.logger.wandb.name, cfg.logger.wandb.group) == ("x, seed 3", None)


def test_a_job_of_a_sweep_is_named_after_it_unless_it_has_names(root_config, monkeypatch):
    monkeypatch.setattr(carry_out, "in_sweep", lambda: True)
    hydra = SimpleNamespace(
        job=SimpleNamespace(override_dirname="seed=3", num=7), sweep=SimpleNamespace(dir="logs/night")
    )
    monkeypatch.setattr(carry_out.HydraConfig, "get", lambda: hydra)
    cfg = root_config("logger=wandb", "logger.wandb.group=mine", "name=x")
    assert carry_out.name_run(cfg) == ("seed=3", "night")
    assert (cfg.logger.wandb.name, cfg.logger.wandb.group) == ("seed=3", "mine")
    cfg, hydra.job.override_dirname = root_config("logger=wandb", "logger.wandb.name=this", "name=x"), ""
    assert carry_out.name_run(cfg) == ("job 7", "night")
    assert (cfg.logger.wandb.name, cfg.logger.wandb.group) == ("this", "night")
