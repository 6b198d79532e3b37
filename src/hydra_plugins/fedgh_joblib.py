"""``hydra/launcher=joblib``: the jobs of a sweep in processes side by side on this machine.

Hydra's own hydra-joblib-launcher runs each job; this one waits for them, and lives on where a process is killed: joblib
ends all others with it, so those that were running go on one by one, and the rest together again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

log = logging.getLogger(__name__)


class JoblibLauncher(Launcher):
    """Runs jobs in processes of joblib, which end with this one.

    Args:
        **settings: Of ``joblib.Parallel``.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = {**settings, "backend": "loky", "return_as": "generator"}  # threads would share Hydra's state
        self.parts: tuple[HydraContext, DictConfig, TaskFunction]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what the jobs need."""
        self.parts = (hydra_context, config, task_function)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs."""
        from fedgh.storage.jobs import read_jobs
        from fedgh.sweep.job import lost

        killed = import_module("joblib.externals.loky.process_executor").TerminatedWorkerError
        setup_globals()
        config = self.parts[1]
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)
        sweep = Path(str(config.hydra.sweep.dir))
        sweep.mkdir(parents=True, exist_ok=True)
        overrides = dict(enumerate(job_overrides, start=initial_job_idx))
        for number, words in overrides.items():
            log.info("\t#%d : %s", number, " ".join(filter_overrides(words)))
        done: dict[int, JobReturn] = {}
        while missing := {number: words for number, words in overrides.items() if number not in done}:
            try:
                self.run(missing, done)
            except killed:
                hit = [job.number for job in read_jobs(sweep) if job.status == "running" and job.number in missing]
                log.warning(
                    "a process was killed, and the others with it; what was running goes on one by one: %s", hit
                )
                for number in hit or list(missing)[:1]:
                    try:
                        self.run({number: overrides[number]}, done)
                    except killed:
                        done[number] = lost(sweep, number, overrides[number], "its process was killed; out of memory?")
        return [done[number] for number in overrides]

    def run(self, overrides: dict[int, Sequence[str]], done: dict[int, JobReturn]) -> None:
        """Run jobs side by side, and put what each has left into ``done``."""
        from joblib import Parallel, delayed

        from fedgh.federation import stopping

        core = import_module("hydra_plugins.hydra_joblib_launcher._core")
        core.process_joblib_cfg(self.settings)
        state = Singleton.get_state()
        results = Parallel(**self.settings)(
            delayed(core.execute_job)(number, words, *self.parts, state) for number, words in overrides.items()
        )
        with closing(results):  # whatever ends this ends the processes
            for number, result in zip(overrides, results, strict=True):
                done[number] = result
                stopping.check()
