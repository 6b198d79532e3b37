"""Lists of runs: what a directory holds, and processes that end well, badly, or are asked to stop."""

import json
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import yaml

from fedgh.core.errors import DataError
from fedgh.storage.claim import claim
from fedgh.sweep import processes
from fedgh.sweep.job import ELSEWHERE
from fedgh.sweep.processes import Job, last_error, run_processes
from fedgh.sweep.state import State, differences, state_of

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
    killed = directory_with(tmp_path / "killed", checkpoint=True)
    assert state_of(killed, CONFIG) == State("resumable")
    (killed / "config.yaml").unlink()  # which comes after the first checkpoint
    assert state_of(killed, CONFIG) == State("resumable")
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
word, path = sys.argv[1], sys.argv[-2]
print("threads", os.environ["OMP_NUM_THREADS"], "got", *sys.argv[1:])
if word == "fails":
    sys.exit("error: it cannot be done; do something else")
if word == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
if word == "elsewhere":
    sys.exit(int(os.environ["ELSEWHERE"]))
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
    monkeypatch.setattr(processes, "PROGRAM", (str(script),))
    monkeypatch.setenv("ELSEWHERE", str(ELSEWHERE))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return lambda name, word="works": Job(name, tmp_path / "runs" / name, (word,))


def test_one_failure_does_not_stop_the_others(program, tmp_path):
    lines = []
    todo = [program("a"), program("b", "fails"), program("c", "dies"), program("d")]
    outcomes = run_processes(todo, 1, lines.append)
    assert [outcome.status for outcome in outcomes] == ["done", "failed", "failed", "done"]
    assert outcomes[1].message == f"error: it cannot be done; do something else (all of it: {todo[1].log})"
    assert outcomes[2].message.startswith("ended by signal 9; ")
    assert lines[:2] == ["running   a", "done      a (1 of 4)"]
    assert todo[0].log == tmp_path / "runs" / "a.log"
    assert f"got works hydra.run.dir={tmp_path}/runs/a sweep.resume=true" in todo[0].log.read_text()


def test_what_is_printed_of_a_job_begins_or_goes_on(tmp_path):
    job = Job("a", tmp_path / "it's", ("seed=1",))
    path = f'"{tmp_path}/it\'s"'
    assert job.arguments == ["seed=1", f"hydra.run.dir={path}"]
    assert replace(job, begun=True).arguments == [f"resume={path}"]


def test_begun_jobs_are_said_to_be_resumed(program):
    lines = []
    run_processes([replace(program("it's"), begun=True)], 1, lines.append)
    assert lines[0] == "resuming  it's"


def test_workers_share_the_cores(program, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    todo = [program(name) for name in "abc"]
    outcomes = run_processes(todo, 3, lambda line: None)
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
    outcomes = run_processes([first, second, third], 2, lambda line: None)
    thread.join()
    assert [outcome.status for outcome in outcomes] == ["stopped", "stopped", "not started"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_that_another_process_is_at_is_left_alone(program):
    outcomes = run_processes([program("a", "elsewhere"), program("b")], 1, lambda line: None)
    assert [(o.status, o.message) for o in outcomes] == [("elsewhere", "another process is running it"), ("done", "")]


def test_a_single_run_that_another_process_is_at_ends_with_a_status_of_its_own(cli, tmp_path):
    with claim(tmp_path / "run", ""):
        answer = cli(f"hydra.run.dir={tmp_path / 'run'}", "sweep.resume=true", "logger=csv")
    assert answer.code == ELSEWHERE
    assert "run is in use by process" in answer.err


TINY = [
    *("num_rounds=2", "partition=iid", "partition.num_clients=3", "algorithm.local_epochs=1", "trainer=cpu"),
    *("dataset.train_fraction=0.1", "model.hidden=[4]", "executor=sequential", "callback=none", "logger=csv"),
]


def test_one_command_begins_goes_on_and_skips(cli, tmp_path, monkeypatch, in_round):
    """What a leader types for each of its processes, whatever there is in the directory."""
    command = [*TINY, f"hydra.run.dir={tmp_path / 'run'}", "sweep.resume=true"]
    with monkeypatch.context() as patch:
        in_round(patch, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert cli(*command).code == 128 + signal.SIGINT
    answer = cli(*command)
    assert (answer.code, "rounds          2 of 2" in answer.out) == (0, True), answer.out + answer.err
    written = (tmp_path / "run" / "summary.json").stat().st_mtime_ns
    assert cli(*command).code == 0
    assert (tmp_path / "run" / "summary.json").stat().st_mtime_ns == written
    answer = cli(*command, "seed=2")
    assert (answer.code, "holds a run with other settings: seed=1 instead of 2" in answer.err) == (2, True)
    answer = cli(*TINY, f"sweep.resume={tmp_path}")
    assert (answer.code, "sweep.resume=<directory> goes on with a sweep, which takes -m" in answer.err) == (2, True)
