"""Every launcher for real: jobs in other processes, the same bits as in this one."""

import csv
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hydra.core.hydra_config import HydraConfig

from fedgh import config
from fedgh.storage import checkpoint as checkpoints

TINY = [
    *("num_rounds=2", "partition=iid", "partition.num_clients=3", "algorithm.local_epochs=1", "trainer=cpu"),
    *("dataset.train_fraction=0.1", "model.hidden=[4]", "executor=sequential", "callback=none", "logger=csv"),
]
LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", []),
    "ray": ("ray", ["hydra.launcher.cpus_per_job=1", "hydra.launcher.gpus_per_job=0"]),
}


@pytest.fixture
def ray():
    module = pytest.importorskip("ray", reason="Ray is not installed: pip install 'fedgh[ray]'")
    yield module
    module.shutdown()


def bits(job):
    return checkpoints.load_newest(job / "checkpoints")[0].server.params


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", LAUNCHERS)
def test_jobs_of_a_launcher_are_those_of_a_plain_sweep(cli, request, tmp_path, name):
    """One of the three fails, and is the only one to do so; a second call finds the others finished."""
    package, settings = LAUNCHERS[name]
    pytest.importorskip(package, reason=f"{package} is not installed")
    if name == "ray":
        request.getfixturevalue("ray")
    sweep = ["-m", *TINY, "on_nonfinite=raise", "algorithm.optimizer.lr=0.1,1e30,0.01"]
    plain, other = tmp_path / "plain", tmp_path / name
    assert cli(*sweep, f"hydra.sweep.dir={plain}").code == 1
    answer = cli(*sweep, f"hydra.sweep.dir={other}", f"hydra/launcher={name}", *settings)
    assert answer.code == 1, answer.err
    assert (other / "seeds.csv").read_text() == (plain / "seeds.csv").read_text()
    for number in (0, 2):
        assert torch.equal(bits(other / str(number)), bits(plain / str(number)))
        assert f"written to      {other / str(number)}" in (other / str(number) / "output.log").read_text()
        assert f"written to      {other / str(number)}" not in answer.out, "jobs side by side print across each other"
    with (other / "jobs.csv").open(newline="") as file:
        statuses = [(line["status"], line["error"][:30]) for line in csv.DictReader(file)]
    assert statuses == [("finished", ""), ("failed", "round 1: the server's step wou"), ("finished", "")]
    written = (other / "0" / "config.yaml").stat().st_mtime_ns
    assert cli(*sweep, f"sweep.resume={other}", f"hydra/launcher={name}", *settings).code == 1
    assert (other / "0" / "config.yaml").stat().st_mtime_ns == written


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_a_cluster_that_does_not_answer(cli, ray):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    answer = cli("-m", *TINY, "seed=1,2", "hydra/launcher=ray", f"hydra.launcher.address=127.0.0.1:{port}")
    assert answer.code == 2
    assert f"Ray at 127.0.0.1:{port} does not answer: [Errno 111] Connection refused; check hydra" in answer.err


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_a_job_that_no_machine_can_hold(monkeypatch, ray):
    plugin = import_module("hydra_plugins.fedgh_ray")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    monkeypatch.setattr(ray, "nodes", lambda: 2 * [{"Alive": True, "Resources": {"CPU": 4.0}}])
    plugin.check_resources({"num_cpus": 4, "num_gpus": 0})
    for resources in ({"num_cpus": 4, "num_gpus": 0.5}, {"num_cpus": 5, "num_gpus": 0}):
        with pytest.raises(plugin.ConfigurationError, match=r"cpus_per_job=. and gpus_per_job=0.* 8 CPUs and 0 GPUs"):
            plugin.check_resources(resources)


@pytest.mark.filterwarnings("ignore:(?s).*is validated against ConfigStore schema")
def test_the_defaults_of_every_launcher_are_what_it_takes(root_config):
    """Hydra checks a launcher's settings only when it starts; SLURM's would be known on the cluster alone."""
    known = {
        "joblib": ("hydra_plugins.hydra_joblib_launcher.config", "JobLibLauncherConf"),
        "submitit_local": ("hydra_plugins.hydra_submitit_launcher.config", "LocalQueueConf"),
        "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher.config", "SlurmQueueConf"),
    }
    config.quieten()
    for name, (module, conf) in known.items():
        pytest.importorskip(module)
        root_config(f"hydra/launcher={name}")
        chosen = HydraConfig.get().launcher
        assert set(chosen) <= set(vars(getattr(import_module(module), conf)()))
    root_config("hydra/launcher=joblib")
    assert HydraConfig.get().launcher.n_jobs == max(torch.cuda.device_count(), 1, len(os.sched_getaffinity(0)) // 2)


LONG = [word.replace("num_rounds=2", "num_rounds=150") for word in TINY]


@contextmanager
def leading(folder, *arguments):
    """A leader in a process of its own; ends it, and its children, where the test has not."""
    command = [sys.executable, "-m", "fedgh.cli.train", "-m", *LONG, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        folder.with_suffix(".log").open("a+") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True) as leader,
    ):
        try:
            yield leader
        finally:
            if leader.poll() is None:
                leader.kill()


def said(folder):
    return folder.with_suffix(".log").read_text()


def wait_for(condition, leader, seconds=240):
    for _ in range(10 * seconds):
        if condition():
            return
        assert leader.poll() is None
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def begun(folder, number, rounds=5):
    metrics = folder / str(number) / "metrics.csv"
    return metrics.is_file() and len(metrics.read_text().splitlines()) > rounds


def workers(leader):
    """Process ids of joblib's workers of a leader."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            if parent == leader.pid and b"--process-name" in (status.parent / "cmdline").read_bytes():
                found.append(int(status.parent.name))
    return sorted(found)


on_linux = pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")


@on_linux
@pytest.mark.slow
def test_sigterm_ends_the_processes_of_joblib_and_the_sweep_can_go_on(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    folder = tmp_path / "sweep"
    with leading(
        folder, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2,3", f"hydra.sweep.dir={folder}"
    ) as leader:
        wait_for(lambda: begun(folder, 0) and begun(folder, 1), leader)
        processes = workers(leader)
        assert len(processes) == 2
        leader.terminate()
        assert leader.wait(60) == 128 + signal.SIGTERM
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]
    assert "2 unfinished, 1 not begun" in said(folder)
    (again,) = [line.partition("fedgh-train ")[2] for line in said(folder).splitlines() if line.startswith("go on")]
    with leading(folder, *[word for word in shlex.split(again) if word not in ("-m", *LONG)]) as leader:
        assert leader.wait(240) == 0
    assert "\n3 finished\n" in said(folder)


@on_linux
@pytest.mark.slow
def test_a_process_of_joblib_that_is_killed_costs_no_job(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    folder = tmp_path / "sweep"
    with leading(
        folder, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2,3", f"hydra.sweep.dir={folder}"
    ) as leader:
        wait_for(lambda: begun(folder, 0) and begun(folder, 1), leader)
        os.kill(workers(leader)[0], signal.SIGKILL)
        assert leader.wait(240) == 0
    assert "\n3 finished\n" in said(folder), said(folder)
    assert "a process was killed, and the others with it" in said(folder)
