"""Lists of runs: what a directory holds, and processes that end well, badly, or are asked to stop."""

import json
import os
import signal
import sys
import threading
import time

import pytest
import yaml

from fedgh.core.errors import DataError
from fedgh.sweep import jobs
from fedgh.sweep.jobs import Job, State, differences, last_error, run_jobs, state_of

CONFIG = {"num_rounds": 4, "seed": 1, "paths": {"output_dir": "here"}, "dataset": {"root": "a", "train_fraction": 0.1}}


def directory_with(folder, config=CONFIG, rounds=None, checkpoint=False):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if rounds is not None:
        (folder / "summary.json").write_text(json.dumps({"rounds": rounds}))
    if checkpoint:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "round_000001.ckpt").touch()
    return folder


def test_states(tmp_path):
    assert state_of(tmp_path / "none", CONFIG) == State("new")
    assert state_of(directory_with(tmp_path / "killed early"), CONFIG) == State("new")
    assert state_of(directory_with(tmp_path / "killed", checkpoint=True), CONFIG) == State("resumable")
    assert state_of(directory_with(tmp_path / "stopped", rounds=3, checkpoint=True), CONFIG) == State("resumable")
    assert state_of(directory_with(tmp_path / "done", rounds=4, checkpoint=True), CONFIG) == State("finished")


def test_another_run_is_told_by_what_differs(tmp_path):
    folder = directory_with(tmp_path / "run", rounds=4)
    wanted = {**CONFIG, "seed": 2, "dataset": {"root": "b", "train_fraction": 0.2}, "paths": {"output_dir": "there"}}
    state = state_of(folder, wanted)
    assert state.kind == "other"
    assert state.differences == ("dataset.train_fraction=0.1 instead of 0.2", "seed=1 instead of 2")


def test_settings_that_only_one_version_of_the_program_has_are_no_difference():
    assert not list(differences({"a": 1, "old": 2}, {"a": 1, "new": 3}))
    assert list(differences({"augmentation": None}, {"augmentation": {"flip": True}})) == [
        "augmentation=None instead of {...}"
    ]


@pytest.mark.parametrize(("file", "text"), [("config.yaml", "a: [1"), ("summary.json", "{"), ("config.yaml", "word")])
def test_a_damaged_directory_is_named(tmp_path, file, text):
    folder = directory_with(tmp_path / "run", rounds=4)
    (folder / file).write_text(text)
    with pytest.raises(DataError, match=r"run .*run cannot be read: .*; remove it to run it again"):
        state_of(folder, CONFIG)


def test_the_line_that_says_what_went_wrong():
    text = "rounds: 10%\nerror: the first\nsome more\nerror: no such file; type x=y\n  and a second line\n"
    assert last_error(text) == "error: no such file; type x=y"
    assert last_error("Traceback:\n  ...\nKeyError: 'a'\n\n") == "KeyError: 'a'"
    assert last_error("") == "it printed nothing"


PROGRAM = """
import os, signal, sys, time
word, path = sys.argv[1], sys.argv[-1]
print("threads", os.environ["OMP_NUM_THREADS"], "got", *sys.argv[1:])
if word == "fails":
    sys.exit("error: it cannot be done; do something else")
if word == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
if word == "waits":
    caught = []
    signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    print("waiting", flush=True)
    while not caught:
        time.sleep(0.02)
    sys.exit(130)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Replace ``fedgh-train`` by a program that does what its first argument says; return a maker of jobs."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    monkeypatch.setattr(jobs, "PROGRAM", (str(script),))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return lambda name, word="works": Job(name, tmp_path / "runs" / name, (word,))


def test_one_failure_does_not_stop_the_others(program, tmp_path):
    lines = []
    todo = [program("a"), program("b", "fails"), program("c", "dies"), program("d")]
    outcomes = run_jobs(todo, lambda job: False, 1, lines.append)
    assert [outcome.status for outcome in outcomes] == ["done", "failed", "failed", "done"]
    assert outcomes[1].message == f"error: it cannot be done; do something else (all of it: {todo[1].log})"
    assert outcomes[2].message.startswith("ended by signal 9; ")
    assert lines[:2] == ["running   a", "done      a (1 of 4)"]
    assert todo[0].log == tmp_path / "runs" / "a.log"
    assert f"got works hydra.run.dir='{tmp_path}/runs/a'" in todo[0].log.read_text()


def test_an_interrupted_run_gets_resume_and_nothing_else(program, tmp_path):
    job = program("it's")
    run_jobs([job], lambda job: True, 1, lambda line: None)
    assert f"got resume='{tmp_path}/runs/it\\'s'\n" in job.log.read_text()


def test_workers_share_the_cores(program, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    todo = [program(name) for name in "abc"]
    outcomes = run_jobs(todo, lambda job: False, 3, lambda line: None)
    assert [outcome.status for outcome in outcomes] == ["done"] * 3
    assert all("threads 2 got" in job.log.read_text() for job in todo)


def wait_for(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def test_ctrl_c_is_passed_on_and_nothing_new_is_started(program):
    first, second, third = program("a", "waits"), program("b", "waits"), program("c")

    def ctrl_c():
        wait_for(lambda: all(job.log.is_file() and "waiting" in job.log.read_text() for job in (first, second)))
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=ctrl_c)
    thread.start()
    outcomes = run_jobs([first, second, third], lambda job: False, 2, lambda line: None)
    thread.join()
    assert [outcome.status for outcome in outcomes] == ["stopped", "stopped", "not started"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks there")
def test_a_run_that_another_process_has_is_left_alone(program):
    job, other = program("a", "waits"), program("b")
    seen = []

    def meanwhile(line):
        if line == "running   a":
            wait_for(lambda: "waiting" in job.log.read_text())
            seen.extend(run_jobs([program("a"), other], lambda job: False, 1, lambda line: None))
            os.kill(os.getpid(), signal.SIGINT)

    (outcome,) = run_jobs([job], lambda job: False, 1, meanwhile)
    assert [(o.status, o.message) for o in seen] == [("elsewhere", "another process is running it"), ("done", "")]
    assert outcome.status == "stopped"
