"""Every data set's yaml names its own module and gives exactly the arguments of its ``load``."""

import importlib
import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import fedgh.dataset
from fedgh.dataset.augmentation import Augmentation

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "dataset").glob("*.yaml"))
LOADERS = sorted(
    path.stem for path in Path(fedgh.dataset.__file__).parent.glob("*.py") if "\ndef load(" in path.read_text()
)


def test_one_yaml_a_loader():
    assert [path.stem for path in CONFIGS] == LOADERS
    assert len(LOADERS) == 25


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_keys_are_the_signature_and_the_signature_has_no_defaults(path):
    config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    chosen = [key for entry in config.pop("defaults", []) if isinstance(entry, dict) for key in entry]
    config |= {key.partition("@")[2]: None for key in chosen if key.partition("@")[2] not in config}  # another group's
    assert config.pop("_target_") == f"fedgh.dataset.{path.stem}.load"
    parameters = inspect.signature(importlib.import_module(f"fedgh.dataset.{path.stem}").load).parameters
    assert set(config) == set(parameters)
    later = {
        "client_column",
        "domain_column",
        "clients_per_task",
        "task_shares",
    }  # runs stored before they existed go on with None
    with_default = {name for name, parameter in parameters.items() if parameter.default is not parameter.empty}
    assert with_default <= later
    augmentation = config.get("augmentation")
    if augmentation is not None:
        assert augmentation.pop("_target_") == "fedgh.dataset.augmentation.Augmentation"
        Augmentation(**augmentation)
