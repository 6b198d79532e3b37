"""Directories that Hydra makes, without the names of people and machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fedgh.storage.portable import make_shareable


class Housekeeping(Callback):
    """Hydra calls this around every job and sweep, see ``configs/hydra/default.yaml``."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Take the current folder and the user's home out of what Hydra has recorded."""
        if config.hydra.output_subdir:
            for path in Path(config.hydra.runtime.output_dir, config.hydra.output_subdir).glob("*.yaml"):
                make_shareable(path)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Take the same out of what Hydra has recorded of a sweep."""
        folder = Path(str(config.hydra.sweep.dir))
        make_shareable(folder / "multirun.yaml")
