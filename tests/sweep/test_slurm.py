"""A sweep on a real SLURM, started here on loopback: a preempted job is queued again and ends with the same bits."""

import csv
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from fedgh.storage import checkpoint as checkpoints

from .slurm import missing, slurm

TINY = [
    *("num_rounds=150", "partition=iid", "partition.num_clients=3", "algorithm.local_epochs=1", "trainer=cpu"),
    *("dataset.train_fraction=0.1", "model.hidden=[4]", "callback=none", "logger=csv", "seed=1,2"),
]
ON_SLURM = [
    *("hydra/launcher=submitit_slurm", "hydra.launcher.partition=low", "hydra.launcher.gpus_per_node=null"),
    *("hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null"),
]
PATIENCE = 240

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing()), reason=f"SLURM is not installed: no {', '.join(missing())}"),
]


def wait_for(condition, what, process):
    for _ in range(10 * PATIENCE):
        if condition():
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    pytest.fail(f"no {what} within {PATIENCE} s")


def num_rounds(job):
    metrics = job / "metrics.csv"
    return len(metrics.read_text().splitlines()) - 1 if metrics.exists() else 0


def final(job):
    return checkpoints.load_newest(job / "checkpoints")[0].server


@pytest.mark.parametrize(
    ("parameters", "said"),
    [("preempt_send_user_signal", "Requeued job"), ("idle_on_node_suspend", "waits for SLURM to end it")],
    ids=["preempted by submitit's signal", "preempted by SIGTERM"],
)
def test_a_preempted_job_goes_on_where_it_was(cli, tmp_path, parameters, said):
    """A job of higher priority takes the only core; SLURM tells ours by one signal or the other, then kills it."""
    assert cli("-m", *TINY, f"hydra.sweep.dir={tmp_path / 'plain'}").code == 0
    sweep = tmp_path / "sweep"
    with slurm(tmp_path / "slurm", grace=5, parameters=parameters) as environment:
        command = [sys.executable, "-m", "fedgh.cli.train", "-m", *TINY, *ON_SLURM, f"hydra.sweep.dir={sweep}"]
        environment |= {"OMP_NUM_THREADS": "1"}  # as in these tests: sums of more threads differ in their last bits
        call = partial(subprocess.run, env=environment, check=True, capture_output=True, text=True)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(command, env=environment, **pipes) as ours:
            wait_for(lambda: num_rounds(sweep / "0") > 20, "rounds", ours)
            call(["sbatch", "--partition=high", "--output=/dev/null", "--wrap=sleep 1"])
            show = partial(call, ["scontrol", "--oneliner", "show", "job", "1_0"])
            wait_for(lambda: re.search("JobState=PENDING .*Restarts=1 ", show().stdout), "requeue", ours)
            call(["scontrol", "update", "JobId=1_0", "StartTime=now"])  # it would be held back for two minutes
            kept = final(sweep / "0").round_index
            assert 20 <= kept < 150, "it was to be interrupted half-way"
            out, _ = ours.communicate(timeout=PATIENCE)
        assert ours.returncode == 0, out
    assert said in next((sweep / ".submitit").glob("*_0/*_log.out")).read_text()
    assert f"after round {kept}" in (sweep / "0" / "train.log").read_text()
    with (sweep / "jobs.csv").open(newline="") as file:
        assert [line["status"] for line in csv.DictReader(file)] == ["finished", "finished"]
    for number in "01":
        assert torch.equal(final(sweep / number).params, final(tmp_path / "plain" / number).params)
        rounds = [line.split(",")[0] for line in (sweep / number / "metrics.csv").read_text().splitlines()[1:]]
        assert len(rounds) == len(set(rounds)) == 150, "no round twice, none left out"
    assert json.loads((sweep / "0" / "summary.json").read_text())["rounds"] == 150


@contextmanager
def leading(environment, folder, *arguments):
    """A leader whose jobs are SLURM's; yields its process and what it has said."""
    command = [sys.executable, "-m", "fedgh.cli.train", "-m", *TINY, *ON_SLURM, *arguments]
    log = folder.with_suffix(".log")
    with (
        log.open("a") as file,
        subprocess.Popen(command, stdout=file, stderr=file, env={**environment, "OMP_NUM_THREADS": "1"}) as process,
    ):
        try:
            yield SimpleNamespace(process=process, said=log.read_text)
        finally:
            if process.poll() is None:
                process.kill()


def until(condition, leader):
    for _ in range(10 * PATIENCE):
        if condition():
            return
        assert leader.process.poll() is None, leader.said()
        time.sleep(0.1)
    pytest.fail(f"it did not happen within {PATIENCE} s: {leader.said()}")


def test_jobs_cancelled_from_outside_leave_the_others_and_the_wait_ends(tmp_path):
    """One is running, one still waits for the only core; SLURM keeps no accounts here, so ``sacct`` knows nothing."""
    sweep = tmp_path / "sweep"
    with slurm(tmp_path / "slurm") as environment:
        call = partial(subprocess.run, env=environment, check=True, capture_output=True, text=True)
        with leading(environment, sweep, "seed=1,2,3", f"hydra.sweep.dir={sweep}") as leader:
            until(lambda: num_rounds(sweep / "0") > 5, leader)
            call(["scancel", "1_0"])
            call(["scancel", "1_2"])
            assert leader.process.wait(PATIENCE) == 1
    assert "\n2 stopped, 1 finished\n" in leader.said(), leader.said()
    assert re.search(r"\njob 2 stopped: (CANCELLED|no longer known) in SLURM, as 1_2\n", leader.said()), leader.said()
    assert "Traceback" not in leader.said()


def test_ctrl_c_on_the_leader_leaves_the_jobs_to_slurm_and_going_on_waits_for_them(tmp_path):
    sweep = tmp_path / "sweep"
    with slurm(tmp_path / "slurm") as environment:
        call = partial(subprocess.run, env=environment, check=True, capture_output=True, text=True)
        with leading(environment, sweep, f"hydra.sweep.dir={sweep}") as leader:
            until(lambda: num_rounds(sweep / "0") > 5, leader)
            call(["scontrol", "hold", "1_1"])
            call(["scontrol", "suspend", "1_0"])  # so that it is not over before the second leader has begun
            leader.process.send_signal(signal.SIGINT)
            assert leader.process.wait(PATIENCE) == 130
        text = leader.said()
        assert "\n1 running, 1 waiting\n" in text, text
        assert (
            "in SLURM        job 0 still running, job 1 still waiting; they outlive this process, "
            "stop them: scancel 1\n" in text
        )
        (again,) = [line.partition("fedgh-train ")[2] for line in text.splitlines() if line.startswith("go on")]
        rest = [word for word in shlex.split(again) if word not in ("-m", *TINY, *ON_SLURM)]
        assert [word.partition("=")[0] for word in rest] == ["sweep.resume"]
        with leading(environment, sweep, *rest) as leader:
            until(lambda: "is in SLURM already, as 1_0 (SUSPENDED): waiting for it" in leader.said(), leader)
            call(["scontrol", "resume", "1_0"])
            call(["scontrol", "release", "1_1"])
            assert leader.process.wait(PATIENCE) == 0, leader.said()
        submitted = subprocess.run(
            ["squeue", "--array", "--states=all", "--noheader", "--format=%i"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    assert sorted(submitted) == ["1_0", "1_1"], "a job was submitted twice"
    assert leader.said().endswith(f"\n2 finished\nwritten to      {sweep}\ntables, curves  fedgh-report runs={sweep}\n")


def test_what_slurm_refuses_is_one_line(tmp_path):
    """As the README has it, on a node without a GPU; and a partition that there is not."""
    sweep = tmp_path / "sweep"
    with slurm(tmp_path / "slurm") as environment:
        with leading(environment, sweep, "hydra.launcher.gpus_per_node=1", f"hydra.sweep.dir={sweep}1") as leader:
            assert leader.process.wait(PATIENCE) == 2, leader.said()
        with leading(environment, sweep, "hydra.launcher.partition=none", f"hydra.sweep.dir={sweep}2") as leader:
            assert leader.process.wait(PATIENCE) == 2, leader.said()
    assert "error: SLURM refused the jobs: " in leader.said()
    assert "on a cluster without GPUs type hydra.launcher.gpus_per_node=null" in leader.said()
    assert "sinfo lists the partitions; type hydra.launcher.partition=<name>" in leader.said()
    assert "Traceback" not in leader.said()
