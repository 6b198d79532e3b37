"""Directories that Hydra makes, without the names of people and machines."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fedgh.storage.portable import anonymous


class Housekeeping(Callback):
    """Hydra calls this around every job and sweep, see ``configs/hydra/default.yaml``."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Take the current folder and the user's home out of what Hydra has recorded."""
        if config.hydra.output_subdir:
            for path in Path(config.hydra.runtime.output_dir, config.hydra.output_subdir).glob("*.yaml"):
                _make_shareable(path)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:  # noqa: ARG002
        """Take the same out of W&B's own log, which lies beside its file."""
        for path in Path(config.hydra.runtime.output_dir).glob("wandb/*/logs/*.log"):
            _make_shareable(path)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Take the same out of what Hydra has recorded of a sweep."""
        folder = Path(str(config.hydra.sweep.dir))
        for path in (folder / "multirun.yaml", *folder.glob("wandb/*/logs/*.log")):
            _make_shareable(path)


def _make_shareable(path: Path) -> None:
    with suppress(OSError):
        text = path.read_text(encoding="utf-8")
        if (shared := anonymous(text)) != text:
            path.write_text(shared, encoding="utf-8")
