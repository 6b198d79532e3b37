"""The door between a shell and a task: composes the config with Hydra and turns a user's errors into one clear line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedgh.config import CONFIG_DIR, did_you_mean, quieten
from fedgh.core.errors import FedGHError


def launch(task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run a task under Hydra; ends the process with status 2 on a user's error, without a traceback."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # hand exceptions on to us instead of printing a traceback
    # Hydra takes -m before or after all overrides, not between them
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    quieten()
    try:
        hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name=config_name)(task)()
    except FedGHError as error:
        give_up(str(error))
    except (CompactHydraException, OmegaConfBaseException) as error:
        give_up(_with_cause(error, config_name))
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        give_up(disk_trouble(error))


def disk_trouble(error: OSError) -> str:
    """Return what a file system has refused, and what to do."""
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror}{where}; is the log directory full or read-only? paths.log_dir=<folder>"


def known_keys(config_name: str) -> list[str]:
    """Return every key of a root config with its default choices, dotted."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        tree = OmegaConf.to_container(hydra.compose(config_name), resolve=False)
    return _dotted(tree, "")


def _dotted(tree: Any, prefix: str) -> list[str]:
    if not isinstance(tree, dict):
        return []
    return [name for key, value in tree.items() for name in (f"{prefix}{key}", *_dotted(value, f"{prefix}{key}."))]


def in_sweep() -> bool:
    """Tell whether this job is one of a multirun."""
    return bool(HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN)


def _with_cause(error: BaseException, config_name: str) -> str:
    """Return the message of an error and of what it came from, once each; a misspelt key gets its nearest neighbour."""
    misspelt = re.search(r"Could not override '([\w./@]+)'", str(error))
    if misspelt:
        key = misspelt.group(1)
        return f"there is no key {key}{did_you_mean(key, known_keys(config_name))}; `--help` shows the composed config"
    messages = [str(error)]
    if error.__cause__ is not None and str(error.__cause__) not in messages[0]:
        messages.append(str(error.__cause__))
    return "\n".join(messages)


def give_up(message: str, status: int = 2) -> NoReturn:
    """Print an error and end the process."""
    sys.stderr.write(f"\nerror: {message}\n")
    sys.exit(status)
