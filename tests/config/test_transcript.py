"""What a run prints is in its log file, too."""

import logging
import sys

import pytest
from hydra.core.utils import JobReturn, JobStatus

from fedgh.config.transcript import Transcript

TINY = ("num_rounds=2", "partition=iid", "partition.num_clients=3", "dataset.train_fraction=0.2", "callback=none")


@pytest.fixture
def file(tmp_path):
    handler = logging.FileHandler(tmp_path / "train.log", encoding="utf-8")
    logging.getLogger().addHandler(handler)
    yield tmp_path / "train.log"
    logging.getLogger().removeHandler(handler)
    handler.close()


def test_the_log_has_what_the_screen_had(cli):
    answer = cli(*TINY, "logger=csv")
    assert answer.code == 0
    log = (answer.run_dir / "train.log").read_text()
    for line in answer.out.strip().splitlines():
        assert line in log.splitlines(), line
    assert "accuracy        " in log


def test_a_resumed_run_goes_on_with_its_log(cli):
    answer = cli(*TINY, "logger=csv")
    cli(f"resume={answer.run_dir}", "num_rounds=3")
    log = (answer.run_dir / "train.log").read_text()
    assert "rounds          2 of 2" in log
    assert "rounds          3 of 3" in log
    assert log.index("2 of 2") < log.index("resuming") < log.index("3 of 3")


def test_the_error_that_ended_a_job_is_in_its_log(cli):
    answer = cli(*TINY, "logger=csv", "algorithm.optimizer.lr=1e30", "on_nonfinite=raise")
    assert answer.code == 2
    log = (answer.run_dir / "train.log").read_text()
    assert log[log.index("\nerror: ") :].strip() == answer.err[answer.err.index("\nerror: ") :].strip()


def test_a_refused_run_leaves_nothing(cli):
    answer = cli(*TINY, "logger=csv", "partition.num_clients=100000")
    assert answer.code == 2
    assert not list((answer.log_dir / "train" / "runs").iterdir())


def test_the_screen_is_given_back_and_keeps_its_properties(file, capsys):
    screen, transcript = sys.stdout, Transcript()
    transcript.on_job_start(config=None)
    transcript.on_job_start(config=None)  # the job before ended by SystemExit
    assert (sys.stdout.encoding, sys.stdout.isatty()) == (screen.encoding, screen.isatty())
    sys.stdout.writelines(["α\n", "two\n"])
    transcript.on_job_end(config=None, job_return=JobReturn(status=JobStatus.COMPLETED))
    assert sys.stdout is screen
    sys.stdout.write("later\n")
    assert file.read_text(encoding="utf-8") == "α\ntwo\n"
    assert capsys.readouterr().out == "α\ntwo\nlater\n"


def test_without_a_log_file_nothing_is_kept(capsys):
    transcript = Transcript()
    transcript.on_job_start(config=None)
    sys.stdout.write("one\n")
    transcript.on_job_end(config=None, job_return=JobReturn(status=JobStatus.COMPLETED))
    assert capsys.readouterr().out == "one\n"
