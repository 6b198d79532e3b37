"""The chosen loggers; whether W&B is written to online, and as which run."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedgh.config.build import build
from fedgh.config.compose import literal, map_text
from fedgh.config.stored import to_values
from fedgh.config.wandb import WANDB_MODES, shortened
from fedgh.storage.portable import anonymous
from fedgh.tracking.wandb_run import share_logs

log = logging.getLogger(__name__)


def build_loggers(cfg: DictConfig, run_dir: Path, wandb_id: str, name: str, group: str | None) -> list[Any]:
    """Return the chosen Lightning loggers.

    Args:
        cfg: The resolved config; ``logger.mode`` decides where W&B writes, ``logger.patience`` how long we wait for it.
        run_dir: Directory of the run.
        wandb_id: Id of the W&B run to go on with, or a new one.
        name: Name of the run where the config leaves it open.
        group: Group of the run where the config leaves it open.
    """
    loggers = []
    for key, node in sorted(cfg.logger.items(), key=lambda item: item[0] == "wandb"):  # last: it is open at once
        if not isinstance(node, DictConfig):
            continue
        if key == "wandb":
            if (mode := wandb_mode(cfg.logger.mode)) == "disabled":
                continue
            extra = {
                "id": wandb_id,
                "name": shortened(node.name or name),
                "group": shortened(node.group or group),
                "config": to_values(cfg),
            }
            patience = cfg.logger.get("patience", 60)  # runs stored before the setting existed go on without it
            loggers.append(_wandb_logger(node, run_dir, mode, patience, extra))
        else:
            loggers.append(build(node))
    return loggers


def new_wandb_id() -> str:
    """Return the id of the W&B run that an agent of a W&B sweep has opened for this process, else one of our own."""
    return os.environ["WANDB_RUN_ID"] if in_wandb_sweep() else secrets.token_hex(4)


def in_wandb_sweep() -> bool:
    """Tell whether an agent of a W&B sweep has started this process."""
    return "WANDB_SWEEP_ID" in os.environ and "WANDB_RUN_ID" in os.environ


def wandb_mode(mode: str) -> str:
    """Return ``online``, ``offline`` or ``disabled``.

    ``auto`` is whatever ``WANDB_MODE`` says; without it, online if a key is at hand and offline otherwise. Nothing is
    ever asked.
    """
    if mode != "auto":
        return mode
    import wandb

    asked = os.environ.get("WANDB_MODE", "")
    if asked in WANDB_MODES[1:]:
        return asked
    try:
        return "online" if wandb.login(prompt=False) else "offline"
    except wandb.Error:  # there is a key, and W&B was asked about it; what starts online says what is wrong
        return "online"


@contextmanager
def _anonymous() -> Iterator[None]:
    """Let W&B record the command line without the user's home and the current folder, and no folder of the run.

    Its folder is in what the service is sent, which writes and reads by the other paths in it.
    """
    import wandb

    typed, send = sys.argv, wandb.Settings.to_proto

    def send_no_folder(settings: Any) -> Any:
        sent = send(settings)
        sent.root_dir.value = "."
        return sent

    sys.argv, wandb.Settings.to_proto = [anonymous(word) for word in typed], send_no_folder  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        sys.argv, wandb.Settings.to_proto = typed, send  # type: ignore[method-assign]


def _wandb_logger(node: DictConfig, run_dir: Path, mode: str, patience: float, extra: dict[str, Any]) -> Any:
    """Start the W&B run; when W&B cannot be reached or refuses the key, start it offline instead."""
    import wandb

    own_service()
    nobody: dict[str, Any] = {
        "host": "-",
        "username": "-",
        "email": "-",
        "program": Path(sys.argv[0]).name,
        "x_executable": "python",
    }
    settings = wandb.Settings(
        console="off", silent=True, init_timeout=patience, finish_timeout=patience, finish_timeout_raises=True, **nobody
    )
    common = {**extra, "save_dir": str(run_dir), "resume": "allow", "settings": settings}
    named = map_text(OmegaConf.to_container(node, resolve=True), literal)
    factory = build(OmegaConf.merge(OmegaConf.create(named), {"_partial_": True}))

    def start(mode: str) -> Any:
        logger = factory(**common, mode=mode)
        getattr(logger, "_wandb_init", {}).pop("anonymous", None)  # W&B warns of it, whatever Lightning puts there
        with _anonymous():
            _ = logger.experiment
        share_logs(run_dir)  # also those of a process that was killed
        return logger

    try:
        logger = start(mode)
    except (wandb.Error, OSError) as error:
        with suppress(OSError):  # from a service that has crashed
            wandb.teardown()
        logger = start("offline")
        folder = Path(logger.experiment.dir).parent
        log.warning("W&B cannot be used online (%s); recorded offline, to be sent later: wandb sync %s", error, folder)
    return logger


def own_service() -> None:
    """Have W&B start a service for this process, where it would go on with the one of a notebook or script around it.

    That one ends with its owner, even in the middle of this run; and as long as it lives it keeps the run of a killed
    process open, so that ``resume=`` would be refused: "run ID ... is in use".
    """
    token = os.environ.get("WANDB_SERVICE", "")  # 3-<process that started it>-unix-<socket>
    if token and token.split("-")[1:2] != [str(os.getpid())]:
        del os.environ["WANDB_SERVICE"]
