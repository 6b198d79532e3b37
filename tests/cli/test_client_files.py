"""Client states on disk, of a method that keeps some: killed anywhere, the same bits and the same files."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from fedgh.storage import client_store
from tests.cli.test_train import QUIET, Killed, assert_same, command, final, straight_run, table

PERSONAL = [*QUIET, "algorithm=fedper", "sampler.fraction=0.5"]
ON_DISK = [*PERSONAL, "checkpoint.client_states_mib=0"]


def assert_same_clients(run_dir, reference):
    ours, theirs = final(run_dir).clients, final(reference).clients
    assert set(ours) == set(theirs)
    for client_id, state in theirs.items():
        assert ours[client_id].keys() == state.keys()
        assert all(torch.equal(ours[client_id][name], tensor) for name, tensor in state.items()), client_id


def client_files(run_dir):
    return sorted(os.listdir(run_dir / "clients"))


def test_on_disk_and_in_memory_give_the_same_bits(cli, tmp_path):
    memory = straight_run(cli, *PERSONAL)
    disk = cli(*ON_DISK).run_dir
    assert_same(disk, memory)
    assert_same_clients(disk, memory)
    assert not (memory / "clients").exists()
    assert client_files(disk)
    assert not final(disk).clients.resident


def killed_in_a_client_file(monkeypatch):
    real, calls = client_store.replace_file, iter(range(1, 100))

    def replace_file(path, content):
        if next(calls) == 6:
            path.with_name(f".{path.name}.tmp").write_bytes(content[:10])
            raise Killed
        real(path, content)

    monkeypatch.setattr(client_store, "replace_file", replace_file)


def killed_between_client_files_and_checkpoint(monkeypatch):
    real = torch.save

    def save(content, file):
        if content["server"]["round_index"] == 3:
            raise Killed
        real(content, file)

    monkeypatch.setattr(torch, "save", save)


def killed_while_old_client_files_are_removed(monkeypatch):
    real, calls = Path.unlink, iter(range(1, 100))

    def unlink(self, missing_ok=False):
        if self.suffix == ".safetensors" and next(calls) == 2:
            raise Killed
        return real(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)


@pytest.mark.parametrize(
    "kill",
    [
        killed_in_a_client_file,
        killed_between_client_files_and_checkpoint,
        killed_while_old_client_files_are_removed,
    ],
)
def test_killed_and_resumed_no_state_is_lost_and_no_file_left(cli, monkeypatch, tmp_path, kill):
    straight = straight_run(cli, *ON_DISK)
    with monkeypatch.context() as patch:
        kill(patch)
        with pytest.raises(Killed):
            cli(*ON_DISK)
    (run_dir,) = (tmp_path / "logs" / "train" / "runs").iterdir()
    assert cli(f"resume={run_dir}").code == 0
    assert_same(run_dir, straight)
    assert_same_clients(run_dir, straight)
    assert client_files(run_dir) == client_files(straight)


def test_a_damaged_client_file_costs_a_round(cli):
    straight = straight_run(cli, *ON_DISK)
    run_dir = cli(*ON_DISK, "num_rounds=3").run_dir
    (path, *_) = (run_dir / "clients").glob("*@000003-*")
    path.write_bytes(path.read_bytes()[:-1])
    answer = cli(f"resume={run_dir}", "num_rounds=4")
    assert answer.code == 0, answer.err
    assert "round_000003.ckpt cannot be used: the state of client" in answer.out + answer.err
    assert_same(run_dir, straight)
    assert_same_clients(run_dir, straight)
    assert client_files(run_dir) == client_files(straight)


@pytest.mark.parametrize("value", ["-1", "0.5", "x", "true"])
def test_a_bad_limit_is_refused(cli, value):
    answer = cli(*PERSONAL, f"checkpoint.client_states_mib={value}")
    assert answer.code == 2
    assert "checkpoint.client_states_mib must be an integer of 0 or more, got" in answer.err


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
def test_sigkill_at_random_moments(cli, tmp_path):
    """Real kills of a real process every few rounds."""
    arguments = [*ON_DISK, "num_rounds=20", "partition.num_clients=10"]
    straight, moments, kills = straight_run(cli, *arguments), random.Random(), 0
    start = [*arguments, f"hydra.run.dir={tmp_path / 'killed'}", f"paths.log_dir={tmp_path / 'logs'}"]
    run_dir, words = tmp_path / "killed", start
    while True:
        before = newest(run_dir)
        process = subprocess.Popen(command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while process.poll() is None and newest(run_dir) < before + 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(moments.random() * 0.2)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills, words = kills + 1, [f"resume={run_dir}"]
    assert (process.returncode, kills > 1) == (0, True)
    assert_same_clients(run_dir, straight)
    assert client_files(run_dir) == client_files(straight)
    assert table(run_dir) == table(straight)


def newest(run_dir):
    return max([int(path.stem[6:]) for path in (run_dir / "checkpoints").glob("round_*.ckpt")], default=0)
