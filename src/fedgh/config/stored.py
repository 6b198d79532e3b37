"""A run's config as it is kept beside its numbers, and as it comes back: as data, whoever wrote it.

Kept are values, with two exceptions. What lies in one of the run's ``paths`` refers to them (see
:func:`fedgh.config.compose.resolve`), and the run's own directory is ``.``: a run that is moved, copied or named in
another way gets one value set and no text edited. The user's home is ``~``, since run directories are shared.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedgh.config.compose import literal, map_text
from fedgh.config.trust import check_parts
from fedgh.core.errors import ConfigurationError
from fedgh.storage.portable import from_home, to_home

if TYPE_CHECKING:
    from fedgh.storage.checkpoint import Checkpoint

_REFERENCE = re.compile(r"(?<!\\)(?:\\\\)*\$\{(?!paths\.\w+\})")
"""An interpolation, but for what :func:`fedgh.config.resolve` leaves."""


def to_text(cfg: DictConfig) -> str:
    """Return a resolved config as YAML for :func:`parse`, as checkpoints keep it."""
    return OmegaConf.to_yaml(OmegaConf.create(_shareable(OmegaConf.to_container(_at_home(cfg)))))


def to_values(cfg: DictConfig) -> dict[str, Any]:
    """Return a resolved config as plain values, as readers and other programs get it."""
    values: dict[str, Any] = _shareable(OmegaConf.to_container(_at_home(cfg), resolve=True))
    return values


def save(cfg: DictConfig, path: Path) -> None:
    """Write a resolved config as a file for readers, in which ``.`` is the folder of the file."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(map_text(to_values(cfg), literal))), encoding="utf-8")


def _at_home(cfg: DictConfig) -> DictConfig:
    """Return a copy whose own directory is ``.``."""
    copy = cfg.copy()
    if OmegaConf.select(copy, "paths.output_dir") is not None:
        copy.paths.output_dir = "."
    return copy


def _shareable(content: Any) -> Any:
    return map_text(content, to_home)


def parse(text: str, trust: Sequence[str] = ()) -> DictConfig:
    """Return the config that a checkpoint or a recording holds.

    Args:
        text: As :func:`to_text` wrote it, or as version 0.1 did.
        trust: Packages, or full names of classes, that it may build parts from besides those of FedGH.

    Raises:
        ConfigurationError: If it is no config, or asks for anything but parts of the kind that their place is for.
    """
    try:
        stored = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ConfigurationError(f"the stored config cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(stored, DictConfig):
        raise ConfigurationError(f"the stored config is not a mapping: {text[:80]!r}")
    content: Any = OmegaConf.to_container(stored)
    for path, value in leaves(content):
        if isinstance(value, str) and _REFERENCE.search(value):
            raise ConfigurationError(f"the stored config's {path} is {value!r}; expected a value, not a reference")
    check_parts(content, trust)
    _refer_to_paths(content)
    return OmegaConf.create(map_text(content, from_home))  # type: ignore[no-any-return]


def reopen(named: Path, trust: Sequence[str] = ()) -> tuple[DictConfig, Checkpoint, Path]:
    """Return what a user names, a run's directory or one of its checkpoints: its config, its state, and the file of it.

    The config knows where the run is now.

    Raises:
        CheckpointError: If there is no checkpoint that can be read.
        ConfigurationError: If its config is refused, see :func:`parse`.
    """
    from fedgh.storage import checkpoint as checkpoints  # here: PyTorch, which a refusal should not wait for

    named = named if named.exists() else named.expanduser()
    if not named.is_dir():
        saved, path = checkpoints.load(named), named
    else:
        saved, path = checkpoints.load_newest(checkpoints.run_of(named) / "checkpoints")
    stored = parse(saved.config, trust)
    stored.paths.output_dir = literal(os.path.abspath(checkpoints.run_of(path)))
    return stored, saved, path


def leaves(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    """Return what nested mappings and lists hold, each with its dotted path."""
    if isinstance(tree, Mapping):
        children = [(f"{path}.{key}" if path else str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list):
        children = [(f"{path}[{index}]", value) for index, value in enumerate(tree)]
    else:
        return [(path, tree)]
    return [leaf for name, value in children for leaf in leaves(value, name)]


def _refer_to_paths(content: dict[str, Any]) -> None:
    """Let a config of version 0.1, which kept values only, refer to its paths as later ones do.

    There, parts that write do so at the run's directory or below it, and data sets lie below ``paths.data_dir``.
    """
    paths = content.get("paths")
    if not isinstance(paths, dict) or paths.get("output_dir", ".") == ".":
        return
    for room, key in (("callback", "output_dir"), ("logger", "output_dir"), ("dataset", "data_dir")):
        if isinstance(content.get(room), dict | list) and paths.get(key):
            folder = PurePath(str(paths[key]))
            content[room] = map_text(content[room], lambda text, f=folder, k=key: _relative_to(text, f, k))  # type: ignore[misc]


def _relative_to(text: str, folder: PurePath, key: str) -> str:
    path = PurePath(text)
    if not path.is_relative_to(folder) or (text != str(folder) and folder == PurePath()):
        return text
    rest = path.relative_to(folder)
    return f"${{paths.{key}}}" + ("" if rest == PurePath() else f"/{rest}")
