"""Train a federation: ``fedgh-train key=value group=choice ...``.

Here is which run is meant: a new one, one that goes on, a job of a sweep. What a run does is in
:mod:`fedgh.cli.carry_out`, which loads PyTorch and Lightning: seconds that a help text or a refusal does not need.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from fedgh import config
from fedgh.config.entry import give_up, in_sweep, launch
from fedgh.core.errors import CheckpointError, ConfigurationError, InUseError
from fedgh.storage.claim import has_files, run_directory, run_of
from fedgh.sweep import multirun as sweep
from fedgh.sweep.job import ELSEWHERE, run_job, run_once

if TYPE_CHECKING:
    from fedgh.storage.checkpoint import Checkpoint

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point of ``fedgh-train``."""
    with sweep.tables():
        launch(run, "train")


def run(cfg: DictConfig) -> float | None:
    """Run, or go on with, one federation.

    Returns:
        Final test accuracy, for sweeps that search; None if the run was stopped before an evaluation, or failed in a
        sweep.
    """
    if in_sweep():
        return run_job(cfg, start)
    if cfg.sweep.resume is not False:
        return go_on_or_begin(cfg)
    return federate(config.resolve(cfg)) if cfg.resume is None else resume(cfg)


def go_on_or_begin(cfg: DictConfig) -> float | None:
    """Do a run whatever its directory holds of it, as jobs of a sweep are done; for those who start many runs.

    Raises:
        ConfigurationError: If what was typed is meant for a sweep.
    """
    if cfg.sweep.resume is not True or cfg.resume is not None:
        raise ConfigurationError(
            "sweep.resume=<directory> goes on with a sweep, which takes -m; for one run type resume=<directory>"
        )
    try:
        return run_once(config.resolve(cfg), start)[1]
    except InUseError as error:
        give_up(str(error), ELSEWHERE)


def start(cfg: DictConfig, again: bool = False) -> float | None:
    """Run one federation, or go on with it from the checkpoint in its directory, with the config kept there.

    Args:
        cfg: The run's resolved config. Packages that it builds parts from are trusted in the stored one, too.
        again: Whether there is such a checkpoint.
    """
    if not again:
        return federate(cfg)
    run_dir, trust = Path(cfg.paths.output_dir), [*cfg.trust, *config.foreign(cfg)]
    with run_directory(run_dir, resumed=True):
        stored, saved, path = config.reopen(run_dir, trust)
        config.check_outside(stored, cfg)
        return carry_out(stored, saved, path)


def federate(cfg: DictConfig) -> float | None:
    """Run one federation from its beginning to its end, in a directory that holds no other run.

    Args:
        cfg: A resolved config, as :func:`fedgh.config.compose` returns it.

    Raises:
        FedGHError: If something in it cannot be, for instance because ``paths.output_dir`` holds a run.
    """
    config.validate(cfg)
    with run_directory(Path(cfg.paths.output_dir), resumed=False):
        return carry_out(cfg)


def resume(cfg: DictConfig, words: Sequence[str] | None = None) -> float | None:
    """Go on with the run that ``resume`` names, by its directory or one of its checkpoints, with its own config.

    Only ``num_rounds`` may be given anew, and what says where to run (:data:`fedgh.config.WHERE`).

    Args:
        cfg: As composed.
        words: What was typed; None: on the command line.

    Raises:
        CheckpointError: If there is no such run.
        ConfigurationError: If other settings are given beside ``resume``, or the run cannot go on.
    """
    words = config.typed_words() if words is None else list(words)
    named, typed = Path(str(cfg.resume)), [config.key_of(word) for word in words]
    if not str(cfg.resume):
        raise ConfigurationError("resume= is empty; type resume=<run directory>, or leave it out to start a new run")
    named = named if named.exists() else named.expanduser()
    run_dir = run_of(named)
    if not run_dir.is_dir():
        raise CheckpointError(f"resume={cfg.resume} is not a directory; expected a run such as logs/train/runs/<time>")
    free = ("resume", "num_rounds", "trust")
    given = [word for word, key in zip(words, typed, strict=True) if key not in free and not config.is_where(key)]
    if given:
        raise ConfigurationError(
            f"a resumed run keeps its own config, but {', '.join(given)} was given too; leave it out, or start a new "
            f"run without resume=... (only num_rounds may change, and where it runs: {', '.join(config.WHERE)})"
        )
    if not has_files(run_dir / "checkpoints"):
        from fedgh.storage import checkpoint as checkpoints

        checkpoints.load_newest(run_dir / "checkpoints")  # says that there is none
    if not os.access(run_dir, os.W_OK):
        raise ConfigurationError(f"cannot write to {run_dir}; copy the run to a folder of yours and resume the copy")
    with run_directory(run_dir, resumed=True):
        stored, saved, path = config.reopen(named, cfg.trust)
        stored = config.apply_where(stored, cfg, words)
        config.check_outside(stored, cfg)
        stored.num_rounds = cfg.num_rounds if "num_rounds" in typed else stored.num_rounds
        finished = saved.server.round_index
        if stored.num_rounds < finished:
            raise ConfigurationError(
                f"num_rounds={stored.num_rounds} is below the {finished} rounds that {run_dir} has finished"
            )
        config.validate(stored)
        return carry_out(stored, saved, path)


def carry_out(cfg: DictConfig, resumed: Checkpoint | None = None, path: Path | None = None) -> float | None:
    """Run a federation to its end, from its beginning or from a checkpoint read from a path; its directory is held."""
    from fedgh.cli import carry_out as recipe  # here: Lightning

    return recipe.carry_out(cfg, resumed, path)


if __name__ == "__main__":
    main()
