"""A sweep on a real SLURM, started here on loopback: a preempted job is queued again and ends with the same bits."""

import csv
import json
import subprocess
import sys
import time
from functools import partial

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
            wait_for(lambda: "Restarts=1" in call(["scontrol", "show", "job", "1"]).stdout, "requeue", ours)
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
