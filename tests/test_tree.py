"""Generated from the tree: every yaml works, every module has one, names match."""

import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf

import fedgh
from fedgh import config

CONFIGS, SOURCES = Path(config.CONFIG_DIR), Path(fedgh.__file__).parent
ROOTS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
GROUPS = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONFIGS / group).glob("*.yaml"))]

MIRRORED = (
    "algorithm",
    "aggregator",
    "server_optimizer",
    "dataset",
    "partition",
    "model",
    "sampler",
    "executor",
    "compressor",
)
# A second yaml of a module, which says so in its comments.
SECOND = {
    ("model", "resnet18"): "resnet",
    ("model", "resnet20"): "resnet",
    ("aggregator", "ida"): "geometric_median",
    ("aggregator", "sign_agreement"): "fedgma",
    ("executor", "cohort"): "vectorized",
}
NOT_CHOSEN = ("hydra", "experiment", "sweep")  # tested by themselves; `sweep` holds files for `wandb sweep`
RUN = ["logger=csv", "callback=none", "trainer=cpu"]


def mirrored(groups=MIRRORED):
    return [choice for choice in CHOICES if choice[0] in groups]


def modules(group):
    return sorted(path.stem for path in (SOURCES / group).glob("*.py") if path.stem != "__init__")


def offers(group, name):
    """What a module offers as a choice: concrete classes of its own, or a ``load`` of its own."""
    module = importlib.import_module(f"fedgh.{group}.{name}")
    if group == "dataset":
        return [module.load] if hasattr(module, "load") and module.load.__module__ == module.__name__ else []
    if hasattr(module, "choose") and module.choose.__module__ == module.__name__:  # picks one of its siblings
        return [module.choose]
    base = importlib.import_module(f"fedgh.{group}.base")
    contracts = tuple(
        member
        for _, member in inspect.getmembers(base, inspect.isclass)
        if member.__module__ == base.__name__ and not getattr(member, "_is_protocol", False)
    )
    own = [m for _, m in inspect.getmembers(module, inspect.isclass) if m.__module__ == module.__name__]
    public = [m for m in own if not m.__name__.startswith("_") and not inspect.isabstract(m)]
    if group in ("partition", "sampler"):  # contracts there are protocols
        return [m for m in public if callable(getattr(m, "__call__", None)) and "__call__" in vars(m)]  # noqa: B004
    if group == "server_optimizer":
        return [m for m in public if hasattr(m, "step")]
    return [m for m in public if issubclass(m, contracts)]


def test_the_folders_match():
    assert set(MIRRORED) <= set(GROUPS)
    for group in MIRRORED:
        assert (SOURCES / group / "__init__.py").is_file()
        assert [choice for choice in CHOICES if choice[0] == group], f"no choice in {group}"


@pytest.mark.parametrize("group", MIRRORED)
def test_every_module_that_offers_something_has_its_yaml(group):
    offering = {name for name in modules(group) if name != "base" and offers(group, name)}
    chosen = {SECOND.get(choice, choice[1]) for choice in mirrored([group])}
    assert offering == chosen


@pytest.mark.parametrize(("group", "name"), mirrored())
def test_a_yaml_and_its_module_have_one_name(group, name):
    target = OmegaConf.load(CONFIGS / group / f"{name}.yaml")["_target_"]
    module, _, attribute = target.rpartition(".")
    assert module == f"fedgh.{group}.{SECOND.get((group, name), name)}"
    offered = {member.__name__ for member in offers(group, module.rpartition(".")[2])}
    assert attribute in offered


def nodes(node, path=""):
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, child in node.items():
            yield from nodes(child, f"{path}.{key}")
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from nodes(child, f"{path}[{index}]")


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_key_is_in_the_signature_of_its_target(group, name):
    content = OmegaConf.to_container(OmegaConf.load(CONFIGS / group / f"{name}.yaml"), resolve=False) or {}
    for path, node in nodes(content):
        parameters = inspect.signature(get_object(node["_target_"])).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            continue
        keys = {key for key in node if not key.startswith("_") and key != "defaults"}
        assert keys <= set(parameters), f"{path}: {keys - set(parameters)} of {node['_target_']}"


STORED_WITHOUT = {"weights", "harmonize", "harmonize_lambda", "harmonize_variant"}
"""What the configs of runs do not say that are older than the setting."""
PARTS = {"algorithm", "aggregator", "compressor", "server_optimizer", "partition", "sampler"}


@pytest.mark.parametrize(("group", "name"), mirrored(PARTS))
def test_every_part_is_complete_and_instantiates(root_config, group, name):
    """The yaml gives every parameter: a value that counts is in the config, not hidden in a default."""
    cfg = config.resolve(root_config(*RUN, f"{group}={name}"))
    node = cfg[group]
    part = config.build(node)
    assert type(part).__module__ == f"fedgh.{group}.{SECOND.get((group, name), name)}"
    parameters = inspect.signature(get_object(node["_target_"])).parameters
    assert {key for key in node if not key.startswith("_")} == set(parameters)
    hidden = {name for name, p in parameters.items() if p.default is not p.empty}
    assert hidden <= STORED_WITHOUT, "defaults belong into the yaml"


@pytest.mark.parametrize(("group", "name"), mirrored(["model"]))
def test_every_model_instantiates(root_config, group, name):
    factory = config.build(root_config(f"model={name}").model)
    reads_tokens = "num_tokens" in inspect.signature(factory).parameters
    model = factory((7,), 5, num_tokens=11) if reads_tokens else factory((3, 32, 32), 5)
    assert model.head.out_features == 5
    inputs = torch.randint(0, 11, (2, 7)) if reads_tokens else torch.rand(2, 3, 32, 32)
    assert model(inputs).shape[-1] == 5


@pytest.mark.parametrize("name", [name for group, name in CHOICES if group == "executor" if name != "ray"])
def test_every_executor_trains(root_config, make, name):
    """Ray's has whole runs in its own tests, where a cluster is shared by many."""
    from fedgh.federation.round import initial_state, run_round

    federation = make.federation(executor=config.build(root_config(f"executor={name}").executor))
    outcome = run_round(federation, initial_state(federation.model))
    assert (outcome.result.local_steps > 0).all()


@pytest.mark.parametrize(("group", "name"), [choice for choice in CHOICES if choice[0] not in NOT_CHOSEN])
def test_every_choice_composes_resolves_and_validates(root_config, group, name):
    overrides = [o for o in RUN if not o.startswith(f"{group}=")]
    where = f"{group}@client_{group}" if group == "lr_schedule" else group
    cfg = config.resolve(root_config(*overrides, f"{where}={name}"))
    if (group, name) == ("trainer", "gpu"):
        cfg.trainer.accelerator = "cpu"
    config.validate(cfg)
    config.build_callbacks(cfg)


EXPERIMENTS = CONFIGS / "experiment"


@pytest.mark.parametrize(
    "name", sorted(str(p.relative_to(EXPERIMENTS).with_suffix("")) for p in EXPERIMENTS.rglob("*.yaml"))
)
def test_every_experiment_composes_and_validates(root_config, name):
    cfg = config.resolve(root_config(*RUN, f"experiment={name}"))
    config.validate(cfg)
    for part in sorted(PARTS - {"compressor"}):  # none by default
        config.build(cfg[part])
    first = (EXPERIMENTS / f"{name}.yaml").read_text()
    assert first.startswith("# @package _global_")
    assert "fedgh-train" in first, "an experiment is headed by its command"


@pytest.mark.parametrize("name", [name for group, name in CHOICES if group == "callback"])
def test_every_callback_instantiates(root_config, name):
    cfg = config.resolve(root_config(*(o for o in RUN if not o.startswith("callback")), f"callback={name}"))
    callbacks = config.build_callbacks(cfg)
    assert bool(callbacks) == (name != "none")
    assert all(callable(callback) for callback in callbacks)


@pytest.mark.parametrize("name", [name for group, name in CHOICES if group == "trainer" if name != "gpu"])
def test_every_trainer_instantiates(root_config, name):
    trainer = config.build(root_config(f"trainer={name}").trainer)
    assert trainer.max_epochs == 1
    assert trainer.loggers == []


@pytest.mark.parametrize("root", ROOTS)
def test_every_root_composes(root_config, root):
    cfg = root_config(root=root)
    assert cfg.task_name == root


def test_the_rooms_are_those_that_contributing_describes_and_the_linter_checks():
    root = Path(__file__).parents[1]
    rooms = {path.name for path in SOURCES.iterdir() if (path / "__init__.py").is_file()}
    table = {}
    for line in (root / "CONTRIBUTING.md").read_text().splitlines():
        if found := re.match(r"\| `(\w+)` \| .+ \| (\d+) \|$", line):
            table[found[1]] = int(found[2])
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(c for c in contracts if c["type"] == "layers")["layers"][::-1]
    floors = {name.strip().removeprefix("fedgh."): j for j, layer in enumerate(layers) for name in layer.split("|")}
    assert table == floors
    assert set(table) == rooms


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 13), (3, 14)])
def test_make_takes_the_pythons_that_the_package_takes(version):
    makefile, project = (Path(__file__).parents[1] / name for name in ("Makefile", "pyproject.toml"))
    (code,) = re.findall(r"\$\(PYTHON\) -c '(.*)'", makefile.read_text())
    namespace = f"import types; sys = types.SimpleNamespace(version_info={version}, exit=found.append);"
    found = []
    exec(namespace + code.replace("import sys;", ""), {"found": found})
    (least,) = re.findall(r'requires-python = ">=3\.(\d+)"', project.read_text())
    assert (found[0] == 0) is (version[1] >= int(least))
