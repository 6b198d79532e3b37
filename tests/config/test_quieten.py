"""What every command sets before anything else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedgh.config import CONFIG_DIR, quieten


def test_a_home_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    quieten()
    assert os.environ["HOME"] == str(tmp_path)


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
