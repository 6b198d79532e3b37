"""What the launcher of SLURM jobs says and does, with a queue that is told; the real SLURM is in ``test_slurm.py``."""

import logging
import os
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedgh.core.errors import ConfigurationError
from fedgh.storage.jobs import read_jobs, write_job
from fedgh.sweep import slurm

plugin = import_module("hydra_plugins.fedgh_submitit")

SQUEUE = """#!/bin/sh
cat {folder}/answer
cat {folder}/errors >&2
exit $(cat {folder}/status)
"""


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """Return ``queue(answer, errors="", status=0)``: what ``squeue`` says from now on."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "squeue").write_text(SQUEUE.format(folder=folder))
    (folder / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def says(answer, errors="", status=0):
        for name, text in (("answer", answer), ("errors", errors), ("status", str(status))):
            (folder / name).write_text(text)

    return says


@pytest.mark.parametrize("delay", [60, 120, 61])
def test_a_delay_that_is_not_below_the_time_is_refused(delay):
    with pytest.raises(
        ConfigurationError,
        match=rf"hydra.launcher.signal_delay_s={delay} is not below hydra.launcher.timeout_min=1, 60 seconds: a job "
        "would be told to stop before it has begun, and not be queued again; type hydra.launcher.signal_delay_s=15, or",
    ):
        plugin.check_times({"timeout_min": 1, "signal_delay_s": delay})


@pytest.mark.parametrize(("minutes", "delay"), [(0, 10), (-1, 10), (10, -1)])
def test_times_below_nothing_are_refused(minutes, delay):
    with pytest.raises(ConfigurationError, match=f"must be positive and signal_delay_s 0 or more, got {minutes} and"):
        plugin.check_times({"timeout_min": minutes, "signal_delay_s": delay})


def test_times_that_can_be_kept_are_taken_and_scarce_ones_told(caplog):
    with caplog.at_level(logging.WARNING):
        plugin.check_times({"timeout_min": 240, "signal_delay_s": 120})
        plugin.check_times({"timeout_min": 1})  # submitit_local has no delay
        assert not caplog.messages
        plugin.check_times({"timeout_min": 2, "signal_delay_s": 30})
    assert "jobs have 90 seconds until SLURM tells them to stop" in caplog.text


def test_a_delay_is_refused_from_the_command_line(cli):
    pytest.importorskip("submitit")
    answer = cli("-m", "seed=1,2", "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=1")
    assert answer.code == 2
    assert "signal_delay_s=120 is not below hydra.launcher.timeout_min=1" in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            "sbatch: error: Batch job submission failed: Invalid generic resource (gres) specification",
            "Invalid generic resource (gres) specification; on a cluster without GPUs type "
            "hydra.launcher.gpus_per_node=null",
        ),
        (
            "sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed: Invalid "
            "partition name specified\n",
            "Invalid partition name specified; sinfo lists the partitions",
        ),
        (
            "sbatch: error: Memory specification can not be satisfied\nsbatch: error: Batch job submission failed: "
            "Requested node configuration is not available",
            "Requested node configuration is not available; no node is as large; lower hydra.launcher.cpus_per_task",
        ),
        ('Could not detect "srun", are you indeed on a slurm cluster?', "type the command on a login node"),
        ("sbatch: error: something else", "something else; see hydra.launcher.*"),
    ],
)
def test_what_slurm_refuses_comes_with_a_remedy(said, line):
    assert plugin.refusal(said).startswith("SLURM refused the jobs: ")
    assert line in plugin.refusal(said)
    assert "\n" not in plugin.refusal(said)


def test_states_are_asked_of_the_queue(queue):
    queue("12_0|RUNNING\n12_1|PENDING\n13|CANCELLED\n")
    assert slurm.states(["12_0", "12_1", "13"]) == {"12_0": "RUNNING", "12_1": "PENDING", "13": "CANCELLED"}
    queue("", "slurm_load_jobs error: Invalid job id specified\n", 1)
    assert slurm.states(["12_0"]) == {}, "forgotten, so it is over"
    queue("", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n", 1)
    assert slurm.states(["12_0"]) is None
    assert slurm.states([]) == {}


def test_without_slurm_nothing_is_known(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.states(["1"]) is None


def test_what_goes_on_without_the_leader_is_told(queue, tmp_path):
    slurm.remember(tmp_path, {0: "12_0", 1: "12_1"})
    slurm.remember(tmp_path, {1: "15", 2: "12_2", 3: "12_3"})
    queue("12_0|COMPLETED\n15|RUNNING\n12_2|PENDING\n12_3|PENDING\n")
    alive = slurm.alive(tmp_path)
    assert alive == {1: ("15", "RUNNING"), 2: ("12_2", "PENDING"), 3: ("12_3", "PENDING")}
    assert slurm.told(alive) == [
        "in SLURM        job 1 still running, jobs 2, 3 still waiting; they outlive this process, "
        "stop them: scancel 12 15"
    ]
    assert slurm.told({}) == []


def test_jobs_may_go_on_where_slurm_does_not_answer(queue, tmp_path):
    slurm.remember(tmp_path, {0: "12_0", 1: "12_1"})
    write_job(tmp_path, 0, [], tmp_path / "0", "finished")
    queue("12_0|RUNNING\n12_1|RUNNING\n")
    assert slurm.alive(tmp_path) == {1: ("12_1", "RUNNING")}, "job 0 is only about to leave"
    queue("", "Unable to contact slurm controller", 1)
    assert slurm.alive(tmp_path) == {1: ("12_1", "UNKNOWN")}


class Handle:
    """A job of submitit's, as far as the launcher looks at it."""

    def __init__(self, folder, job_id, result=None):
        self.job_id, self.result = job_id, result
        self.paths = SimpleNamespace(folder=folder, result_pickle=folder / f"{job_id}.pkl")
        if result is not None:
            self.paths.result_pickle.touch()

    def results(self):
        if isinstance(self.result, Exception):
            raise self.result
        return [self.result]


def test_a_job_that_is_over_without_a_result_does_not_end_the_wait(queue, tmp_path, monkeypatch):
    monkeypatch.setattr(plugin, "ASK_EVERY", 0.0)
    monkeypatch.setattr(plugin, "GRACE", 0.6)
    queue("12_0|COMPLETED\n12_1|CANCELLED\n12_2|TIMEOUT\n")  # and 12_3 is forgotten
    write_job(tmp_path, 1, ["seed=2"], tmp_path / "1", "running")
    write_job(tmp_path, 2, ["seed=3"], tmp_path / "2", "failed", "a reason")
    jobs = {
        0: Handle(tmp_path, "12_0", "the result"),
        1: Handle(tmp_path, "12_1"),
        2: Handle(tmp_path, "12_2"),
        3: Handle(tmp_path, "12_3"),
        4: Handle(tmp_path, "12_4", RuntimeError("Job failed\nSomeError: why\n---")),
    }
    overrides = {n: [f"seed={n + 1}", "hydra.verbose=true", "sweep.resume=x"] for n in jobs}
    launcher = plugin.SlurmLauncher(submitit_folder="x")
    returns = launcher.wait(tmp_path, overrides, jobs)
    assert returns[0] == "the result"
    assert [result.return_value for result in returns[1:]] == [None] * 4
    assert [(job.number, job.overrides, job.status, job.error) for job in read_jobs(tmp_path)] == [
        (1, ["seed=2"], "stopped", "CANCELLED in SLURM, as 12_1"),
        (2, ["seed=3"], "failed", "a reason"),
        (3, ["seed=4"], "stopped", "no longer known in SLURM, as 12_3"),
    ]


def test_a_job_that_is_queued_again_is_waited_for(queue, tmp_path, monkeypatch):
    monkeypatch.setattr(plugin, "ASK_EVERY", 0.0)
    monkeypatch.setattr(plugin, "GRACE", 5.0)
    queue("12|PREEMPTED\n")
    job, passes = Handle(tmp_path, "12"), iter(range(100))

    def sleep(seconds):
        turn = next(passes)
        if turn == 1:
            queue("12|PENDING\n")
        if turn == 3:
            job.result = "late"
            job.paths.result_pickle.touch()

    monkeypatch.setattr(plugin, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    assert plugin.SlurmLauncher(submitit_folder="x").wait(tmp_path, {0: []}, {0: job}) == ["late"]
    assert not Path(tmp_path / ".jobs").exists()
