"""What W&B's variables fill where the user left the default."""

import os

import pytest

from fedgh import config
from fedgh.config.logger import own_service


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    for name, value in {"PROJECT": "mine", "ENTITY": "team", "RUN_GROUP": "ours", "TAGS": "t1, t2,"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)


def wandb_of(*overrides):
    cfg = config.compose(overrides)
    return cfg.logger.wandb, cfg.tags


def test_they_fill_what_was_left_open():
    node, tags = wandb_of()
    assert (node.project, node.entity, node.group) == ("mine", "team", "ours")
    assert node.tags == tags == ["t1", "t2"]


def test_what_is_typed_wins():
    node, tags = wandb_of("logger.wandb.project=typed", "logger.wandb.group=typed", "tags=[typed]")
    assert (node.project, node.group, node.tags, tags) == ("typed", "typed", ["typed"], ["typed"])
    assert wandb_of("tags=[]")[0].tags == []


def test_without_them_the_defaults_stand(monkeypatch):
    for name in ("PROJECT", "ENTITY", "RUN_GROUP", "TAGS"):
        monkeypatch.setenv(f"WANDB_{name}", "")
    node, tags = wandb_of()
    assert (node.project, node.entity, node.group, node.tags, tags) == ("fedgh", None, None, [], [])


def test_the_name_of_a_run(root_config, monkeypatch):
    from fedgh.cli.carry_out import name_run

    cfg = config.resolve(root_config("callback=none"))
    monkeypatch.setenv("WANDB_NAME", "named")
    assert name_run(cfg)[0] == cfg.logger.wandb.name == "named"
    typed = config.resolve(root_config("callback=none", "logger.wandb.name=typed"))
    name_run(typed)
    assert typed.logger.wandb.name == "typed"
    monkeypatch.delenv("WANDB_NAME")
    plain = config.resolve(root_config("callback=none"))
    assert name_run(plain)[0] == plain.logger.wandb.name == "fedavg + fedgh on digits, seed 1"


def test_a_project_of_the_environment_is_checked_like_a_typed_one(monkeypatch):
    from fedgh.core.errors import ConfigurationError

    monkeypatch.setenv("WANDB_PROJECT", "a/b")
    with pytest.raises(ConfigurationError, match=r"logger\.wandb\.project must be a name"):
        config.validate(config.compose(["callback=none"]))


@pytest.mark.parametrize(
    ("token", "kept"),
    [("3-{}-unix-/tmp/wandb-1/socket", True), ("3-{}1-unix-/tmp/wandb-1/socket", False), ("x", False)],
)
def test_the_service_of_another_process_is_left_to_it(monkeypatch, token, kept):
    monkeypatch.setenv("WANDB_SERVICE", token.format(os.getpid()))
    own_service()
    assert ("WANDB_SERVICE" in os.environ) == kept
    monkeypatch.delenv("WANDB_SERVICE", raising=False)
    own_service()
