"""One job of a sweep, wherever the launcher runs it: skipped, resumed or run, and recorded."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fedgh import config
from fedgh.core.errors import ConfigurationError, FedGHError
from fedgh.report.seeds import JOBS, closing
from fedgh.storage.claim import claim
from fedgh.sweep.jobs import state_of

log = logging.getLogger(__name__)
config.quieten()  # a launcher's process has not come through the entry point

leader: int | None = None
"""The process that leads the sweep, where it is this one."""

GRACE = 600.0
"""Seconds that a stopped job waits for SLURM to kill it; longer than SLURM lets preempted jobs live."""

_gpu: list[ExitStack] = []
"""Holds this process's GPU until the process ends."""


def run_job(cfg: DictConfig, train: Callable[[DictConfig, bool], float | None]) -> float | None:
    """Run one job of a sweep, go on with it, or skip it; a failure is recorded and stays here.

    Args:
        cfg: The job's config, not yet resolved.
        train: Takes the config, and whether to go on from the checkpoint in its directory; returns the job's result.

    Returns:
        The result; None for a job that failed.
    """
    hydra = HydraConfig.get()
    folder, number = Path(hydra.runtime.output_dir), int(hydra.job.num)
    overrides = [str(o) for o in hydra.overrides.task if not str(o).startswith("sweep.")]

    def note(status: str, error: str = "") -> None:
        content = {"job": number, "overrides": overrides, "directory": str(folder), "status": status, "error": error}
        _write(Path(hydra.sweep.dir) / JOBS / f"{number:05d}.json", content)

    try:
        cfg = config.resolve(cfg)
        wanted: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
        del wanted["sweep"]  # how it is run, not what
        state = state_of(folder, wanted)
        if state.kind == "other":
            raise ConfigurationError(
                f"{folder} holds a run with other settings: {', '.join(state.differences)}; it is left as it was. Give "
                "the settings it was started with, or start a new sweep without sweep.resume"
            )
        if state.kind == "finished":
            log.info("job %d is finished already", number)
            note("finished")
            return closing(folder).get("final/acc")
        note("running")
        with _apart(folder, Path(hydra.sweep.dir), number):
            try:
                result = train(cfg, state.kind == "resumable")
            finally:
                _tidy()
    except Exception as error:
        text = str(error) if isinstance(error, FedGHError) else f"{type(error).__name__}: {error}"
        (folder / "error.txt").write_text(traceback.format_exc())
        note("failed", text)
        log.error("job %d failed: %s", number, text)
        return None
    except BaseException as end:
        note("stopped")
        if isinstance(end, SystemExit) and end.code == 128 + signal.SIGTERM and "SLURM_JOB_ID" in os.environ:
            _outlast(hydra.job.num)
        raise
    (folder / "error.txt").unlink(missing_ok=True)
    pruned = closing(folder)["rounds"] < wanted["num_rounds"]  # ended by a callback, see fedgh.sweep.search
    note("pruned" if pruned else "finished")
    return result


def _outlast(number: int) -> None:
    """Wait for SLURM to kill this job: one that it preempts is queued again only if it has not ended by itself."""
    log.warning("job %d is saved and waits for SLURM to end it", number)
    time.sleep(GRACE)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps(content, indent=2) + "\n")
    aside.replace(path)


@contextmanager
def _apart(folder: Path, sweep: Path, number: int) -> Iterator[None]:
    """In a process beside others: print to ``output.log`` instead of across each other, and take a GPU of one's own."""
    if leader == os.getpid():
        yield
        return
    _take_gpu(sweep, number)
    sys.stdout.write(f"job {number} begins; its output is in {folder / 'output.log'}\n")
    with (folder / "output.log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
        yield


def _take_gpu(sweep: Path, number: int) -> None:
    """Show this process one GPU: the first that no other process of the sweep on this machine has.

    A process keeps its GPU for all its jobs. A launcher that shows one GPU to each process is left alone.
    """
    count = torch.cuda.device_count()
    if count < 2 or _gpu:
        return
    _gpu.append(ExitStack())
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = shown.split(",") if shown else [str(index) for index in range(count)]
    for name in names:
        try:
            _gpu[0].enter_context(claim(sweep / JOBS / f"gpu_{name}", ""))
        except ConfigurationError:
            continue
        break
    else:  # more processes than GPUs
        name = names[number % count]
    os.environ["CUDA_VISIBLE_DEVICES"] = name


def _tidy() -> None:
    """Leave nothing of a job to the next one in this process: neither its W&B run nor its memory."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.finish(exit_code=1)
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
