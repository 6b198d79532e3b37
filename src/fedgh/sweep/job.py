"""One run that may be there already, whoever starts it: skipped, gone on with, begun or refused; in a sweep recorded.

The leader of a sweep, ``fedgh-paper`` and a job on another machine all come through here.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from omegaconf import DictConfig

from fedgh import config
from fedgh.core.command import resume_command
from fedgh.core.errors import ConfigurationError, FedGHError, InUseError
from fedgh.federation import stopping
from fedgh.metric.summary import final_score
from fedgh.storage.claim import claim
from fedgh.storage.jobs import JOBS, closing, read_jobs, write_job
from fedgh.sweep.state import state_of

log = logging.getLogger(__name__)
config.quieten()  # a launcher's process has not come through the entry point

Train = Callable[[DictConfig, bool], float | None]
"""Takes a resolved config, and whether to go on from the checkpoint in its directory; returns the run's result."""

ELSEWHERE = getattr(os, "EX_TEMPFAIL", 75)
"""Exit status of a process whose run another process is at."""

leader: int | None = None
"""The process that leads the sweep, where it is this one."""

GRACE = 600.0
"""Seconds that a stopped job waits for SLURM to kill it; longer than SLURM lets preempted jobs live."""

_gpu: list[ExitStack] = []
"""Holds this process's GPU until the process ends."""


def run_once(cfg: DictConfig, train: Train) -> tuple[str, float | None]:
    """Do a run that may be done already: skip it, go on with it, or begin it.

    Args:
        cfg: The run's resolved config; it belongs into ``paths.output_dir``.
        train: See there; is called if there is something to do.

    Returns:
        ``finished`` or ``pruned``, and the result.

    Raises:
        ConfigurationError: If the directory holds another run.
        InUseError: If another process is at it.
    """
    wanted = config.to_values(cfg)
    folder = Path(cfg.paths.output_dir)
    state = state_of(folder, wanted)
    if state.kind == "other":
        raise ConfigurationError(
            f"{folder} holds a run with other settings: {', '.join(state.differences)}; it is left as it was. Give "
            f"the settings it was started with, go on with that one, {resume_command(folder)}, or start a new sweep "
            "without sweep.resume"
        )
    if state.kind == "finished":
        return "finished", final_score(closing(folder))
    result = train(cfg, state.kind == "resumable")
    pruned = closing(folder)["rounds"] < wanted["num_rounds"]  # ended by a callback, see fedgh.sweep.search
    return "pruned" if pruned else "finished", result


def run_job(cfg: DictConfig, train: Train) -> float | None:
    """Do one job of a sweep; a failure is recorded and stays here.

    Args:
        cfg: The job's config, not yet resolved.
        train: See there.

    Returns:
        The result; None for a job that failed or that another process is at.
    """
    stopping.check()
    hydra = HydraConfig.get()
    folder, number, sweep = Path(hydra.runtime.output_dir), int(hydra.job.num), Path(hydra.sweep.dir)
    overrides = [o for o in config.as_typed(hydra.overrides.task) if not o.startswith("sweep.")]
    note = partial(write_job, sweep, number, overrides, folder)
    begun = False

    def begin(cfg: DictConfig, again: bool) -> float | None:
        nonlocal begun
        begun = True
        note("running")
        with _own_output_and_gpu(folder, sweep, number):
            try:
                return train(cfg, again)
            finally:
                _leave_nothing_to_the_next_job()

    try:
        status, result = run_once(config.resolve(cfg), begin)
    except InUseError as error:  # whose process keeps the record, too
        log.warning("job %d is left alone: %s", number, error)
        return None
    except Exception as error:
        text = str(error) if isinstance(error, FedGHError) else f"{type(error).__name__}: {error}"
        (folder / "error.txt").write_text(traceback.format_exc())
        note("failed", text)
        log.error("job %d failed: %s", number, text)
        return None
    except BaseException as end:
        note("stopped")
        if isinstance(end, SystemExit) and end.code == 128 + signal.SIGTERM and "SLURM_JOB_ID" in os.environ:
            _wait_to_be_killed(number)
        raise
    if not begun:
        log.info("job %d is finished already", number)
    (folder / "error.txt").unlink(missing_ok=True)
    note(status)
    return result


def lost(sweep: Path, number: int, overrides: Sequence[str], why: str) -> JobReturn:
    """Record for a launcher that a job is over and has left nothing, as one that can go on; return its result, none."""
    record = {job.number: job for job in read_jobs(sweep)}.get(number)
    if record is None or record.status == "running":
        words = [word for word in filter_overrides(list(overrides)) if not word.startswith("sweep.")]
        write_job(sweep, number, words, record.directory if record else sweep / str(number), "stopped", why)
    log.error("job %d is lost: %s", number, why)
    return no_result()


def no_result() -> JobReturn:
    """Return what stands for the result of a job that has none, as one that failed has none."""
    result = JobReturn()
    result.status, result.return_value = JobStatus.COMPLETED, None
    return result


def _wait_to_be_killed(number: int) -> None:
    """Wait for SLURM to kill this job: one that it preempts is queued again only if it has not ended by itself."""
    log.warning("job %d is saved and waits for SLURM to end it", number)
    time.sleep(GRACE)


@contextmanager
def _own_output_and_gpu(folder: Path, sweep: Path, number: int) -> Iterator[None]:
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
    import torch

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


def _leave_nothing_to_the_next_job() -> None:
    """Leave nothing of a job to the next one in this process: neither its W&B run nor its memory."""
    import torch

    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.finish(exit_code=1)
    gc.collect()
    if (
        not gc.get_freeze_count()
    ):  # what is left after the first job is modules: looking through them takes 0.25 s a job
        gc.freeze()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
