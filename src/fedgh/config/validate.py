"""What can be said against a config before any file is read."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from fedgh.core.errors import ConfigurationError

WANDB_MODES = ("auto", "online", "offline", "disabled")
MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def validate(cfg: DictConfig) -> None:
    """Check everything that can be checked before any file is read.

    Raises:
        ConfigurationError: A parameter that a chosen part does not have, a missing one, or a value out of its range.
    """
    for path, node in _targets(cfg, ""):
        _check_signature(path, node)
    every = cfg.evaluation.get("personal_every", 1)  # runs stored before there were personal models have neither key
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ConfigurationError(f"evaluation.personal_every must be a positive integer, got {every!r}")
    if cfg.evaluation.get("personal_clients") is not None:  # null: all of them
        limit = cfg.evaluation.personal_clients
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ConfigurationError(f"evaluation.personal_clients must be null or a positive integer, got {limit!r}")
    for key in ("num_rounds", "evaluation.every", "evaluation.batch_size", "checkpoint.every", "checkpoint.keep"):
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"{key} must be a positive integer, got {value!r}")
    limit = OmegaConf.select(cfg, "checkpoint.client_states_mib", default=0)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise ConfigurationError(f"checkpoint.client_states_mib must be an integer of 0 or more, got {limit!r}")
    if not isinstance(cfg.seed, int) or isinstance(cfg.seed, bool) or cfg.seed < 0:
        raise ConfigurationError(f"seed must be an integer of 0 or more, got {cfg.seed!r}")
    if cfg.logger.get("mode", "auto") not in WANDB_MODES:
        raise ConfigurationError(f"logger.mode must be one of {', '.join(WANDB_MODES)}, got {cfg.logger.mode!r}")
    patience = cfg.logger.get("patience", 60)
    if isinstance(patience, bool) or not isinstance(patience, int | float) or patience <= 0:
        raise ConfigurationError(f"logger.patience must be a positive number of seconds, got {patience!r}")
    if cfg.get("memory_format", "contiguous") not in MEMORY_FORMATS:
        raise ConfigurationError(
            f"memory_format must be one of {', '.join(MEMORY_FORMATS)}, got {cfg.memory_format!r}; results differ only "
            "in their last bits"
        )
    if cfg.trainer.get("accelerator") == "gpu" and not torch.cuda.is_available():
        raise ConfigurationError(
            "trainer=gpu was asked for, but PyTorch finds no GPU here; type trainer=cpu or trainer=auto"
        )


def _targets(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    """Yield every node with a ``_target_``, with its path."""
    if isinstance(node, ListConfig):
        children = [(f"{path}[{i}]", child) for i, child in enumerate(node)]
    elif isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        children = [(f"{path}.{key!s}" if path else str(key), child) for key, child in node.items()]
    else:
        return
    for child_path, child in children:
        yield from _targets(child, child_path)


def _check_signature(path: str, node: DictConfig) -> None:
    target = node["_target_"]
    try:
        parameters = inspect.signature(get_object(target)).parameters
    except Exception as error:
        raise ConfigurationError(f"{path}._target_ names {target}, which cannot be imported: {error}") from error
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and not target.startswith("fedgh."):
        return  # what ours take beyond their named parameters comes from code
    keys = [str(key) for key in node if not str(key).startswith("_")]
    for key in keys:
        if key not in parameters:
            raise ConfigurationError(
                f"{path}.{key} is not a parameter of {target}{did_you_mean(key, list(parameters))}; "
                f"it has: {', '.join(parameters) or 'none'}"
            )
        _check_number(f"{path}.{key}", node[key], parameters[key].annotation)
    needed = [n for n, p in parameters.items() if p.default is p.empty and n not in keys]
    if needed and not node.get("_partial_", False):
        raise ConfigurationError(f"{path} needs {', '.join(needed)} for {target}; add them to the config")


def _check_number(path: str, value: Any, annotation: Any) -> None:
    """Refuse what is not a number where one is declared, so that parts need only check ranges."""
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float)}
    expected = kinds.get(str(annotation))
    if expected and (isinstance(value, bool) or not isinstance(value, expected)):
        kind = "a number" if float in expected else "a whole number"
        raise ConfigurationError(f"{path} must be {kind}, got {value!r}")


def did_you_mean(word: str, choices: list[str]) -> str:
    """Return ``" (did you mean X?)"`` for the closest choice, or an empty string."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
