"""What a number needs behind it: commit, versions, hardware; and a folder that can be written to."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fedgh.core.command import command
from fedgh.core.errors import ConfigurationError
from fedgh.storage.portable import anonymous

_PACKAGES = (
    "fedgh",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "hydra-core",
    "numpy",
    "safetensors",
    "wandb",
)
_PROBE_BYTES = 1 << 20


def provenance(device: torch.device) -> dict[str, Any]:
    """Return the commit (``None`` outside a checkout), the versions and the hardware of this process."""
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "command": anonymous(command(Path(sys.argv[0]).name, *sys.argv[1:])),
    }


def check_writable(folder: Path) -> None:
    """Make a folder and prove that a megabyte can be written to it.

    Raises:
        ConfigurationError: If the disk is full, read-only, or the folder is not ours.
    """
    probe = folder / ".write_probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            file.write(b"\0" * _PROBE_BYTES)
            file.flush()
            os.fsync(file.fileno())
        probe.unlink()
    except OSError as error:
        with suppress(OSError):
            probe.unlink()
        raise ConfigurationError(
            f"cannot write to {folder}: {error.strerror or error}; free space or choose another folder: "
            "paths.log_dir=<folder>"
        ) from error


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
