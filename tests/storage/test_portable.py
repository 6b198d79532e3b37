"""What is shared names neither a person nor a machine, and works for whoever gets it."""

import json
import os
from pathlib import Path

import pytest

from fedgh.core.configs import CONFIG_DIR
from fedgh.storage.jobs import read_jobs, write_job
from fedgh.storage.portable import anonymous, from_home, homeless, restored, shareable, to_home
from fedgh.tracking.offline import history
from fedgh.tracking.wandb_run import share_logs


@pytest.fixture
def jane(tmp_path, monkeypatch):
    home = tmp_path / "jane"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


def test_paths_and_texts_begin_at_home(jane, monkeypatch):
    assert to_home(f"{jane}/x") == "~/x"
    assert from_home("~/x") == f"{jane}/x"
    assert to_home(f"{jane}ette/x") == f"{jane}ette/x", "another person's"
    assert homeless(f"resume={jane}/a, written to {jane}\n{jane}ette") == f"resume=~/a, written to ~\n{jane}ette"
    (jane / "w").mkdir()
    monkeypatch.chdir(jane / "w")
    assert anonymous(f"{jane}/w/a {jane}/b") == "./a ~/b"


@pytest.mark.parametrize("value", ["{home}/logs", '"{home}/a b"', "'{home}'", "x{home}", "mean,fedgh", "~/kept", ""])
def test_settings_come_back_for_another_person(jane, monkeypatch, value):
    words = ("paths.log_dir=" + value.format(home=jane), "+a.b=" + value.format(home=jane), "no setting")
    stored = [shareable(word) for word in words]
    assert str(jane) not in stored[0] or value.startswith("x")
    if "~" not in value:
        assert [restored(word) for word in stored] == list(words)
    monkeypatch.setenv("HOME", "/home/joe")
    if value.startswith("{home}"):
        assert restored(stored[0]) == "paths.log_dir=" + value.format(home="/home/joe")


def test_the_record_of_a_job_moves_with_its_sweep(jane):
    sweep = jane / "sweep"
    write_job(sweep, 0, ["seed=1", f"paths.log_dir={jane}/logs"], sweep / "0", "finished")
    write_job(sweep, 1, ["seed=2"], jane / "aside", "stopped")
    assert "jane" not in "".join(path.read_text() for path in (sweep / ".jobs").iterdir())
    first, second = read_jobs(sweep)
    assert (first.directory, second.directory) == (sweep / "0", jane / "aside")
    assert first.settings["paths.log_dir"] == f"{jane}/logs"
    moved = sweep.rename(jane / "moved")
    assert read_jobs(moved)[0].directory == moved / "0"


@pytest.mark.slow
def test_nor_does_one_outside_the_current_folder_or_of_the_table_of_a_sweep(cli, jane, tmp_path, monkeypatch):
    """W&B's file has the folder of its run, its log the folder of its file, an artifact waits in the user's home."""
    (tmp_path / "w").mkdir()
    monkeypatch.chdir(tmp_path / "w")
    tiny = ("debug=default", "num_rounds=1", "logger=wandb", "logger.mode=offline", 'name="a\\${b"')
    watched = ("callback=default", "callback.observatory.every=1")
    assert cli(*tiny, *watched, f"hydra.run.dir={jane}/run").code == 0
    assert cli(*tiny, f"paths.output_dir={jane}/apart", "callback=none").code == 0
    assert cli("-m", *tiny, f"hydra.sweep.dir={jane}/sweep", "seed=1", "callback=none").code == 0
    assert cli(f"run={jane}/run", f"hydra.run.dir={jane}/page", task="report").code == 0
    folders = (jane / "run", jane / "apart", jane / "sweep", jane / "page")
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".wandb" for path in files) == 4
    words = (str(jane).encode(), str(CONFIG_DIR).encode())
    assert [path for path in files if any(word in path.read_bytes() for word in words)] == []
    (seeds,) = (jane / "sweep" / "wandb").glob("offline-run-*/run-*.wandb")
    rows = list(history(seeds))
    assert any(row.get("seeds._type") == "table-file" for row in rows), "the table is in the run itself"


def test_a_log_of_a_killed_process_is_cleaned_too_and_no_link_is_followed(jane, tmp_path):
    logs = tmp_path / "run" / "wandb" / "offline-run-1" / "logs"
    logs.mkdir(parents=True)
    (logs / "debug.log").write_bytes(f"logging to {jane}/x".encode() + b"\xff")
    (tmp_path / "cache.log").write_text(f"of the service of {jane}")
    (logs / "debug-core.log").symlink_to(tmp_path / "cache.log")
    share_logs(tmp_path / "run")
    assert (logs / "debug.log").read_bytes() == b"logging to ~/x\xff"
    assert str(jane) in (tmp_path / "cache.log").read_text()


def test_no_file_of_a_run_and_of_its_evaluation_names_a_person_or_a_machine(cli, jane, monkeypatch):
    """W&B's files included: what it records of command, folder, host and account."""
    (jane / "w").mkdir()
    monkeypatch.chdir(jane / "w")
    monkeypatch.setenv("USER", "janedoe")
    monkeypatch.setattr("socket.gethostname", lambda: "janes-machine")
    tiny = ("debug=default", "num_rounds=1", "callback=none", "logger=wandb", "logger.mode=offline")
    answer = cli(*tiny, f"hydra.run.dir={jane}/w/run", f"paths.data_dir={jane}/data")
    assert answer.code == 0, answer.err
    assert "anonymous" not in answer.err, "which W&B warns of, if Lightning's default reaches it"
    assert cli(f"checkpoint={jane}/w/run", f"hydra.run.dir={jane}/w/eval", task="evaluate").code == 0
    files = [Path(folder, name) for folder, _, names in os.walk(jane / "w") for name in names]
    assert any(path.suffix == ".wandb" for path in files)
    words = [word.encode() for word in (str(jane), "janedoe", "janes-machine")]
    said = [path for path in files if any(word in path.read_bytes() for word in words)]
    assert said == []
    assert json.loads((jane / "w/eval/evaluation.json").read_text())["checkpoint"].startswith("~/w/run/")
