"""From what is typed, or was stored, to one resolved config."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedgh.core.errors import ConfigurationError
from fedgh.core.machine import usable_cores

INFINITIES = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}
_PACKAGED = Path(__file__).parents[1] / "configs"
CONFIG_DIR = str(_PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[3] / "configs")
"""The config tree: inside an installed package, else beside ``src`` in a checkout."""


def _run_dir(resume: str | None, log_dir: str, task: str) -> str:
    if resume and Path(resume).is_dir():
        return str(resume)
    return str(Path(log_dir) / task / "runs" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f"))


def _jobs_at_once() -> int:
    """Return one job a GPU; without GPUs one for every two cores."""
    return torch.cuda.device_count() or max(1, usable_cores() // 2)


def _run_name() -> str:
    if not HydraConfig.initialized():  # composed from code
        return "run"
    chosen: Any = HydraConfig.get().runtime.choices
    return f"{chosen.algorithm} + {chosen.aggregator} on {chosen.dataset}"


OmegaConf.register_new_resolver("run_name", _run_name, replace=True)
OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True, use_cache=True)
OmegaConf.register_new_resolver("if_set", lambda value, yes, no: yes if value else no, replace=True)
OmegaConf.register_new_resolver("if_gpu", lambda yes, no: yes if torch.cuda.is_available() else no, replace=True)
OmegaConf.register_new_resolver("jobs_at_once", _jobs_at_once, replace=True)


def compose(overrides: Sequence[str] = (), config_name: str = "train") -> DictConfig:
    """Return a resolved config from code, as the command line would compose it; for notebooks and tests.

    Args:
        overrides: What would be typed, such as ``["aggregator=mean", "num_rounds=5", "paths.output_dir=/tmp/run"]``;
            ``paths.output_dir`` has no default outside a command.
        config_name: ``train``, ``evaluate`` or ``report``.
    """
    with composer():
        return resolve(
            hydra_compose(
                config_name,
                overrides=["paths.output_dir=.", *overrides],
            )
        )


def composer() -> nullcontext[None] | initialize_config_dir:
    """Return a context with Hydra ready: inside an entry point it is, with the user's own config folders."""
    ready = GlobalHydra.instance().is_initialized()
    return nullcontext() if ready else initialize_config_dir(CONFIG_DIR, version_base="1.3")


def resolve(cfg: DictConfig) -> DictConfig:
    """Return the config with all interpolations replaced by their values.

    Raises:
        ConfigurationError: If one cannot be resolved or a mandatory value is missing.
    """
    cfg = cfg.copy()
    try:
        OmegaConf.resolve(cfg)
        missing = OmegaConf.missing_keys(cfg)
    except OmegaConfBaseException as error:
        raise ConfigurationError(f"the config cannot be resolved: {error}") from error
    if missing:
        keys = ", ".join(sorted(missing))
        raise ConfigurationError(f"these keys need a value: {keys}; type for instance {sorted(missing)[0]}=...")
    _normalize(cfg)
    for key in ("tags", "logger.wandb.tags"):
        if isinstance(tags := OmegaConf.select(cfg, key), str | int | float):
            OmegaConf.update(cfg, key, [tags])
    return cfg


def _normalize(node: Any) -> None:
    """Read ``.inf`` and ``.nan`` as YAML does, which the grammar of the command line takes for text."""
    keys = list(node) if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        value = node[key]
        if isinstance(value, DictConfig | ListConfig):
            _normalize(value)
        elif isinstance(value, str) and value.lower() in INFINITIES:
            node[key] = INFINITIES[value.lower()]


def parse(text: str) -> DictConfig:
    """Return the config that a checkpoint stored as YAML."""
    stored = OmegaConf.create(text)
    if not isinstance(stored, DictConfig):
        raise ConfigurationError(f"the stored config is not a mapping: {text[:80]!r}")
    return stored
