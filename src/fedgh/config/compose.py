"""From what is typed, or was stored, to one resolved config."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from fedgh.core import configs
from fedgh.core.errors import ConfigurationError
from fedgh.core.machine import usable_cores
from fedgh.storage.claim import found_of_run, has_files, run_of

INFINITIES = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}
CONFIG_DIR = str(configs.CONFIG_DIR)
"""The config tree, see :mod:`fedgh.core.configs`; as text, for Hydra."""


def _run_dir(resume: object, log_dir: str, task: str) -> str:
    """Return the directory of a run: that of the one to go on with, if Hydra can write to it, else a new one."""
    if resume is not None and str(resume):
        run = run_of(Path(str(resume)))
        if has_files(run / "checkpoints") and os.access(run, os.W_OK):
            return str(run)
    return new_run_dir(log_dir, task)


def new_run_dir(log_dir: str, task: str) -> str:
    """Return a directory for a run that begins now."""
    return str(Path(log_dir) / task / "runs" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f"))


def _record_dir(resume: object, folder: str) -> str | None:
    """Return where in a directory Hydra records what was typed; nowhere in that of a run or sweep it does not make."""
    if resume is not None:
        return ".hydra_resumed"
    return None if found_of_run(Path(folder)) else ".hydra"


def _jobs_at_once() -> int:
    """Return one job a GPU; without GPUs one for every two cores."""
    import torch  # here, as in all of this module's neighbours: a refusal should not wait for it

    return torch.cuda.device_count() or max(1, usable_cores() // 2)


def _if_gpu(yes: Any, no: Any) -> Any:
    import torch

    return yes if torch.cuda.is_available() else no


def _run_name() -> str:
    if not HydraConfig.initialized():  # composed from code
        return "run"
    chosen: Any = HydraConfig.get().runtime.choices
    return f"{chosen.algorithm} + {chosen.aggregator} on {chosen.dataset}"


def _wandb_tags() -> ListConfig:
    words = [word.strip() for word in os.environ.get("WANDB_TAGS", "").split(",")]
    return ListConfig([word for word in words if word])


def _take_folder_as_text(hydra_config: HydraConfig, cfg: DictConfig) -> None:
    """Do what Hydra does with a job's config, but read its folder, whose name may hold ``${``, as the text that it is.

    Hydra writes the name, all references in it resolved, to where a reference would be resolved once more.
    """
    folder = OmegaConf.to_container(cfg.hydra.runtime)["output_dir"]  # type: ignore[index, call-overload]
    if "${" in folder:
        with read_write(cfg.hydra.runtime):
            cfg.hydra.runtime.output_dir = literal(folder)
    _set_config(hydra_config, cfg)


_set_config = HydraConfig.set_config
HydraConfig.set_config = _take_folder_as_text  # type: ignore[method-assign, assignment]

OmegaConf.register_new_resolver("run_name", _run_name, replace=True)
OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True, use_cache=True)
OmegaConf.register_new_resolver("record_dir", _record_dir, replace=True)
OmegaConf.register_new_resolver("if_env", lambda name, default: os.environ.get(name) or default, replace=True)
OmegaConf.register_new_resolver("wandb_tags", _wandb_tags, replace=True)
OmegaConf.register_new_resolver("if_gpu", _if_gpu, replace=True)
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
    """Return the config with all interpolations replaced by their values, but for what lies in one of its ``paths``.

    That stays ``${paths.<key>}/...``: a run may be moved, and its data, so these keys are told where they are by
    setting ``paths`` and nothing else.

    Raises:
        ConfigurationError: If one cannot be resolved or a mandatory value is missing.
    """
    asked = cfg.copy()
    try:
        paths: Any = OmegaConf.to_container(asked.paths, resolve=True) if "paths" in asked else {}
        with read_write(asked), open_dict(asked):
            for key in paths:
                asked.paths[key] = _MARK.format(key)
        content: Any = OmegaConf.to_container(asked, resolve=True)
        missing = OmegaConf.missing_keys(asked)
    except OmegaConfBaseException as error:
        raise ConfigurationError(f"the config cannot be resolved: {unresolved(error)}") from error
    if missing:
        keys = ", ".join(sorted(missing))
        raise ConfigurationError(f"these keys need a value: {keys}; type for instance {sorted(missing)[0]}=...")
    content = map_text(content, lambda text: _MARKED.sub(r"${paths.\1}", literal(text)))
    if paths:
        content["paths"] = map_text(paths, literal)
    resolved: DictConfig = OmegaConf.create(content)
    _normalize(resolved)
    for key in ("tags", "logger.wandb.tags"):
        if isinstance(tags := OmegaConf.select(resolved, key), str | int | float):
            OmegaConf.update(resolved, key, [tags])
    OmegaConf.set_struct(resolved, OmegaConf.is_struct(cfg))
    return resolved


def unresolved(error: OmegaConfBaseException) -> str:
    """Return in one line what OmegaConf has against a reference, and how the letters themselves are typed."""
    text = one_line(str(error))
    where = f" (in {error.full_key})" if error.full_key else ""
    hint = "; ${...} stands for another key, the letters themselves are typed as \\${ between quotation marks: "
    example = """'name="a\\${b}"'"""
    return f"{text}{where}" + (hint + example if "nterpolation" in text else "")


def one_line(text: str) -> str:
    """Return a message of Hydra's in one line, without where it looked and what types its keys have."""
    aside = re.compile(r"full_key:|object_type=|reference_type=|Config search path:|provider=|See https?:")
    lines = [line.strip() for line in text.splitlines()]
    return ": ".join(dict.fromkeys(line.rstrip(":") for line in lines if line and not aside.match(line)))


def _normalize(node: Any) -> None:
    """Read ``.inf`` and ``.nan`` as YAML does, which the grammar of the command line takes for text."""
    keys = list(node) if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        value = node[key]
        if isinstance(value, DictConfig | ListConfig):
            _normalize(value)
        elif isinstance(value, str) and value.lower() in INFINITIES:
            node[key] = INFINITIES[value.lower()]


_MARK = "<paths:{}>"
_MARKED = re.compile(r"<paths:(\w+)>")


def map_text(tree: Any, change: Callable[[str], str]) -> Any:
    """Return nested mappings and lists with every text changed; keys and everything else stay."""
    if isinstance(tree, dict):
        return {key: map_text(value, change) for key, value in tree.items()}
    if isinstance(tree, list):
        return [map_text(value, change) for value in tree]
    return change(tree) if isinstance(tree, str) else tree


def literal(text: str) -> str:
    """Return a text such that OmegaConf sees no interpolation in it."""
    return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + "\\${", text)
