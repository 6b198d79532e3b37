"""A directory that holds a run is never written over, however a run is started; and the lock names nobody."""

import getpass
import json
import multiprocessing
import os
import platform
import re
from pathlib import Path

import pytest

from fedgh import config
from fedgh.cli import train
from fedgh.core.command import setting
from fedgh.core.errors import ConfigurationError, InUseError
from fedgh.storage import claim as claims
from fedgh.storage.claim import claim, in_use, leave_nothing_behind, refuse_if_taken, run_directory

TINY = [
    *("num_rounds=1", "partition=iid", "partition.num_clients=2", "algorithm.local_epochs=1", "trainer=cpu"),
    *("dataset.train_fraction=0.05", "model.hidden=[2]", "executor=sequential", "callback=none"),
]


@pytest.fixture
def run_dir(tmp_path):
    """A directory with what a run has written."""
    folder = tmp_path / "a run"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "metrics.csv", "checkpoints/round_000003.ckpt", ".lock"):
        (folder / name).write_text("num_rounds: 3\nseed: 99\n")
    return folder


def content(folder):
    """All files and what is in them, but for what a process is told or tells."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "train.log")]
    return {str(path): path.read_bytes() for path in files}


def start_single(cli, folder):
    return cli(*TINY, "logger=csv", setting("hydra.run.dir", folder)).err


def start_with_its_paths(cli, folder):
    return cli(*TINY, "logger=csv", setting("paths.output_dir", folder)).err


def start_sweep_there(cli, folder):
    return cli("-m", *TINY, "logger=csv", "seed=1,2", setting("hydra.sweep.dir", folder)).err


def start_sweep_above(cli, folder):
    where = [setting("hydra.sweep.dir", folder.parent), setting("hydra.sweep.subdir", folder.name)]
    return cli("-m", *TINY, "logger=csv", "seed=1", *where).out


def start_search(cli, folder):
    space = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", "algorithm.optimizer.lr=interval(0.01,0.1)"]
    return cli("-m", *TINY, "logger=csv", *space, setting("hydra.sweep.dir", folder)).err


def start_agent(cli, folder):
    with pytest.MonkeyPatch.context() as patch:  # as `wandb agent` starts it
        patch.setenv("WANDB_SWEEP_ID", "s")
        patch.setenv("WANDB_RUN_ID", "r")
        return cli(*TINY, "logger.mode=disabled", setting("hydra.run.dir", folder)).err


def start_from_code(cli, folder):
    with pytest.raises(ConfigurationError) as refused:
        train.federate(config.compose([*TINY, "logger=csv", setting("paths.output_dir", folder)]))
    return str(refused.value)


@pytest.mark.parametrize(
    "start",
    [
        *(start_single, start_with_its_paths, start_sweep_there, start_sweep_above, start_search, start_agent),
        start_from_code,
    ],
)
def test_a_directory_that_holds_a_run_is_refused(cli, run_dir, start):
    before = content(run_dir)
    said = start(cli, run_dir)
    assert setting("resume", run_dir) in said, said
    assert "Traceback" not in said
    after = content(run_dir)
    after.pop(str(run_dir / "error.txt"), None)  # of the job of a sweep that was refused
    assert after == before


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "checkpoints/x", "conflict/x", "recording/x"])
def test_any_trace_of_a_run_counts(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    with pytest.raises(ConfigurationError, match=r"holds a run already \((config|metrics|check|conf|rec).* resume="):
        refuse_if_taken(tmp_path)


def test_a_run_without_a_checkpoint_cannot_be_gone_on_with(tmp_path):
    (tmp_path / "metrics.csv").write_text("")
    with pytest.raises(ConfigurationError, match=r"no checkpoint, so fedgh-train resume=\S+ cannot go on"):
        refuse_if_taken(tmp_path)


def test_a_sweep_is_no_place_for_a_run(tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"holds a sweep already .*-m and sweep\.resume=\S+, or"):
        refuse_if_taken(tmp_path)


def test_a_directory_of_hydra_alone_is_fine(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "train.log").write_text("")
    with run_directory(tmp_path, resumed=False):
        pass
    assert tmp_path.exists()


def test_what_is_refused_leaves_no_directory_and_no_other_is_touched(tmp_path):
    for name, kept in (("new", False), ("used", True)):
        folder = tmp_path / name
        (folder / ".hydra").mkdir(parents=True)
        if kept:
            (folder / "notes.txt").write_text("mine")
        with pytest.raises(ConfigurationError, match="no"), run_directory(folder, resumed=False):
            raise ConfigurationError("no")
        assert folder.exists() == kept
    leave_nothing_behind(tmp_path / "nowhere")


def hold(folder, ready, over):
    with claim(folder, ""):
        ready.set()
        over.wait(60)


def test_a_lock_tells_the_process_and_no_name_of_person_or_machine(tmp_path, monkeypatch):
    process = multiprocessing.get_context("fork")
    ready, over = process.Event(), process.Event()
    other = process.Process(target=hold, args=(tmp_path, ready, over))
    other.start()
    assert ready.wait(60)
    text = (tmp_path / ".lock").read_text()
    for name in (platform.node(), getpass.getuser(), str(Path.home())):
        assert name not in text
    with pytest.raises(ConfigurationError, match=rf"by process {other.pid} on this machine since [\d: -]+; wait"):
        claim(tmp_path, "wait").__enter__()
    monkeypatch.setattr(claims, "_boot", lambda: "another")
    with pytest.raises(ConfigurationError, match=rf"in use by process {other.pid} on another machine since"):
        claim(tmp_path, "wait").__enter__()
    over.set()
    other.join(60)
    assert (tmp_path / ".lock").read_text() == "", "nobody holds it any more"
    with claim(tmp_path, "wait"):
        assert re.fullmatch(r"process \d+ since [\d: -]+ boot \w+", (tmp_path / ".lock").read_text())


def test_a_shared_run_names_neither_home_nor_machine_nor_person(cli, tmp_path, monkeypatch):
    """Of a person with a telling home, who keeps data and runs there."""
    home = tmp_path / "home" / "aliceinwonderland"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    where = [f"paths.log_dir={home}/logs", f"paths.data_dir={home}/data", "callback=default"]
    answer = cli(*TINY, *where, "logger.mode=disabled", "name=x")
    assert answer.code == 0, answer.err
    (run,) = (home / "logs" / "train" / "runs").iterdir()
    found = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert {"config.yaml", "provenance.json", "hydra.yaml", "overrides.yaml", "round_000001.ckpt"} <= {
        path.name for path in found
    }
    for path, text in found.items():
        if path.name != "train.log":  # what the screen had
            assert b"aliceinwonderland" not in text, path
            assert len(platform.node()) < 5 or platform.node().encode() not in text, path
    command = json.loads((run / "provenance.json").read_text())["command"]
    assert "paths.log_dir=~/logs" in command
    assert config.reopen(run)[0].paths.data_dir == f"{home}/data", "it comes back where it was"
    assert os.path.samefile(config.reopen(run)[0].paths.output_dir, run)


def test_a_lock_says_nothing_of_who_held_it_before(tmp_path):
    (tmp_path / ".lock").write_text("process 1 since 2020-01-01 00:00:00 boot abcabcabcabc" + 100 * "x")  # killed
    with claim(tmp_path, "wait"):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} since ")
        assert "x" not in (tmp_path / ".lock").read_text()
        with (
            pytest.raises(InUseError, match=f"by process {os.getpid()} on this machine since"),
            claim(tmp_path, "wait"),
        ):
            pass
    assert (tmp_path / ".lock").read_text() == ""
    assert not in_use(tmp_path)


def test_the_traces_of_a_refused_run_go_and_anything_else_stays(tmp_path):
    for name in ("traces", "kept"):
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra" / "config.yaml").touch()
    (tmp_path / "kept" / "mine.txt").touch()
    for name in ("traces", "kept"):
        leave_nothing_behind(tmp_path / name)
    assert not (tmp_path / "traces").exists()
    assert (tmp_path / "kept" / "mine.txt").exists()


@pytest.mark.parametrize(("written", "said"), [("", "another process"), ("process 5", "process 5")])
def test_a_lock_file_of_another_version_is_told_as_it_is(tmp_path, monkeypatch, written, said):
    (tmp_path / ".lock").write_text(written)
    monkeypatch.setattr(claims, "try_lock", lambda file: False)
    with pytest.raises(InUseError, match=f"is in use by {said}; wait"), claim(tmp_path, "wait"):
        pass


def test_a_folder_that_is_not_ours_to_write_to_is_not_called_in_use(tmp_path, monkeypatch):
    (tmp_path / ".lock").write_text("")
    assert not claims.in_use(tmp_path)
    with claims.claim(tmp_path, ""):
        assert claims.in_use(tmp_path)

    def refuse(self, *arguments, **settings):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    assert not claims.in_use(tmp_path)
