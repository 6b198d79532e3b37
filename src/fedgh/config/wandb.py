"""What W&B takes as names, tags and projects; told before any data are loaded."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from omegaconf import DictConfig, ListConfig

from fedgh.core.errors import ConfigurationError

WANDB_MODES = ("auto", "online", "offline", "disabled")
MODES_OF_THE_VARIABLE = (*WANDB_MODES[1:], "shared", "dryrun", "run")
"""What W&B itself takes in ``WANDB_MODE``."""
MOST = 128
"""Letters of a name, a group or a project."""
MOST_OF_TAG = 64
NOT_IN_PROJECT = "/\\#?%:"


def check_wandb(cfg: DictConfig) -> None:
    """Refuse what W&B would refuse after the data have been loaded.

    Args:
        cfg: A resolved root config.

    Raises:
        ConfigurationError: A mode, a time, a project or a tag that is not one.
    """
    if cfg.logger.get("mode", "auto") not in WANDB_MODES:
        raise ConfigurationError(f"logger.mode must be one of {', '.join(WANDB_MODES)}, got {cfg.logger.mode!r}")
    patience = cfg.logger.get("patience", 60)
    if isinstance(patience, bool) or not isinstance(patience, int | float) or not 0 < patience < float("inf"):
        raise ConfigurationError(f"logger.patience must be a positive number of seconds, got {patience!r}")
    check_tags("tags", cfg.get("tags"))
    node = cfg.logger.get("wandb")
    if not isinstance(node, DictConfig):
        return
    asked = os.environ.get("WANDB_MODE", "")
    if cfg.logger.get("mode", "auto") == "auto" and asked and asked not in MODES_OF_THE_VARIABLE:
        raise ConfigurationError(
            f"the environment's WANDB_MODE must be one of {', '.join(WANDB_MODES[1:])}, got {asked!r}; set it anew, or "
            "type logger.mode=offline"
        )
    check_tags("logger.wandb.tags", node.get("tags"))
    project = node.get("project")
    if project is not None:
        wrong = sorted(set(NOT_IN_PROJECT) & set(str(project)))
        if not isinstance(project, str) or not 0 < len(project) <= MOST or wrong:
            found = f"{wrong[0]!r} in {project!r}" if wrong else repr(project)
            raise ConfigurationError(
                f"logger.wandb.project must be a name of 1 to {MOST} letters without any of {NOT_IN_PROJECT}, "
                f"got {found}; an entity is named by logger.wandb.entity"
            )
    for key in ("name", "group", "entity"):
        if not isinstance(node.get(key), str | None):
            raise ConfigurationError(f"logger.wandb.{key} must be text or null, got {node[key]!s}")


def check_tags(path: str, tags: Any) -> None:
    """Refuse tags that are no list of texts of 1 to 64 letters."""
    if tags is None:
        return
    items = list(tags) if isinstance(tags, ListConfig) else [tags]
    for tag in items:
        number = isinstance(tag, int | float) and not isinstance(tag, bool)  # W&B writes it as text
        if not number and not (isinstance(tag, str) and 0 < len(tag) <= MOST_OF_TAG):
            raise ConfigurationError(f"{path} must be a list of texts of 1 to {MOST_OF_TAG} letters, got {tag!s}")


def shortened(name: str | None) -> str | None:
    """Return a name that W&B takes: a long one is cut, and ends with letters that tell it from others."""
    if name is None or len(name) <= MOST:
        return name
    return f"{name[: MOST - 8]}… {hashlib.sha256(name.encode()).hexdigest()[:6]}"
