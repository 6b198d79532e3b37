"""What is shared names neither a person nor a machine, and works for whoever gets it."""

import json
import os
from pathlib import Path

import pytest

from fedgh.storage.jobs import read_jobs, write_job
from fedgh.storage.portable import anonymous, from_home, homeless, restored, shareable, to_home


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
