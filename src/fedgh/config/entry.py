"""The door between a shell and a task: composes the config with Hydra and turns a user's errors into one clear line."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fedgh.config import CONFIG_DIR, quieten, transcript
from fedgh.config.typed import check_typed, explain
from fedgh.config.where import ready
from fedgh.core.choices import help_text
from fedgh.core.errors import ConfigurationError, FedGHError
from fedgh.storage.claim import leave_nothing_behind


def launch(task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run a task under Hydra; ends the process with status 2 on a user's error, without a traceback."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # hand exceptions on to us instead of printing a traceback
    if config_name == "train" and {"-h", "--help"} & set(sys.argv[1:]):
        sys.stdout.write(help_text())
        return
    sys.argv[0] = sys.argv[0] or f"fedgh-{config_name}"  # nothing after `python -m` of a module's old name
    # Hydra takes -m before or after all overrides, not between them
    sys.argv[1:] = sorted(ready(sys.argv[1:], config_name), key=lambda argument: argument not in ("-m", "--multirun"))
    quieten()
    speak_plainly()
    refused: list[FedGHError] = []

    @wraps(task)
    def guarded(cfg: DictConfig) -> Any:
        try:
            answer = task(cfg)
            if not in_sweep() and Path(cfg.paths.output_dir).absolute() != Path(HydraConfig.get().runtime.output_dir):
                leave_nothing_behind(Path(HydraConfig.get().runtime.output_dir))  # all results are somewhere else
            return answer
        except (FedGHError, OmegaConfBaseException) as error:  # kept from Hydra, which would print the overrides first
            if in_sweep():
                raise
            if isinstance(error, OmegaConfBaseException):
                error = ConfigurationError(explain(error, config_name))
            transcript.keep(f"\nerror: {error}\n")
            leave_nothing_behind(Path(HydraConfig.get().runtime.output_dir))
            refused.append(error)

    try:
        check_typed(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name=config_name)(guarded)()
    except FedGHError as error:
        give_up(str(error))
    except (CompactHydraException, OmegaConfBaseException) as error:
        give_up(explain(error, config_name))
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        give_up(disk_trouble(error))
    if refused:
        give_up(str(refused[0]))


def disk_trouble(error: OSError) -> str:
    """Return what a file system has refused, and what to do."""
    where = f" ({error.filename})" if error.filename else ""
    refusals = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
    unwritable = error.errno in refusals
    hint = "; is the log directory full, read-only or below a file? paths.log_dir=<folder>" if unwritable else ""
    return f"{error.strerror}{where}{hint}"


def speak_plainly() -> None:
    r"""Write letters that the terminal does not have as ``\xe9``, rather than end a run over them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def in_sweep() -> bool:
    """Tell whether this job is one of a multirun."""
    return bool(HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN)


def give_up(message: str, status: int = 2) -> NoReturn:
    """Print an error and end the process."""
    sys.stderr.write(f"\nerror: {message}\n")
    sys.exit(status)
