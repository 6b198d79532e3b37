"""Runs from code: train one, open one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedgh import config
from fedgh.config.compose import literal, new_run_dir
from fedgh.config.typed import check_typed, explain
from fedgh.core.errors import ConfigurationError
from fedgh.partition.base import Partition
from fedgh.storage.run import open_run

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn


@dataclass(frozen=True)
class Run:
    """A run, finished or not, as it lies in its directory.

    Attributes:
        path: The directory.
    """

    path: Path

    @cached_property
    def config(self) -> DictConfig:
        """The resolved config, ``run.config.algorithm.local_epochs``."""
        loaded: Any = OmegaConf.load(self.path / "config.yaml")
        return loaded  # type: ignore[no-any-return]

    @cached_property
    def partition(self) -> Partition:
        """Which client holds which training examples."""
        return Partition.load(self.path / "partition.npz")

    @property
    def summary(self) -> dict[str, float]:
        """Closing numbers, such as ``final/acc``; empty until the run has ended."""
        return dict(open_run(self.path).summary)

    def metrics(self) -> pd.DataFrame:
        """Return the metrics, a row per round; NaN where one was not measured."""
        import pandas as pd

        return pd.DataFrame(open_run(self.path).rows)

    def model(self, *, client: int | None = None, index: int = 0, trust: Sequence[str] = ()) -> nn.Module:
        """Return the newest model as a plain module in evaluation mode, with its normalization in front.

        See :func:`fedgh.export.model.trained_model` for arguments and errors. Reads the run's data set, which must be
        where it was.
        """
        from fedgh.export.model import trained_model

        return trained_model(self.path, client=client, index=index, trust=trust).module

    def resume(self, *overrides: str) -> Run:
        """Go on with it, as ``fedgh-train resume=<path>`` does: ``run.resume("num_rounds=40")``; return it."""
        return run([f"resume={self.path}", *overrides])


def run(overrides: Sequence[str] = ()) -> Run:
    """Train a federation as ``fedgh-train`` does, and return the run.

    Args:
        overrides: What would be typed: ``["algorithm=fedprox", "aggregator=fedgh", "logger=csv"]``. The run's directory
            is ``paths.output_dir``, if given, else a new one below ``paths.log_dir``; ``resume=<run directory>`` goes
            on with a run.

    Raises:
        FedGHError: If something in it cannot be; the message says what to type instead.
        KeyboardInterrupt: If it was interrupted; what is done is kept, and ``fedgh.load(...).resume()`` goes on.
    """
    from fedgh.cli import train

    words = [overrides] if isinstance(overrides, str) else [str(word) for word in overrides]
    keys = [config.key_of(word) for word in words]
    check_typed(words)
    try:
        cfg = config.compose(words)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(explain(error, "train")) from error
    try:
        if cfg.resume is not None:
            train.resume(cfg, words)
            return load(cfg.resume)
        if "paths.output_dir" not in keys:
            cfg.paths.output_dir = literal(new_run_dir(cfg.paths.log_dir, "train"))
        train.federate(cfg)
    except SystemExit as stopped:
        raise KeyboardInterrupt(
            f"stopped after a signal; go on with fedgh.load({str(cfg.paths.output_dir)!r}).resume()"
        ) from stopped
    return load(cfg.paths.output_dir)


def load(run_dir: str | Path) -> Run:
    """Open a run by its directory, in whatever state it is.

    Raises:
        DataError: If it is not the directory of a run, or a file of it cannot be read.
    """
    path = Path(run_dir).expanduser().absolute()
    open_run(path)
    return Run(path)
