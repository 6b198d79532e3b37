"""What ClientApp and ServerApp share: the federation that a Flower run's config describes."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedgh import config
from fedgh.core.errors import ConfigurationError, FedGHError

if TYPE_CHECKING:
    from fedgh.algorithm.base import Algorithm
    from fedgh.federation.round import Federation


def show_errors_as_one_line() -> None:
    """Have Flower, which logs what an app raises with its traceback, show a user's errors as our commands do."""
    logging.getLogger("flwr").addFilter(_one_line)


def _one_line(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, FedGHError):
        record.msg, record.args, record.exc_info = "error: %s", (" ".join(str(error).split()),), None
    return True


def compose(run_config: Mapping[str, Any], *defaults: str, trust: Sequence[str] = ()) -> DictConfig:
    """Return the config that ``fedgh-train`` would compose of a Flower run's ``overrides``.

    Whoever starts a Flower run is not who owns the nodes: like a stored config it builds our own parts only.

    Args:
        run_config: Of the Flower run.
        *defaults: Overrides that the run's own ones may replace.
        trust: Packages that it may build parts from besides; of a node, by ``--node-config 'trust="my_package"'``.

    Raises:
        ConfigurationError: If an override is unknown, a value is out of its range, or a part is not ours.
    """
    overrides = str(run_config["overrides"])
    try:
        cfg = config.compose([*defaults, *shlex.split(overrides)])
    except (CompactHydraException, OmegaConfBaseException, ValueError) as error:
        cause = f"; {error.__cause__}" if error.__cause__ else ""
        raise ConfigurationError(f"--run-config overrides={overrides!r} cannot be composed: {error}{cause}") from error
    config.check_parts(OmegaConf.to_container(cfg), trust)
    config.validate(cfg)
    return cfg


def build(cfg: DictConfig) -> Federation:
    """Return the parts; each client trains alone on its node, so the executor is the sequential one."""
    if cfg.get("clock"):
        raise ConfigurationError("a clock simulates when clients come back, and on Flower they do: clock=synchronous")
    alone = cfg.copy()
    alone.executor = config.compose(["executor=sequential"]).executor
    alone.executor.row_dtype = cfg.executor.row_dtype
    federation = config.build_federation(alone)
    if federation.executor.compressor is not None or federation.privacy is not None:
        raise ConfigurationError(
            "on Flower updates travel as they are: leave compressor and privacy out, or simulate it: fedgh-train"
        )
    if _talks(federation.algorithm):
        raise ConfigurationError(
            f"{type(federation.algorithm).__name__} sends more than models and updates, which is not carried over "
            "Flower yet; simulate it: fedgh-train with the same settings"
        )
    return federation


def _talks(algorithm: Algorithm) -> bool:
    """Tell whether more travels than models and updates, or the server remembers more."""
    server = any(algorithm.overrides(hook) for hook in ("broadcast", "initialize", "group", "conclude", "complete"))
    return server or (algorithm.overrides("report") and algorithm.overrides("client_weights"))


@cache
def kept(overrides: str, trust: tuple[str, ...] = ()) -> tuple[DictConfig, Federation]:
    """Return config and parts of these overrides; a process that serves several messages builds them once."""
    cfg = compose({"overrides": overrides}, trust=trust)
    return cfg, build(cfg)
