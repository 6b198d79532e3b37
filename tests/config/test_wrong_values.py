"""Values that a part, the Trainer, W&B or the model cannot use: refused by name before any data are read."""

import sys
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from fedgh import config
from fedgh.config.wandb import shortened
from fedgh.core.errors import ConfigurationError
from fedgh.core.flat import FlatModel
from fedgh.federation.check import check_single_examples


@pytest.fixture(scope="module")
def default():
    """Return the resolved config of a run with W&B, composed once."""
    return config.compose(["callback=none", "trainer=cpu"])


def changed(cfg, **values):
    cfg = cfg.copy()
    for key, value in values.items():
        OmegaConf.update(cfg, key, value, force_add=True, merge=False)
    return cfg


REFUSED = [
    ("trainer.max_epochs", 5, "is not read here, leave it out: the passes over a client's data are algorithm.local_ep"),
    ("trainer.max_steps", 1, "is not read here, leave it out: for what it would do type algorithm.local_epochs=1"),
    (
        "trainer.limit_train_batches",
        1,
        "is not read here, leave it out: for what it would do type dataset.train_fracti",
    ),
    ("trainer.accumulate_grad_batches", 2, "leave it out: for what it would do type algorithm.batch_size=128"),
    ("trainer.gradient_clip_val", 1, "leave it out: for what it would do type aggregator=clipped"),
    ("trainer.strategy", "ddp", "is not read here, leave it out: many devices share a run by executor=ray"),
    ("trainer.sync_batchnorm", True, "trainer.sync_batchnorm=True is not read here, leave it out"),
    ("trainer.no_such", 1, "trainer.no_such=1 is not read here, leave it out"),
    ("trainer.logger", True, "trainer.logger=True is not read here, leave it out: rounds are recorded by logger="),
    ("trainer.precision", "bf16-true", "trainer.precision must be 32-true or bf16-mixed, got 'bf16-true'"),
    ("trainer.precision", "16-mixed", "trainer.precision must be 32-true or bf16-mixed, got '16-mixed'"),
    ("trainer.precision", 64, "trainer.precision must be 32-true or bf16-mixed, got 64"),
    ("trainer.devices", 2, "trainer.devices must be 1 or the number of one device"),
    ("trainer.devices", [0, 1], "trainer.devices must be 1 or the number of one device"),
    ("trainer.accelerator", "tpu", "trainer.accelerator must be one of auto, cpu, gpu, cuda, mps, got 'tpu'"),
    ("model.hidden", 64, "model.hidden must be a list of whole numbers, got 64; type model.hidden=[64]"),
    ("model.hidden", [1.5], "model.hidden must be a list of whole numbers, got [1.5]"),
    ("algorithm.optimizer", "adam", "algorithm.optimizer must be an optimizer with its settings, as {_target_: torch"),
    ("algorithm.optimizer.lr", "1e-2x", "algorithm.optimizer.lr must be a number, got '1e-2x'"),
    ("algorithm.optimizer.lr", float("inf"), "algorithm.optimizer.lr must be finite, got inf"),
    ("algorithm.optimizer.lr", float("nan"), "algorithm.optimizer.lr must be a number, got nan"),
    (
        "algorithm.optimizer._target_",
        "torch.optim.Adam",
        "momentum is not a parameter of torch.optim.Adam; leave it ou",
    ),
    ("algorithm.optimizer._target_", "adam", "algorithm.optimizer._target_ names adam, which cannot be imported"),
    ("algorithm.optimizer._target_", "math.pi", "optimizer._target_ names math.pi, which is no class or function"),
    ("algorithm", None, "algorithm must be one of the choices in configs/algorithm"),
    ("sampler", "all", "sampler must be one of the choices in configs/sampler"),
    ("server_optimizer.lr", float("inf"), "server_optimizer.lr must be finite, got inf"),
    ("evaluation", 3, "evaluation is a section of keys, got 3; type for instance evaluation.every=5"),
    ("checkpoint", None, "checkpoint is a section of keys, got None; type for instance checkpoint.every=5"),
    ("on_nonfinite", "ignore", "on_nonfinite must be one of drop, raise, got 'ignore'"),
    ("buffers", "sum", "buffers must be one of average, keep_global, got 'sum'"),
    ("checkpoint.artifact", "maybe", "checkpoint.artifact must be true or false, got 'maybe'"),
    ("callback.x", 3, "callback.x must be a class with its settings"),
    ("callback.x", {"every": 3}, "callback.x must be a class with its settings"),
    ("tags", ["a", ""], "tags must be a list of texts of 1 to 64 letters, got"),
    ("tags", ["x" * 65], "tags must be a list of texts of 1 to 64 letters, got xxx"),
    ("logger.wandb.tags", [None], "logger.wandb.tags must be a list of texts"),
    ("logger.wandb.project", "a/b", "logger.wandb.project must be a name of 1 to 128 letters without any of"),
    ("logger.wandb.project", "x" * 129, "logger.wandb.project must be a name of 1 to 128 letters"),
    ("logger.wandb.group", ["a"], "logger.wandb.group must be text or null, got"),
    ("logger.mode", "onlin", "logger.mode must be one of auto, online, offline, disabled, got 'onlin'"),
    ("logger.patience", 0, "logger.patience must be a positive number of seconds, got 0"),
    ("logger.patience", float("inf"), "logger.patience must be a positive number of seconds, got inf"),
]


@pytest.mark.parametrize(("key", "value", "text"), REFUSED)
def test_wrong_values(default, key, value, text):
    with pytest.raises(ConfigurationError) as caught:
        config.validate(changed(default, **{key: value}))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_right_values_pass(default):
    for key, value in (
        ("trainer.devices", [0]),
        ("trainer.precision", "bf16-mixed"),
        ("trainer.deterministic", True),
        ("trainer.profiler", "simple"),
        ("logger.wandb", None),
        ("callback.x", None),
        ("tags", None),
        ("partition.alpha", float("inf")),
    ):
        config.validate(changed(default, **{key: value}))


def test_one_tag_is_a_list_of_one_and_infinity_is_written_as_in_yaml():
    cfg = config.compose(["tags=debug", "partition.alpha=.inf"])
    assert cfg.tags == cfg.logger.wandb.tags == ["debug"]
    assert cfg.partition.alpha == float("inf")
    assert config.compose(["tags=7"]).tags == [7]
    config.validate(config.compose(["tags=7"]))


def test_long_names_are_shortened_and_stay_apart():
    assert (shortened("short"), shortened(None), shortened("x" * 128)) == ("short", None, "x" * 128)
    first, second = shortened("x" * 200 + "a"), shortened("x" * 200 + "b")
    assert len(first) == len(second) == 128
    assert first != second


class Positional:
    def __init__(self, n, /, *rest, every=1):
        self.n, self.rest, self.every = n, rest, every


class Anything:
    def __init__(self, *layers):
        self.layers = layers


class Flawed(nn.Module):
    """A classifier with a fault of choice."""

    def __init__(self, image_shape, num_classes, hidden):
        super().__init__()
        (fault,) = hidden
        size = image_shape[0] * image_shape[1] * image_shape[2]
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(size, 4))
        if fault != 0:
            self.head = nn.Linear(4, num_classes)
        if fault == 1:
            self.register_buffer("mask", torch.ones(4, dtype=torch.bool))
        if fault == 2:
            self.half()
        if fault == 3:
            self.requires_grad_(False)
        if fault == 4:
            raise KeyError("width")
        if fault == 5:
            self.body = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.head(self.features(x))


@pytest.fixture
def plugged(monkeypatch):
    module = SimpleNamespace(Positional=Positional, Anything=Anything, Flawed=Flawed)
    monkeypatch.setitem(sys.modules, "plugged", module)


@pytest.mark.parametrize(
    ("kind", "node", "refusal"),
    [
        ("Positional", {"_args_": [3]}, None),
        ("Positional", {"_args_": [3, 4, 5], "every": 2}, None),
        ("Anything", {}, None),
        ("Anything", {"_args_": [1, 2]}, None),
        ("Positional", {}, "callback.x needs n for"),
        ("Positional", {"n": 3}, "callback.x.n is given by its place: callback.x._args_ holds n"),
        ("Positional", {"_args_": 3}, "callback.x._args_ must be a list of at most 1 values, got 3"),
        ("Anything", {"n": 3}, "callback.x.n is not a parameter of"),
    ],
)
def test_values_given_by_their_place(default, plugged, kind, node, refusal):
    cfg = changed(default, **{"callback.x": {"_target_": f"plugged.{kind}", **node}})
    if refusal:
        with pytest.raises(ConfigurationError, match=refusal):
            config.validate(cfg)
    else:
        config.validate(cfg)
        (part,) = config.build_callbacks(cfg)
        assert list(part.layers if kind == "Anything" else (part.n, *part.rest)) == node.get("_args_", [])


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (0, "the model Flawed lacks `head`"),
        (1, r"buffer mask is torch.bool, expected torch.int64.*register it as torch.int64"),
        (2, r"parameter body.1.weight is torch.float16, expected torch.float32.*trainer.precision=bf16-mixed"),
        (3, "Flawed has no parameter to train"),
        (4, r"plugged.Flawed cannot be built: KeyError: 'width' \(test_wrong_values.py, line \d+\)"),
        (5, "plugged.Flawed cannot be built: ValueError"),
    ],
)
def test_a_model_that_cannot_be_trained_says_what_it_lacks(default, plugged, fault, text):
    cfg = changed(default, model={"_target_": "plugged.Flawed", "_partial_": True, "hidden": [fault]})
    config.validate(cfg)
    with pytest.raises(ConfigurationError, match=text) as caught:
        config.build_federation(cfg)
    assert "\n" not in str(caught.value)


def test_batch_normalization_with_a_single_example_names_the_client():
    small = ("callback=none", "trainer=cpu", "dataset.train_fraction=0.03", "partition=iid")
    with pytest.raises(ConfigurationError, match=r"client 0 has a single training example \(40 such clients\)"):
        config.build_federation(config.compose([*small, "model=mobilenet_v2", "partition.num_clients=40"]))
    with pytest.raises(ConfigurationError, match=r"algorithm\.batch_size=1 gives it one at a time"):
        config.build_federation(config.compose([*small, "model=mobilenet_v2", "algorithm.batch_size=1"]))
    config.build_federation(config.compose([*small, "partition.num_clients=40"]))  # without batch normalization


def test_looking_at_a_model_trains_nothing(make):
    dataset, model = make.dataset(), FlatModel(make.normed())
    before = (model.params.clone(), model.buffers.clone(), model.counters.clone())
    with pytest.raises(ConfigurationError, match="client 1 has a single training example"):
        check_single_examples(model, dataset, [3, 1, 2], 8)
    check_single_examples(model, dataset, [3, 9, 2], 8)  # nine examples at eight a batch are one batch of nine
    assert all(torch.equal(a, b) for a, b in zip(before, (model.params, model.buffers, model.counters), strict=True))
