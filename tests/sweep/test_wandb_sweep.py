"""W&B sweeps: their files, with W&B's own making of commands, and what an agent starts."""

import itertools
from pathlib import Path

import pytest
import wandb
import yaml
from wandb.sdk.launch.sweeps import utils as agent

from fedgh import config
from fedgh.storage import checkpoint as checkpoints
from fedgh.tracking import offline

FILES = sorted(Path(config.CONFIG_DIR, "sweep").glob("*.yaml"))
TINY = [
    *("num_rounds=2", "partition=iid", "partition.num_clients=3", "algorithm.local_epochs=1", "trainer=cpu"),
    *("dataset.train_fraction=0.1", "model.hidden=[4]", "executor=sequential", "callback=none"),
]
KEYS = {
    *("name", "project", "program", "command", "method", "metric", "run_cap", "early_terminate", "parameters"),
}
PARAMETER = [{"value"}, {"values"}, {"distribution", "min", "max"}]


def command_of(sweep, values):
    """The command that an agent makes of one combination."""
    macros = agent.create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    parts = agent.create_sweep_command(list(sweep["command"]))
    return [word for part in parts for word in (macros[part[2:-1]] if part.startswith("${") else [part])]


def ends(parameter):
    return parameter.get("values") or (
        [parameter["value"]] if "value" in parameter else [parameter["min"], parameter["max"]]
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_a_sweep_and_every_combination_of_it_a_config(root_config, path):
    sweep = yaml.safe_load(path.read_text())
    assert set(sweep) <= KEYS
    assert sweep["method"] in ("grid", "bayes", "random")
    assert sweep["metric"] == {"name": "global/test/acc", "goal": "maximize"}
    assert sweep.get("early_terminate", {"type": "hyperband"})["type"] == "hyperband"
    assert all(set(parameter) in PARAMETER for parameter in sweep["parameters"].values())
    if sweep["method"] == "grid":
        assert all(set(parameter) != PARAMETER[2] for parameter in sweep["parameters"].values())
    names = list(sweep["parameters"])
    for values in itertools.product(*map(ends, sweep["parameters"].values())):
        program, *overrides = command_of(sweep, dict(zip(names, values, strict=True)))
        assert program == sweep["program"] == "fedgh-train"
        config.validate(config.resolve(root_config(*overrides, "trainer=cpu", "callback=none")))
    assert f"wandb sweep configs/sweep/{path.name}" in path.read_text(), "a sweep is headed by its command"


def test_there_are_sweeps():
    assert {yaml.safe_load(path.read_text())["method"] for path in FILES} == {"grid", "bayes"}


@pytest.fixture
def agents_run(monkeypatch, tmp_path):
    """The environment of what an agent starts, see ``wandb_agent.Agent._command_run``."""
    parameters = tmp_path / "config-abc123.yaml"
    parameters.write_text("wandb_version: 1\nserver_optimizer.lr:\n  value: 0.5\n")
    for key, value in {"SWEEP_ID": "sw1", "RUN_ID": "abc123", "SWEEP_PARAM_PATH": str(parameters)}.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    wandb.teardown()  # its settings are read once
    yield "abc123"
    monkeypatch.undo()
    wandb.teardown()


@pytest.mark.filterwarnings("ignore:unclosed file.*config-abc123:ResourceWarning")  # W&B leaves it open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_job_of_an_agent_writes_into_the_agents_run_also_when_resumed(cli, agents_run, monkeypatch):
    answer = cli(*TINY, "server_optimizer.lr=0.5", "logger=wandb", "logger.mode=offline")
    assert answer.code == 0, answer.err
    wandb.teardown()
    (path,) = offline.offline_files(answer.run_dir, agents_run)
    found = offline.contents(path)
    assert [row["round"] for row in found.rows] == [1, 2]
    assert all("global/test/acc" in row for row in found.rows), "what the sweep goes by"
    assert found.config["server_optimizer"]["lr"] == found.config["server_optimizer.lr"] == 0.5
    assert checkpoints.load_newest(answer.run_dir / "checkpoints")[0].wandb_id == agents_run
    for key in ("SWEEP_ID", "RUN_ID", "SWEEP_PARAM_PATH"):
        monkeypatch.delenv(f"WANDB_{key}")
    wandb.teardown()
    assert cli(f"resume={answer.run_dir}", "num_rounds=3").code == 0
    wandb.teardown()
    assert [offline.last_round(answer.run_dir, agents_run)] == [3]


def test_a_multirun_inside_an_agent_is_refused(cli, agents_run):
    answer = cli("-m", *TINY, "seed=1,2")
    assert answer.code == 2
    assert "an agent of a W&B sweep has started this, and its jobs would all write into one W&B run; leave out -m" in (
        answer.err
    )
