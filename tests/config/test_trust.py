"""Somebody else's run directory is data: what its config may build, in every place and by every trick."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fedgh import config
from fedgh.cli import train
from fedgh.core.command import setting
from fedgh.core.errors import ConfigurationError
from fedgh.storage import checkpoint as checkpoints

TINY = [
    *("num_rounds=1", "partition=iid", "partition.num_clients=2", "algorithm.local_epochs=1", "trainer=cpu"),
    *("dataset.train_fraction=0.05", "model.hidden=[2]", "executor=sequential", "logger=csv", "callback=none"),
]

CODE = [
    *("builtins.eval", "builtins.exec", "os.system", "posix.system", "subprocess.Popen", "pandas.read_pickle"),
    *("hydra.utils.get_method", "hydra.utils.instantiate", "hydra.utils.call", "functools.partial", "pickle.load"),
    *("importlib.import_module", "runpy.run_path", "torch.load", "torch.hub.load", "numpy.load", "webbrowser.open"),
    *("fedgh.config.compose.os.system", "fedgh.config.build.instantiate", "fedgh.storage.checkpoint.torch.load"),
    *("fedgh.storage.checkpoint.load", "fedgh.aggregator.base.torch.load", "fedgh.aggregator.mean.torch.hub.load"),
    *("fedgh.sweep.processes.subprocess.Popen", "fedgh.cli.train.main", "fedgh.storage.claim.shutil.rmtree"),
    *("torch.optim.sgd.torch.load", "torch.optim.Optimizer.__class__", "torch.nn.Module", "torch.nn.Linear"),
    *("pytorch_lightning.Trainer.__init__", "pytorch_lightning.seed_everything", "pytorch_lightning.cli.LightningCLI"),
    *("fedgh.federation.checkpoint.load", "fedgh.aggregator.base.require", "fedgh.dataset.parquet_source.read_splits"),
    *("fedgh.executor.ray_cluster.start", "fedgh.executor.ray.Worker", "fedgh.callback.shadow.build_aggregators"),
    *("", ".", "os", "fedgh", "a b", "fedgh..aggregator", 3, None, ["os.system"]),
]
"""Targets that no place of a federation takes, though many can be reached through modules of ours."""

PLACES = [
    *("algorithm", "algorithm.optimizer", "aggregator", "server_optimizer", "dataset", "partition", "model", "sampler"),
    *("executor", "trainer", "trainer.plugins", "logger.x", "callback.x", "callback.x.y", "dataset.augmentation"),
    *("paths", "paths.x", "evaluation", "checkpoint.x", "x", "aggregator.x", "server_optimizer.x", "model.hidden"),
]


@pytest.fixture(scope="module")
def stored():
    """The config of a run with everything in it, as a checkpoint keeps it."""
    recipe = ["algorithm=fedprox", "dataset=cifar10", "callback=[default,shadow,record_updates]", "logger=many"]
    return config.to_text(config.compose([*recipe, "executor=auto", "paths.output_dir=x"]))


def with_target(text, place, target, **settings):
    content = OmegaConf.to_container(OmegaConf.create(text))
    node, inner = place.split("."), content
    for key in node[:-1]:
        inner = inner.setdefault(key, {})
        if not isinstance(inner, dict):
            pytest.skip("no mapping there")
    inner[node[-1]] = {"_target_": target, **settings}
    return OmegaConf.to_yaml(OmegaConf.create(content))


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", PLACES)
def test_no_place_takes_code(stored, place, step):
    for target in CODE[PLACES.index(place) % step :: step]:
        with pytest.raises(ConfigurationError, match=rf"the config's {place}._target_ is .*[;,] "):
            config.parse(with_target(stored, place, target))


@pytest.mark.parametrize("place", ["aggregator", "server_optimizer.lr", "callback.x", "algorithm.optimizer"])
@pytest.mark.parametrize("wrapped", [{"_partial_": True}, {"_recursive_": False}, {"_convert_": "none"}])
def test_hydras_own_keys_open_no_door(stored, place, wrapped):
    with pytest.raises(ConfigurationError, match=r"expected|belongs"):
        config.parse(with_target(stored, place, "os.system", **wrapped))


def test_arguments_without_names_and_nested_parts_are_looked_at(stored):
    good = "fedgh.aggregator.mean.Mean"
    assert config.parse(with_target(stored, "aggregator", good)).aggregator._target_ == good
    with pytest.raises(ConfigurationError, match="the config's aggregator has _args_"):
        config.parse(with_target(stored, "aggregator", good, _args_=["id"]))
    for nested in ({"x": {"_target_": "os.system"}}, {"x": [1, [{"_target_": "os.system"}]]}):
        with pytest.raises(ConfigurationError, match=r"the config's aggregator\.x\S*_target_ is 'os.system'"):
            config.parse(with_target(stored, "aggregator", good, **nested))


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("aggregator", "fedgh.server_optimizer.sgd.SGD"),
        ("server_optimizer", "fedgh.aggregator.mean.Mean"),
        ("server_optimizer", "torch.optim.SGD"),
        ("algorithm.optimizer", "fedgh.server_optimizer.sgd.SGD"),
        ("trainer", "pytorch_lightning.loggers.CSVLogger"),
        ("logger.x", "pytorch_lightning.Trainer"),
        ("executor", "fedgh.executor.ray.Worker"),
        ("callback.x", "fedgh.callback.harm_report.client_losses"),
    ],
)
def test_a_part_of_another_kind_is_refused(stored, place, target):
    with pytest.raises(ConfigurationError, match="expected"):
        config.parse(with_target(stored, place, target))


@pytest.mark.parametrize("reference", ["${oc.env:HOME}", "${oc.decode:x}", "${now:%Y}", "${seed}", "${paths.x}${seed}"])
def test_references_are_no_values(stored, reference):
    content = OmegaConf.create(stored)
    OmegaConf.update(content, "name", reference)
    with pytest.raises(ConfigurationError, match=r"the stored config's name is .*; expected a value, not a reference"):
        config.parse(OmegaConf.to_yaml(content))


def test_a_target_by_reference_is_refused(stored):
    text = with_target(stored, "aggregator", "${paths.x}").replace("paths:", "paths:\n  x: os.system")
    with pytest.raises(ConfigurationError, match="expected the name of a class"):
        config.parse(text)


OF_RUNS = sorted(
    {path.parent.name for path in Path(config.CONFIG_DIR).glob("*/*.yaml")} - {"sweep", "experiment", "hydra"}
)


@pytest.mark.parametrize("group", OF_RUNS)
def test_every_choice_of_ours_is_taken(group):
    for path in Path(config.CONFIG_DIR, group).glob("*.yaml"):
        content = OmegaConf.to_container(OmegaConf.load(path)) or {}
        places = ("client_lr_schedule", "server_lr_schedule") if group == "lr_schedule" else (group,)
        for place in places:
            config.check_parts(content if "@package _global_" in path.read_text() else {place: content})


def test_modules_that_have_moved_are_known(stored):
    from fedgh import moved

    old = {new: name for name, new in moved.MOVED.items()}["fedgh.config.rules"]
    assert "fedgh.config.rules.build_aggregators" in stored
    config.parse(stored.replace("fedgh.config.rules", old))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of a user's own, which says when it is imported."""
    folder = tmp_path / "packages" / "mine_of_test"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(
        "import os\nfrom os import system\nfrom fedgh.aggregator.mean import Mean\nclass Rule(Mean):\n    pass\n"
        "open(__file__ + '.imported', 'w').close()\n"
    )
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    sys.modules.pop("mine_of_test", None)


def test_a_package_of_ones_own_is_trusted_by_name(stored, package):
    text = with_target(stored, "aggregator", "mine_of_test.Rule")
    with pytest.raises(
        ConfigurationError,
        match=r"expected a class of fedgh.aggregator derived from Aggregator. If the package mine_of_test is yours, or "
        r"you trust it and the run's author, type trust=\[mine_of_test\]",
    ):
        config.parse(text)
    assert not (package / "__init__.py.imported").exists(), "it was not even imported"
    assert config.parse(text, ["mine_of_test"]).aggregator._target_ == "mine_of_test.Rule"
    assert (package / "__init__.py.imported").exists()
    config.parse(with_target(stored, "aggregator", "mine_of_test.Rule", _args_=["id"]), ["mine_of_test"])
    for other in ("mine_of_test.system", "mine_of_test.os.system"):
        with pytest.raises(ConfigurationError, match=r"which (is defined in|cannot be imported)"):
            config.parse(with_target(stored, "aggregator", other), ["mine_of_test"])


@pytest.mark.parametrize("trust", ["mine", ["os"], ["builtins.eval"], ["a b"], ["fedgh"], [3]])
def test_nonsense_is_not_trusted(stored, trust):
    with pytest.raises(ConfigurationError, match="trust"):
        config.parse(stored, trust)


def test_a_stored_config_cannot_trust_for_its_reader(stored, package):
    content = OmegaConf.create(with_target(stored, "aggregator", "mine_of_test.Rule"))
    OmegaConf.update(content, "trust", ["mine_of_test"], force_add=True)
    with pytest.raises(ConfigurationError, match="type trust="):
        config.parse(OmegaConf.to_yaml(content))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    train.federate(config.compose([*TINY, setting("paths.output_dir", folder)]))
    return folder


@pytest.mark.parametrize("task", ["train", "evaluate"])
def test_a_strangers_run_runs_nothing(cli, made, tmp_path, task):
    saved, _ = checkpoints.load_newest(made / "checkpoints")
    proof = tmp_path / "proof"
    evil = with_target(saved.config, "server_optimizer", "os.system", command=f"touch {proof}")
    run_dir = tmp_path / "run"
    checkpoints.save(replace(saved, config=evil), run_dir / "checkpoints")
    key = "resume" if task == "train" else "checkpoint"
    answer = cli(f"{key}={run_dir}", task=task)
    assert answer.code == 2
    assert "the config's server_optimizer._target_ is 'os.system'" in answer.err
    assert not proof.exists()
    answer = cli(f"{key}={run_dir}", "trust=[os]", task=task)
    assert (answer.code, proof.exists()) == (2, False)
    assert "trust=[os] would let a stored config run anything" in answer.err


def test_what_is_typed_is_the_users_own_and_the_printed_command_says_whom_to_trust(cli, package):
    answer = cli(*TINY, "aggregator=mean", "aggregator._target_=mine_of_test.Rule")
    assert answer.code == 0, answer.err
    assert f"resume={answer.run_dir} num_rounds=2 'trust=[mine_of_test]'" in answer.out
    assert "round_000001.ckpt 'trust=[mine_of_test]'" in answer.out
    refused = cli(f"resume={answer.run_dir}", "num_rounds=2")
    assert (refused.code, "type trust=[mine_of_test]" in refused.err) == (2, True)
    assert cli(f"resume={answer.run_dir}", "num_rounds=2", "trust=[mine_of_test]").code == 0
    assert cli(f"checkpoint={answer.run_dir}", "trust=[mine_of_test]", task="evaluate").code == 0
