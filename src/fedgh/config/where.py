"""Which stored run is meant, whatever it is called, and where it runs: what may be typed anew about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from fedgh.config.compose import resolve
from fedgh.config.stored import leaves
from fedgh.core.command import command, quoted, setting
from fedgh.core.errors import ConfigurationError, did_you_mean

PATHS = ("resume", "sweep.resume", "checkpoint", "recording", "run")
"""Keys that name what is there already, whatever it is called: their values are taken as they are typed."""

WHERE = (
    "trainer",
    "executor",
    "logger",
    "paths",
    "dataset.root",
    "dataset.source",
    "dataset.download",
    "dataset.images.root",
    "dataset.cache",
)
"""Settings that say where a run is computed and recorded, not what: they may be given anew to a stored run."""

_FOLDER = re.compile(r"callback\.\w+\.output_dir")
_OPENED = ("executor", "logger", "callback", "trainer")
"""What connects to somewhere, or writes files."""
_ELSEWHERE = re.compile(r"^[/~\\]|^\w:[/\\]|://|^[\w.-]+:\d+$|(^|[/\\])\.\.([/\\]|$)|^\$\{paths\.(?!output_dir\})")
"""Texts that are absolute paths, addresses, or lead upwards."""
_PLACES = ("dir", "path", "root", "file", "filename", "uri", "url", "host", "address")
_WORDS = ("_target_", "name", "group", "tags", "project", "entity", "notes")
"""Ends of keys that hold a place, and keys that hold anything else."""

_GROUPS = ("trainer", "executor", "logger")
KEPT = ("trainer.precision", "executor.row_dtype")
"""Settings of these groups that decide about numbers: the run's own, unless they are typed."""


def ready(arguments: Sequence[str], config_name: str) -> list[str]:
    """Return what was typed such that Hydra takes it.

    A path that Hydra's grammar would refuse, or read as a number or a list, is put in quotation marks. Settings of a
    stored run's parts get a ``++``: whether there is such a key is for the stored config to say, not for the defaults.
    """
    several = any(argument in ("-m", "--multirun") for argument in arguments)
    stored = config_name in ("evaluate", "replay") or any(key_of(argument) == "resume" for argument in arguments)
    prepared = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key_of(argument) in PATHS and "${" in value and Path(value).exists():  # no reference, a name
            argument = f"{key}={quoted(value)}"
        elif key and equals and key_of(argument) in PATHS and not _read_as_typed(argument, value, several):
            argument = f"{key}={quoted(value)}".replace("\\${", "${")  # a reference stays one
        if key and equals and stored and key[0] not in "+~" and is_where(key) and key not in _GROUPS:
            argument = f"++{argument}"
        prepared.append(argument)
    return prepared


def key_of(argument: str) -> str:
    """Return the key of an override, without Hydra's ``+``, ``++`` and ``~``."""
    return argument.partition("=")[0].lstrip("+~")


def _read_as_typed(argument: str, value: str, several: bool) -> bool:
    """Tell whether Hydra reads a path as the text that was typed, or as something that a path may be, too."""
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    found = override.value()
    if found is None or isinstance(found, bool) or isinstance(override._value, QuotedString):
        return True
    return (several and override.is_sweep_override()) or found == value


def is_where(key: str) -> bool:
    """Tell whether a key is one of those that say where a run is computed; see :data:`WHERE`."""
    return _FOLDER.fullmatch(key) is not None or any(key == name or key.startswith(f"{name}.") for name in WHERE)


def typed_words(composed: DictConfig | None = None) -> list[str]:
    """Return what was typed for this task.

    Args:
        composed: Where nothing was, but a config composed from code, by whose groups it is told then. Only of a root
            config that has none by default.
    """
    if HydraConfig.initialized():
        return as_typed(HydraConfig.get().overrides.task)
    return [group for group in _GROUPS if composed is not None and composed.get(group) is not None]


def as_typed(overrides: Any) -> list[str]:
    """Return what Hydra has kept of a command line, references as they were typed."""
    words: Any = OmegaConf.to_container(overrides, resolve=False)
    return [str(word) for word in words]


def outside(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings of a config that lead out of the run's own directory: addresses and folders to write to.

    Data are read from wherever they are; what is read is known by its fingerprint.
    """
    whole: Any = OmegaConf.to_container(cfg)
    content = {key: node for key, node in whole.items() if key in _OPENED}
    return {key: value for key, value in leaves(content) if isinstance(value, str) and _leads_out(key, value)}


def _leads_out(key: str, value: str) -> bool:
    name = re.sub(r"\[.*", "", key).rpartition(".")[2]
    if name in _WORDS or (value.startswith("${paths.output_dir}") and ".." not in value):
        return False
    return _ELSEWHERE.search(value) is not None or (name.endswith(_PLACES) and value not in ("auto", "local"))


def check_outside(stored: DictConfig, own: DictConfig) -> None:
    """Refuse a stored config that leads out of its directory to where the command at hand does not go itself.

    Args:
        stored: Of a run that is to go on, with what was typed anew.
        own: The command's, resolved or not.

    Raises:
        ConfigurationError: With what to type if the place is the user's own.
    """
    mine = outside(own)
    for key, value in outside(stored).items():
        if mine.get(key) != value:
            raise ConfigurationError(
                f"the stored config's {key} is {value!r}, outside the run's own directory, and somebody else may have "
                f"written it; to go there type {command(setting(key, value))}, or another {key}"
            )


def apply_where(stored: DictConfig, cfg: DictConfig, words: Sequence[str]) -> DictConfig:
    """Return a stored config with the settings that say where to run as they were typed.

    Args:
        stored: As :func:`fedgh.config.parse` returns it.
        cfg: The command's own config, not resolved.
        words: What was typed, other settings included.

    Raises:
        ConfigurationError: If the stored run has no such setting.
    """
    stored = stored.copy()
    typed = {key_of(word): word for word in words if is_where(key_of(word))}
    if "paths.output_dir" in typed and "resume" in map(key_of, words):
        raise ConfigurationError("paths.output_dir is where the resumed run is; leave it out")
    with open_dict(stored):
        for node in ("dataset", "dataset.images"):
            if OmegaConf.select(stored, f"{node}.download"):
                OmegaConf.update(
                    stored, f"{node}.download", False
                )  # nothing is fetched because somebody else has asked for it
        for group in _GROUPS:
            if group in typed:
                kept = {key: OmegaConf.select(stored, key) for key in KEPT if key not in typed}
                stored[group] = OmegaConf.create(OmegaConf.to_container(cfg[group]))
                for key, value in kept.items():
                    if value is not None and OmegaConf.select(stored, key) is not None:
                        OmegaConf.update(stored, key, value)
        for key, word in typed.items():
            if key in _GROUPS:
                continue
            parent, _, name = key.rpartition(".")
            known = OmegaConf.select(stored, parent) or {}
            if name not in known and not (word[0] == "+" and word[1] != "+") and "_target_" not in known:
                raise ConfigurationError(f"the stored run has no {key}{did_you_mean(name, [str(k) for k in known])}")
            OmegaConf.update(stored, key, _raw(cfg, key), force_add=True)
    return resolve(stored)


def _raw(cfg: DictConfig, key: str) -> Any:
    """Return a setting as it is composed, references included."""
    parent, _, name = key.rpartition(".")
    node: Any = OmegaConf.select(cfg, parent)
    return OmegaConf.to_container(node)[name]  # type: ignore[index, call-overload]
