"""What every command sets before anything else."""

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from fedgh.config import CONFIG_DIR, quieten


def test_a_home_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    quieten()
    assert os.environ["HOME"] == str(tmp_path)


LOGGERS = ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero", "lightning_fabric")


def test_what_repeats_at_every_fit_is_silent_and_nothing_else(monkeypatch):
    for name in LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "level", logging.DEBUG)
    monkeypatch.delenv("WANDB_SILENT", raising=False)
    with warnings.catch_warnings(record=True) as heard:
        warnings.resetwarnings()
        quieten()
        warnings.warn("The LeafSpec of this is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("The 'train_dataloader' does not have many workers which may", UserWarning, stacklevel=1)
        warnings.warn("The `srun` command is available on your system but", UserWarning, stacklevel=1)
        warnings.warn("\n'hydra/launcher/x' is validated against ConfigStore schema", UserWarning, stacklevel=1)
        assert heard == []
        warnings.warn("The learning rate is too large", UserWarning, stacklevel=1)
        assert len(heard) == 1
    assert [logging.getLogger(name).level for name in LOGGERS] == [logging.WARNING] * 3
    assert os.environ["WANDB_SILENT"] == "true"


def test_what_the_user_says_of_wandb_stays(monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "false")
    quieten()
    assert os.environ["WANDB_SILENT"] == "false"


@pytest.mark.parametrize("home", [None, ""])
def test_a_home_is_found_where_there_is_none(monkeypatch, home):
    monkeypatch.delenv("HOME", raising=False) if home is None else monkeypatch.setenv("HOME", home)
    quieten()
    assert os.path.isabs(os.environ["HOME"])


@pytest.mark.slow
def test_wandbs_service_writes_nothing_to_a_terminal_without_home(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    command = [sys.executable, "-m", "fedgh.cli.train", "num_rounds=1", "trainer=cpu", "callback=none"]
    command += [f"hydra.run.dir={tmp_path}", "logger.mode=offline", "partition=iid", "partition.num_clients=2"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "handleInform" not in answer.stdout + answer.stderr
    assert " INFO " not in answer.stderr


def test_make_takes_every_python_that_the_package_takes():
    root = Path(CONFIG_DIR).parent
    (line,) = [line for line in (root / "Makefile").read_text().splitlines() if "sys.version_info" in line]
    code = line.partition("-c '")[2].rpartition("'")[0].replace("import sys; ", "")
    for version, accepted in (((3, 10), False), ((3, 11), True), ((3, 12), True), ((3, 13), True), ((3, 14), True)):
        program = (
            f"import types; import sys as real; sys = types.SimpleNamespace(exit=real.exit, version_info={version}); "
        )
        ended = subprocess.run([sys.executable, "-c", program + code], capture_output=True, text=True)
        assert (ended.returncode == 0) is accepted, version
    assert 'requires-python = ">=3.11"' in (root / "pyproject.toml").read_text()
