"""From overrides to parts: composition, validation, and what a user types most."""

import os
import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fedgh import config
from fedgh.config.compose import _run_dir
from fedgh.config.typed import known_keys
from fedgh.core.command import setting
from fedgh.core.errors import ConfigurationError, PartitionError

RUN = ("logger=csv", "callback=none", "trainer=cpu")


@pytest.fixture
def composed(root_config):
    """Return ``composed(*overrides)``: the resolved root config of a training run."""
    return lambda *overrides: config.resolve(root_config(*RUN, *overrides))


KEYS = {
    "num_rounds": 9,
    "seed": 9,
    "resume": "somewhere",
    "algorithm.local_epochs": 9,
    "algorithm.optimizer.lr": 0.5,
    "partition.num_clients": 9,
    "partition.alpha": 0.5,
    "sampler.fraction": 0.5,
    "on_nonfinite": "raise",
    "evaluation.every": 9,
    "checkpoint.every": 9,
}


@pytest.mark.parametrize("key", KEYS)
def test_the_keys_that_people_type_most(composed, key):
    assert OmegaConf.select(composed(f"{key}={KEYS[key]}"), key) == KEYS[key]


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["algorithm=fedprox", "algorithm.mu=0.5"], "algorithm.mu", 0.5),
        (["algorithm=feddecorr", "algorithm.beta=0.5"], "algorithm.beta", 0.5),
        (["dataset=cifar10", "dataset.root=here", "dataset.source=parquet"], "dataset.root", "here"),
        (["dataset=cifar10", "dataset.source=parquet"], "dataset.source", "parquet"),
        (["logger=wandb", "logger.mode=offline"], "logger.mode", "offline"),
        (["logger=many", "logger.mode=offline"], "logger.mode", "offline"),
        (["logger=wandb", "tags=[a,b]"], "logger.wandb.tags", ["a", "b"]),
        (["debug=default"], "num_rounds", 2),
    ],
)
def test_keys_of_a_choice(composed, overrides, key, value):
    assert OmegaConf.select(composed(*overrides), key) == value


def test_the_default_is_fedgh_on_fedavg_clients(composed):
    cfg = composed()
    targets = {group: cfg[group]["_target_"].rsplit(".", 1)[1] for group in ("algorithm", "aggregator", "model")}
    assert targets == {"algorithm": "FedAvg", "aggregator": "FedGH", "model": "MLP"}
    assert (cfg.dataset["_target_"], cfg.partition.num_clients) == ("fedgh.dataset.digits.load", 20)
    assert (cfg.partition.alpha, cfg.algorithm.local_epochs) == (0.1, 5)
    optimizer = cfg.algorithm.optimizer
    assert (optimizer.lr, optimizer.momentum, cfg.algorithm.batch_size) == (0.01, 0.9, 64)  # core spec, section 8
    config.validate(cfg)


@pytest.mark.parametrize("trainer", ["auto", "cpu", "gpu"])
@pytest.mark.parametrize("logger", ["wandb", "csv", "tensorboard", "many"])
def test_trainers_and_loggers_compose(composed, trainer, logger):
    cfg = composed(f"trainer={trainer}", f"logger={logger}")
    assert cfg.trainer.accelerator == trainer
    if trainer != "gpu":
        config.validate(cfg)


def test_everything_is_resolved_and_the_composed_config_is_left_alone(root_config):
    raw = root_config(*RUN, "dataset=cifar10", "paths.data_dir=there")
    resolved = config.resolve(raw)
    assert resolved.dataset.root == "there/cifar10"
    assert OmegaConf.to_container(raw, resolve=False)["dataset"]["root"] == "${paths.data_dir}/cifar10"
    stored = OmegaConf.to_yaml(resolved)
    assert "root: ${paths.data_dir}/cifar10" in stored, "the data may be moved"
    assert set(re.findall(r"\$\{[^}]*\}", stored)) <= {"${paths.data_dir}", "${paths.output_dir}"}


def test_a_stored_config_comes_back_and_validates(composed):
    cfg = composed("algorithm=fednova", "aggregator=fedgh")
    restored = config.parse(OmegaConf.to_yaml(cfg))
    assert restored == cfg
    config.validate(restored)
    with pytest.raises(ConfigurationError, match="the stored config is not a mapping"):
        config.parse("[1, 2]")


def test_missing_values_are_named(root_config):
    with pytest.raises(ConfigurationError, match=r"these keys need a value: checkpoint; type for instance checkpoint="):
        config.resolve(root_config(root="evaluate"))
    with pytest.raises(ConfigurationError, match=r"the config cannot be resolved: .*nope"):
        config.resolve(OmegaConf.create({"a": "${nope}"}))


BAD = {
    "num_rounds=true": "num_rounds must be a positive integer, got True",
    "checkpoint.keep=0": "checkpoint.keep must be a positive integer, got 0",
    "evaluation.personal_every=null": "evaluation.personal_every must be a positive integer, got None",
    "evaluation.personal_clients=0": r"evaluation.personal_clients must be null \(all of them\) or a .* integer, got 0",
    "evaluation.fine_tune_epochs=-1": r"evaluation.fine_tune_epochs must be null .* or an integer of 0 or more, got -1",
    "evaluation.fine_tune_every=0": r"evaluation.fine_tune_every must be null .* or a positive integer, got 0",
    "evaluation.after_training=1": "evaluation.after_training must be true or false, got 1",
    "evaluation.batch_size=-1": "evaluation.batch_size must be a positive integer, got -1",
    "seed=1.5": "seed must be an integer of 0 or more, got 1.5",
    "memory_format=nhwc": "memory_format must be one of channels_last, contiguous, got 'nhwc'",
    "fp32_precision=high": "fp32_precision must be null or one of ieee, tf32, got 'high'",
    "sampler.fraction=half": "sampler.fraction must be a number, got 'half'",
    "algorithm.batch_size=1.5": "algorithm.batch_size must be a whole number, got 1.5",
    "algorithm.local_epochs=true": "algorithm.local_epochs must be a whole number, got True",
    "+aggregator.sweep=2": r"aggregator.sweep is not a parameter of .*FedGH \(did you mean sweeps\?\)",
    "+algorithm.optimizer.momentun=2": r"algorithm.optimizer.momentun is not a parameter .*did you mean momentum\?",
    "~aggregator.sweeps": "aggregator needs sweeps for fedgh.aggregator.fedgh.FedGH; add them to the config",
    "algorithm._target_=fedgh.algorithm.none.None": "algorithm._target_ names fedgh.algorithm.none.None, which cannot",
}


@pytest.mark.parametrize("override", BAD)
def test_validation(composed, override):
    with pytest.raises(ConfigurationError, match=BAD[override]):
        config.validate(composed(override))


@pytest.mark.parametrize("override", ["seed=true", "seed=null"])
def test_a_seed_is_a_number(composed, override):
    with pytest.raises(ConfigurationError, match="seed must be an integer of 0 or more"):
        config.validate(composed(override))


def test_errors_of_a_part_come_out_as_its_own(composed):
    cfg = composed("partition=classes", "partition.num_clients=11")
    with pytest.raises(PartitionError, match="at most the number of classes"):
        config.build_federation(cfg)
    with pytest.raises(ConfigurationError, match=r"sampler\.fraction must be above 0") as caught:
        config.build_federation(composed("sampler.fraction=2"))
    assert caught.value.__suppress_context__ or caught.value.__cause__ is None


def test_a_cheap_mistake_is_found_before_any_data_is_read(composed, monkeypatch):
    from fedgh.dataset import digits

    monkeypatch.setattr(digits, "load", lambda **_: pytest.fail("data were read"))
    for override in (
        "algorithm.local_epochs=0",
        "sampler.fraction=0",
        "server_optimizer.lr=-1",
        "partition.num_clients=0",
    ):
        cfg = composed(override)
        with pytest.raises(ConfigurationError):
            config.build_federation(cfg)


def test_building_leaves_the_global_random_state_alone_and_depends_on_the_seed_only(composed):
    cfg = composed("dataset.train_fraction=0.1", "partition=iid")
    before = torch.get_rng_state()
    first = config.build_federation(cfg)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again, other = config.build_federation(cfg), config.build_federation(composed("seed=2", *cfg_of(cfg)))
    assert torch.equal(first.model.params, again.model.params)
    assert first.partition.hash == again.partition.hash
    assert not torch.equal(first.model.params, other.model.params)
    assert first.partition.hash != other.partition.hash


def cfg_of(cfg):
    return [f"dataset.train_fraction={cfg.dataset.train_fraction}", "partition=iid"]


def test_the_schedule_and_the_callbacks(composed):
    schedule = config.build_schedule(composed("num_rounds=7", "evaluation.every=3", "checkpoint.every=2"))
    assert [t for t in range(1, 8) if schedule.due(schedule.evaluate_every, t)] == [3, 6, 7]
    assert [t for t in range(1, 8) if schedule.due(schedule.checkpoint_every, t)] == [2, 4, 6, 7]
    assert config.build_callbacks(composed()) == []
    kinds = {type(c).__name__ for c in config.build_callbacks(composed("callback=default"))}
    assert "CosinePicture" in kinds
    fewer = {
        type(c).__name__ for c in config.build_callbacks(composed("callback=default", "callback.cosine_picture=null"))
    }
    assert fewer == kinds - {"CosinePicture"}


def test_the_mode_of_wandb(monkeypatch):
    import wandb

    monkeypatch.delenv("WANDB_MODE", raising=False)
    for mode in ("online", "offline", "disabled"):
        assert config.wandb_mode(mode) == mode
    asked = []
    monkeypatch.setattr(wandb, "login", lambda **settings: asked.append(settings) or False)
    assert config.wandb_mode("auto") == "offline"  # no key, and nothing is asked
    assert asked == [{"prompt": False}]
    monkeypatch.setattr(wandb, "login", lambda **settings: True)
    assert config.wandb_mode("auto") == "online"

    def unreachable(**settings):
        raise wandb.errors.AuthenticationError("Failed to authenticate")

    monkeypatch.setattr(wandb, "login", unreachable)
    assert config.wandb_mode("auto") == "online"  # with a key; the run's start falls back to offline, and says why
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert config.wandb_mode("auto") == "offline"
    assert config.wandb_mode("online") == "online"


def test_a_mode_of_the_environment_that_wandb_does_not_know(composed, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offlin")
    with pytest.raises(ConfigurationError, match=r"WANDB_MODE must be one of online, offline, disabled, got 'offlin'"):
        config.validate(config.resolve(composed("logger=wandb")))
    config.validate(config.resolve(composed("logger=wandb", "logger.mode=offline")))  # the variable is not read
    config.validate(config.resolve(composed("logger=csv")))
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    config.validate(config.resolve(composed("logger=wandb")))


def test_a_disabled_wandb_is_no_logger(composed, tmp_path):
    cfg = composed("logger=wandb", "logger.mode=disabled")
    assert config.build_loggers(cfg, tmp_path, "id", "name", None) == []
    assert config.build_loggers(composed(), tmp_path, "id", "name", None) == []


def test_suggestions(root_config):
    assert config.did_you_mean("algoritm", ["algorithm", "aggregator"]) == " (did you mean algorithm?)"
    assert config.did_you_mean("xyz", ["algorithm"]) == ""
    known = known_keys("train")
    assert {"num_rounds", "algorithm.local_epochs", "partition.num_clients", "paths.log_dir"} <= set(known)


def test_paths_come_from_the_environment(composed, monkeypatch):
    monkeypatch.setenv("FEDGH_LOG_DIR", os.sep + "elsewhere")
    monkeypatch.setenv("FEDGH_DATA_DIR", os.sep + "data")
    cfg = composed("dataset=mnist")
    assert (cfg.paths.log_dir, cfg.dataset.root) == ("/elsewhere", "/data/mnist")


def test_the_config_tree_is_found():
    assert Path(config.CONFIG_DIR, "train.yaml").is_file()


def test_two_runs_never_share_a_directory(tmp_path):
    first, second = (_run_dir(None, "logs", "train") for _ in range(2))
    assert first != second
    assert re.fullmatch(r"logs/train/runs/[\d_-]{26,}", first)
    assert _run_dir(str(tmp_path), "logs", "train") != str(tmp_path), "there is no run in it"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "round_000001.ckpt").touch()
    assert _run_dir(str(tmp_path), "logs", "train") == str(tmp_path)
    assert _run_dir(str(tmp_path / "checkpoints" / "round_000001.ckpt"), "logs", "train") == str(tmp_path)
    assert _run_dir(str(tmp_path / "typo"), "logs", "train") not in (first, second, str(tmp_path / "typo"))
    odd = tmp_path.rename(tmp_path.with_name("b ${x}"))
    assert _run_dir(str(odd), "logs", "train") == str(odd), "whatever it is called"


@pytest.mark.parametrize("folder", ["a b", "a${b}", "${", "a\\${b}", "\\", "${oc.env:HOME}"])
def test_what_is_built_gets_the_very_path(tmp_path, folder):
    """It is read twice on the way, by us and by Hydra."""
    cfg = config.compose(["callback=default", setting("paths.output_dir", str(tmp_path / folder))])
    (observatory,) = (part for part in config.build_callbacks(cfg) if hasattr(part, "output_dir"))
    assert observatory.output_dir == str(tmp_path / folder)


def test_a_run_computes_in_the_precision_that_it_asks_for(composed):
    """And the next job of a sweep, in the same process, in its own."""
    before = torch.backends.cudnn.conv.fp32_precision
    for asked in ("ieee", "tf32", "null"):
        config.build_federation(composed(f"fp32_precision={asked}"))
        assert torch.backends.cudnn.conv.fp32_precision == (before if asked == "null" else asked)


@pytest.mark.parametrize(("gpus", "cores", "jobs"), [(0, 8, 4), (0, 5, 2), (0, 1, 1), (1, 64, 1), (4, 2, 4)])
def test_a_sweep_runs_a_job_a_gpu_or_one_for_two_cores(monkeypatch, gpus, cores, jobs):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setitem(_run_dir.__globals__, "usable_cores", lambda: cores)
    assert OmegaConf.create({"n": "${jobs_at_once:}"}).n == jobs
