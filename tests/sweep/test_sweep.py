"""Sweeps from the command line: interrupted, resumed, refused, with jobs that fail; and their tables."""

import contextlib
import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest
import torch
import yaml

from fedgh.core.command import setting
from fedgh.core.errors import ConfigurationError
from fedgh.report.groups import Groups
from fedgh.report.runs import find_runs
from fedgh.storage import checkpoint as checkpoints
from fedgh.storage.claim import claim
from fedgh.sweep import job as sweep_job
from fedgh.sweep import multirun as sweep
from fedgh.tracking import offline

TINY = [
    *("num_rounds=2", "partition=iid", "partition.num_clients=3", "algorithm.local_epochs=1", "trainer=cpu"),
    *("dataset.train_fraction=0.1", "model.hidden=[4]", "executor=sequential", "callback=none"),
]
SWEEP = ["-m", *TINY, "logger=csv", "aggregator=mean,fedgh", "seed=1,2"]


def sweep_of(answer):
    (folder,) = (answer.log_dir / "train" / "multiruns").iterdir()
    return folder


FINISHED = {}


@pytest.fixture
def finished(cli, tmp_path, tmp_path_factory):
    """The directory of ``SWEEP``, finished; run once for all tests, copied to where this test's sweeps are."""
    if not FINISHED:
        answer = cli(*SWEEP)
        assert answer.code == 0, answer.err
        kept = tmp_path_factory.mktemp("finished") / "sweep"
        FINISHED.update(out=answer.out, folder=sweep_of(answer).rename(kept))
    folder = tmp_path / "logs" / "train" / "multiruns" / "finished"
    shutil.copytree(FINISHED["folder"], folder)
    return folder


def bits(job):
    return checkpoints.load_newest(job / "checkpoints")[0].server.params


def lines_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def going_on(answer):
    """The arguments of the last command to go on with, the sweep's; those of its jobs come before it."""
    return [line.partition("fedgh-train ")[2] for line in answer.out.splitlines() if line.startswith("go on")][-1]


def test_a_sweep_interrupted_and_resumed_is_as_if_nothing_had_happened(cli, finished, monkeypatch, tmp_path, in_round):
    """Ctrl-C in round 1 of job 1; resumed, job 0 is skipped, job 1 goes on, 2 and 3 are run."""
    straight = finished.rename(tmp_path / "straight")
    with monkeypatch.context() as patch:
        in_round(patch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
        answer = cli(*SWEEP)
    assert answer.code == 128 + signal.SIGINT
    folder = sweep_of(answer)
    assert "1 finished, 1 stopped, 2 not begun" in answer.out, answer.out
    again = going_on(answer)
    assert shlex.split(again) == [*SWEEP, setting("sweep.resume", folder)]
    begun = (folder / "0" / "config.yaml").stat().st_mtime_ns
    answer = cli(*shlex.split(again))
    assert answer.code == 0, answer.err
    assert "4 finished" in answer.out
    assert sweep_of(answer) == folder
    assert (folder / "0" / "config.yaml").stat().st_mtime_ns == begun, "a finished job was run again"
    assert [row["round"] for row in lines_of(folder / "1" / "metrics.csv")] == ["1", "2"]
    assert f"resuming {folder / '1'} after round 1" in (folder / "1" / "train.log").read_text()
    for number in range(4):
        assert torch.equal(bits(folder / str(number)), bits(straight / str(number)))
    assert (folder / "seeds.csv").read_text() == (straight / "seeds.csv").read_text()
    assert len(Groups.of(find_runs([folder])).federations) == 1, "jobs from before and after are of one federation"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_between_two_jobs_is_never_lost(cli, monkeypatch, number):
    """What the handler raises is swallowed, as in the callback of a weak reference."""
    real = sweep_job.closing

    def signalled(folder):
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            os.kill(os.getpid(), number)
        return real(folder)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(sweep_job, "closing", signalled)
        answer = cli(*SWEEP)
    assert answer.code == 128 + number
    assert "1 finished, 3 not begun" in answer.out, answer.out
    assert signal.getsignal(number) is before
    folder = sweep_of(answer)
    elsewhere = folder.rename(folder.parent / "moved")
    again = going_on(answer).replace(str(folder), str(elsewhere))
    with monkeypatch.context() as patch:
        patch.setattr(sweep_job, "closing", signalled)
        answer = cli(*shlex.split(again))
    assert going_on(answer) == again, "stopped again, it is still that directory"


def test_a_signal_lost_while_a_job_is_set_up_stops_it_before_its_first_round(cli, monkeypatch):
    real = sweep_job.run_once

    def signalled(*arguments):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(sweep_job, "run_once", signalled)
    answer = cli(*SWEEP)
    assert answer.code == 130
    assert "1 stopped, 3 not begun" in answer.out, answer.out
    assert checkpoints.load_newest(sweep_of(answer) / "0" / "checkpoints")[0].server.round_index == 0


def test_a_job_that_another_process_is_at_keeps_its_record(cli, finished):
    """Resumed while it still runs, as SLURM's jobs do after Ctrl-C."""
    job, record = finished / "1", finished / ".jobs" / "00001.json"
    (job / "summary.json").unlink()
    record.write_text(record.read_text().replace('"finished"', '"running"'))
    with claim(job, ""):
        answer = cli(*SWEEP, f"sweep.resume={finished}")
    assert answer.code == 1
    assert "job 1 is left alone: " in answer.out + answer.err, answer.out
    assert "3 finished, 1 running" in answer.out.replace("1 running, 3 finished", "3 finished, 1 running"), answer.out
    assert json.loads(record.read_text())["status"] == "running"


def test_a_log_directory_that_cannot_be_written_is_one_line(cli, tmp_path):
    (tmp_path / "file").touch()
    answer = cli(*SWEEP, f"paths.log_dir={tmp_path / 'file'}")
    assert answer.code == 2
    expected = rf"error: Not a directory \({tmp_path}/file/.*\); is the log directory .* below a file\? paths"
    assert re.search(expected, answer.err), answer.err
    assert "Traceback" not in answer.err


def test_the_tables_at_the_end(finished):
    folder, out = finished, FINISHED["out"]
    jobs = lines_of(folder / "jobs.csv")
    assert [(job["aggregator"], job["seed"], job["status"]) for job in jobs] == [
        (name, seed, "finished") for name in ("mean", "fedgh") for seed in "12"
    ]
    accuracy = [json.loads((folder / str(n) / "summary.json").read_text())["final/acc"] for n in range(4)]
    assert [float(job["accuracy"]) for job in jobs] == accuracy
    first, second = lines_of(folder / "seeds.csv")
    assert (first["aggregator"], first["seeds"]) == ("mean", "2")
    assert float(first["accuracy_mean"]) == pytest.approx((accuracy[0] + accuracy[1]) / 2)
    assert float(second["accuracy_sd"]) == pytest.approx(abs(accuracy[2] - accuracy[3]) / 2**0.5)
    shown = f"{50 * (accuracy[0] + accuracy[1]):.2f} ± {100 * abs(accuracy[0] - accuracy[1]) / 2**0.5:.2f}"
    assert re.search(rf"mean +2 +{shown}", out), out
    assert re.search(r"written to      \S+/multiruns/", out)


def test_a_failed_job_is_recorded_and_the_others_run(cli):
    """A learning rate that is not finite after a step stops its run; the others do not notice."""
    answer = cli(*SWEEP[:-2], "on_nonfinite=raise", "algorithm.optimizer.lr=1e30,0.01")
    assert answer.code == 1
    folder = sweep_of(answer)
    assert "1 failed, 1 finished" in answer.out
    assert re.search(
        r"job 0 failed: round 1: the server's step would take .* where its loss is not finite", answer.out
    ), answer.out
    failed, finished = lines_of(folder / "jobs.csv")
    assert (failed["status"], failed["accuracy"], finished["status"]) == ("failed", "", "finished")
    assert failed["error"].startswith("round 1: the server's step")
    assert "Traceback" in (folder / "0" / "error.txt").read_text()
    assert not (folder / "1" / "error.txt").exists()


def test_a_job_that_failed_is_tried_again(cli, monkeypatch, in_round):
    def fail():
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        in_round(patch, 2, fail)
        answer = cli(*SWEEP[:-1])
    assert answer.code == 1
    assert "job 0 failed: MemoryError: no room" in answer.out, answer.out
    answer = cli(*SWEEP[:-1], "sweep.resume=true")
    assert answer.code == 0
    assert not (sweep_of(answer) / "0" / "error.txt").exists()


def test_a_job_whose_config_changed_is_refused_and_kept(cli, finished):
    job = finished / "2"
    stored = yaml.safe_load((job / "config.yaml").read_text())
    stored["algorithm"]["batch_size"] = 5  # as if the default had been another one
    (job / "config.yaml").write_text(yaml.safe_dump(stored))
    before = {path: path.read_bytes() for path in (job / "metrics.csv", job / "config.yaml", job / "summary.json")}
    answer = cli(*SWEEP, "sweep.resume=true")
    assert answer.code == 1
    assert re.search(
        r"job 2 failed: \S+/2 holds a run with other settings: algorithm.batch_size=5 instead of 64; it is left as it "
        r"was. Give the settings it was started with, go on with that one, fedgh-train resume=\S+/2, or start a new "
        r"sweep without sweep.resume",
        answer.out,
    ), answer.out
    assert {path: path.read_bytes() for path in before} == before


def test_a_sweep_with_other_settings_is_not_the_one_to_resume(cli, finished):
    folder = finished
    for argument, where in (
        ("sweep.resume=true", "no sweep in"),
        (f"sweep.resume={folder}", f"{folder} holds another"),
    ):
        answer = cli(*SWEEP[:-1], "seed=1,2,3", argument)
        assert answer.code == 2
        assert where in answer.err
        assert "started with seed=1,2, now seed=1,2,3. Repeat the command it was started with" in answer.err
    assert not (folder / "4").exists()


def test_nothing_to_resume(cli, tmp_path):
    answer = cli(*SWEEP, "sweep.resume=true")
    assert (answer.code, "there is no sweep in" in answer.err) == (2, True)
    answer = cli(*SWEEP, f"sweep.resume={tmp_path}")
    assert answer.code == 2
    assert f"{tmp_path} is not a sweep: it has no sweep.json; expected a directory such as" in answer.err
    answer = cli("-m", *TINY, "resume=a,b")
    assert answer.code == 2
    assert "resume=<directory> goes on with one run; for a sweep type sweep.resume=true" in answer.err


def test_two_sweeps_in_one_directory(cli, finished):
    inside = [*SWEEP, f"hydra.sweep.dir={finished}"]
    with claim(finished, ""):
        answer = cli(*inside, "sweep.resume=true")
    assert answer.code == 2
    assert re.search(
        rf"/finished is in use by process {os.getpid()} on this machine since .*; wait for it, or", answer.err
    )
    answer = cli(*inside)
    assert answer.code == 2
    assert re.search(
        r"/finished holds a sweep already; go on with it by sweep.resume=true, or choose another", answer.err
    )
    answer = cli(*inside, "sweep.resume=true")
    assert (answer.code, "4 finished" in answer.out) == (0, True)


def test_two_processes_in_one_run(cli):
    """The lock of another process, not of this one."""
    answer = cli(*TINY, "logger=csv")
    hold = "import sys, time; from pathlib import Path; from fedgh.storage.claim import claim\n"
    hold += "with claim(Path(sys.argv[1]), ''): print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", hold, answer.run_dir], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        again = cli(f"resume={answer.run_dir}", "num_rounds=3")
        assert again.code == 2
        assert f"{answer.run_dir} is in use by process {holder.pid} on this machine" in again.err
        holder.kill()
        holder.wait()
    assert cli(f"resume={answer.run_dir}", "num_rounds=3").code == 0


def wandb_runs(folder):
    """W&B's record of every run below a folder, and whether it was closed, as a user would sync them."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # its service writes the last block when it ends
    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        records = []
        for payload in offline._records(path.read_bytes()):
            records.append(wandb_internal_pb2.Record())
            records[-1].ParseFromString(payload)
        kinds = [record.WhichOneof("record_type") for record in records]
        run = records[kinds.index("run")].run
        found.append((run, "exit" in kinds, list(offline.history(path))))
    return found


def test_every_job_has_its_own_wandb_run_closed_at_its_end_also_when_it_fails(cli, monkeypatch):
    """The first job's disk is full between the beginning of its W&B run and its first round."""
    real, calls = checkpoints.save, iter(range(100))

    def full(*arguments, **settings):
        if next(calls) == 0:
            raise OSError(28, os.strerror(28), "checkpoints")
        return real(*arguments, **settings)

    monkeypatch.setattr(checkpoints, "save", full)
    arguments = [*SWEEP[:-1], "logger=wandb", "logger.mode=offline", "tags=[night]"]
    answer = cli(*arguments)
    assert answer.code == 1
    folder = sweep_of(answer)
    runs = [wandb_runs(folder / str(number)) for number in range(2)]
    assert all(len(found) == 1 and found[0][1] for found in runs), "a job without exactly one closed run"
    assert len({found[0][0].run_id for found in runs}) == 2
    assert {found[0][0].run_group for found in runs} == {folder.name}
    assert {tuple(found[0][0].tags) for found in runs} == {("night",)}
    assert "aggregator=fedgh" in runs[1][0][0].display_name
    ((summary, closed, rows),) = wandb_runs(folder)
    assert (summary.run_group, closed) == (folder.name, True)
    assert any(row.get("seeds._type") == "table-file" for row in rows)
    stored = yaml.safe_load((folder / "1" / "config.yaml").read_text())
    assert stored["logger"]["wandb"]["group"] == folder.name, "the job would leave its group when resumed alone"


@pytest.mark.parametrize(
    ("choice", "package", "extra"),
    [
        ("launcher=joblib", "hydra_joblib_launcher", "joblib"),
        ("launcher=submitit_local", "hydra_submitit_launcher", "submitit"),
        ("launcher=submitit_slurm", "hydra_submitit_launcher", "submitit"),
    ],
)
def test_a_launcher_whose_package_is_missing(cli, monkeypatch, choice, package, extra):
    monkeypatch.setattr(sweep, "installed", lambda module: package not in module)
    answer = cli(*SWEEP, f"hydra/{choice}")
    assert answer.code == 2
    assert f'hydra/{choice} needs {package}, which is not installed; type pip install "fedgh[{extra}]"' in answer.err
    assert not answer.log_dir.exists()


def test_what_is_installed():
    assert sweep.installed("json")
    assert not sweep.installed("nowhere.at.all")


def test_processes_side_by_side_get_a_gpu_each(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")

    def process(number):
        """What a new process would see, as long as it lives."""
        monkeypatch.setattr(sweep_job, "_gpu", [])
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
        sweep_job._take_gpu(tmp_path, number)
        return sweep_job._gpu, os.environ["CUDA_VISIBLE_DEVICES"]

    (first,), shown = process(0)
    assert shown == "4"
    sweep_job._take_gpu(tmp_path, 2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4", "a process keeps its GPU"
    (second,), shown = process(1)
    assert shown == "7"
    (third,), shown = process(3)
    assert shown == "7", "more processes than GPUs share them"
    first.close()
    assert process(5)[1] == "4"
    for held in (second, third, *sweep_job._gpu):
        held.close()


def test_a_claim_ends_with_its_context(tmp_path):
    with ExitStack() as held:
        held.enter_context(claim(tmp_path / "new", "wait"))
        with (
            pytest.raises(ConfigurationError, match=r"/new is in use by process \d+ on this machine .*; wait"),
            claim(tmp_path / "new", "wait"),
        ):
            pass
    with claim(tmp_path / "new", "wait"):
        pass
