"""``hydra/launcher=submitit_slurm`` and ``submitit_local``: the jobs of a sweep as jobs of SLURM, or as if they were.

Hydra's own hydra-submitit-launcher makes the jobs; this submits them and waits. It differs where a leader should tell
the truth: a job that is cancelled does not end the wait for the others, SLURM's queue is asked instead of its
accounting, jobs that SLURM still has are waited for instead of submitted again, and a refusal is one line.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from fedgh.core.errors import ConfigurationError

log = logging.getLogger(__name__)

ASK_EVERY = 10.0
"""Seconds between two questions to SLURM."""
GRACE = 30.0
"""Seconds that a job which SLURM calls over has, to be queued again or for its result to arrive on this machine."""

REMEDIES = {
    ("generic resource", "gres", "gpu"): "on a cluster without GPUs type hydra.launcher.gpus_per_node=null, else ask "
    "for a kind that it has: hydra.launcher.additional_parameters={gres: gpu:<kind>:1}",
    ("partition",): "sinfo lists the partitions; type hydra.launcher.partition=<name>",
    ("account", "qos"): "type hydra.launcher.additional_parameters={account: <name>, qos: <name>}",
    ("node configuration", "memory", "cpu count"): "no node is as large; lower hydra.launcher.cpus_per_task, mem_gb or "
    "gpus_per_node (null leaves one out)",
    ("time limit",): "lower hydra.launcher.timeout_min",
    ("srun", "sbatch"): "SLURM's programs are not on this machine: type the command on a login node, or use "
    "hydra/launcher=submitit_local",
}
"""Words in what SLURM says, and what to do about it."""


class SubmititLauncher(Launcher):
    """Submits a batch of jobs and waits for all of them, whatever becomes of each.

    Args:
        **params: Of hydra-submitit-launcher, see ``configs/hydra/launcher``.
    """

    cluster = ""

    def __init__(self, **params: Any) -> None:
        self.params: dict[str, Any] = {
            k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in params.items()
        }
        self.parts: dict[str, Any] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what the jobs need."""
        self.parts = {"hydra_context": hydra_context, "task_function": task_function, "config": config}

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs.

        Raises:
            ConfigurationError: If a time makes no sense, or the jobs are refused.
        """
        check_times(self.params)
        sweep = Path(str(self.parts["config"].hydra.sweep.dir))
        sweep.mkdir(parents=True, exist_ok=True)
        overrides = dict(enumerate(job_overrides, start=initial_job_idx))
        jobs = self.still_there(sweep, overrides)
        jobs |= self.submit({number: words for number, words in overrides.items() if number not in jobs})
        self.submitted(sweep, jobs)
        try:
            return self.wait(sweep, overrides, jobs)
        except BaseException:
            self.abandoned(jobs)
            raise

    def submit(self, overrides: Mapping[int, Sequence[str]]) -> dict[int, Any]:
        """Submit jobs, those of a call as one array; return submitit's handles by number."""
        if not overrides:
            return {}
        import submitit

        launchers = import_module("hydra_plugins.hydra_submitit_launcher.submitit_launcher")
        base = set(OmegaConf.structured(import_module("hydra_plugins.hydra_submitit_launcher.config").BaseQueueConf))
        job = getattr(launchers, f"{self.cluster.capitalize()}Launcher")(**self.params)  # what a job calls
        job.setup(**self.parts)
        for number, words in overrides.items():
            log.info("\t#%d : %s", number, " ".join(filter_overrides(words)))
        state = Singleton.get_state()
        calls = [
            (list(words), "hydra.sweep.dir", number, f"job {number}", state) for number, words in overrides.items()
        ]
        settings = {
            key if key in base else f"{self.cluster}_{key}": value
            for key, value in self.params.items()
            if key not in ("submitit_folder", "max_num_timeout")
        }
        try:
            first = (
                {f"{self.cluster}_max_num_timeout": self.params["max_num_timeout"]} if self.cluster == "slurm" else {}
            )
            executor = submitit.AutoExecutor(folder=self.params["submitit_folder"], cluster=self.cluster, **first)
            executor.update_parameters(**settings)
            handles = executor.map_array(job, *zip(*calls, strict=True))
        except (RuntimeError, ValueError, TypeError) as error:
            raise ConfigurationError(refusal(str(error))) from error
        return dict(zip(overrides, handles, strict=True))

    def wait(self, sweep: Path, overrides: Mapping[int, Sequence[str]], jobs: Mapping[int, Any]) -> list[JobReturn]:
        """Wait until every job has left its result or is known to be over without one."""
        from fedgh.federation import stopping
        from fedgh.sweep.job import lost

        waiting, returns, over_since = dict(jobs), dict[int, JobReturn](), dict[int, float]()
        asked = time.monotonic() - ASK_EVERY / 2
        over: dict[int, str] = {}
        while waiting:
            stopping.check()
            if time.monotonic() - asked >= ASK_EVERY:
                over, asked = self.over(waiting), time.monotonic()
            for number, job in list(waiting.items()):
                if job.paths.result_pickle.exists():
                    returns[number] = collect(job, number)
                elif number not in over:
                    over_since.pop(number, None)
                    continue
                elif time.monotonic() - over_since.setdefault(number, time.monotonic()) < GRACE:
                    os.listdir(job.paths.folder)  # a network file system looks again
                    continue
                else:
                    returns[number] = lost(sweep, number, overrides[number], over[number])
                del waiting[number]
                log.info("job %d has ended", number)
            time.sleep(0.5)
        return [returns[number] for number in overrides]

    def still_there(self, sweep: Path, numbers: Iterable[int]) -> dict[int, Any]:  # noqa: ARG002
        """Return the jobs of an earlier leader that are not over."""
        return {}

    def submitted(self, sweep: Path, jobs: Mapping[int, Any]) -> None:
        """Note what is waited for."""

    def over(self, jobs: Mapping[int, Any]) -> dict[int, str]:
        """Return the jobs that are over, and how they ended."""
        raise NotImplementedError

    def abandoned(self, jobs: Mapping[int, Any]) -> None:
        """Do what is right with the jobs when this process ends before them."""


class SlurmLauncher(SubmititLauncher):
    """Jobs of SLURM, which outlive their leader."""

    cluster = "slurm"

    def still_there(self, sweep: Path, numbers: Iterable[int]) -> dict[int, Any]:
        """Return the jobs that SLURM runs or holds in its queue since an earlier call."""
        import submitit

        from fedgh.sweep import slurm

        wanted, found = set(numbers), dict[int, Any]()
        for number, (job_id, state) in slurm.alive(sweep).items():
            if number in wanted and state != "UNKNOWN":
                log.info("job %d is in SLURM already, as %s (%s): waiting for it", number, job_id, state)
                found[number] = submitit.SlurmJob(folder=self.params["submitit_folder"], job_id=job_id)
        return found

    def submitted(self, sweep: Path, jobs: Mapping[int, Any]) -> None:
        """Keep the jobs' ids, for :meth:`still_there` and for who wants to cancel them."""
        from fedgh.sweep import slurm

        slurm.remember(sweep, {number: job.job_id for number, job in jobs.items()})
        whole = sorted({job.job_id.partition("_")[0] for job in jobs.values()})
        log.info("%d jobs are in SLURM as %s; stop them: scancel %s", len(jobs), ", ".join(whole), " ".join(whole))

    def over(self, jobs: Mapping[int, Any]) -> dict[int, str]:
        """Return the jobs that SLURM has ended or no longer knows."""
        from fedgh.sweep import slurm

        states = slurm.states(job.job_id for job in jobs.values())
        if states is None:
            log.warning("SLURM does not answer; waiting for the jobs' results")
            return {}
        now = {number: states.get(job.job_id, "no longer known") for number, job in jobs.items()}
        return {
            number: f"{state} in SLURM, as {jobs[number].job_id}"
            for number, state in now.items()
            if state in (*slurm.OVER, "no longer known")
        }


class LocalLauncher(SubmititLauncher):
    """Processes of this machine, which end with their leader."""

    cluster = "local"

    def over(self, jobs: Mapping[int, Any]) -> dict[int, str]:
        """Return the jobs whose process has ended."""
        return {number: "its process was ended" for number, job in jobs.items() if job.done()}

    def abandoned(self, jobs: Mapping[int, Any]) -> None:
        """Stop the processes, and wait until they have kept their rounds."""
        for job in jobs.values():
            job.cancel()
        deadline = time.monotonic() + GRACE
        while any(not job.done() for job in jobs.values()) and time.monotonic() < deadline:
            time.sleep(0.1)


def check_times(params: Mapping[str, Any]) -> None:
    """Refuse times with which no job could be stopped in time.

    Raises:
        ConfigurationError: Naming both.
    """
    minutes, delay = params.get("timeout_min", 1), params.get("signal_delay_s", 0)
    if minutes <= 0 or delay < 0:
        raise ConfigurationError(
            f"hydra.launcher.timeout_min must be positive and signal_delay_s 0 or more, got {minutes} and {delay}"
        )
    if delay >= 60 * minutes:
        raise ConfigurationError(
            f"hydra.launcher.signal_delay_s={delay} is not below hydra.launcher.timeout_min={minutes}, "
            f"{60 * minutes:g} seconds: a job would be told to stop before it has begun, and not be queued again; type "
            f"hydra.launcher.signal_delay_s={max(1, int(60 * minutes) // 4)}, or give more time"
        )
    if delay and 60 * minutes - delay < 120:
        log.warning(
            "jobs have %g seconds until SLURM tells them to stop, which it may do 60 earlier; if they fail without a "
            "round done, raise hydra.launcher.timeout_min",
            60 * minutes - delay,
        )


def refusal(said: str) -> str:
    """Return the line of what SLURM or submitit said that matters, with what to do about it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.partition("error:")[2].strip() for line in lines if "error:" in line]
    line = (errors or lines or ["no reason given"])[-1]
    found = [remedy for words, remedy in REMEDIES.items() if any(word in line.lower() for word in words)]
    return f"SLURM refused the jobs: {line.rstrip('.')}; {(found or ['see hydra.launcher.* in --cfg hydra'])[0]}"


def collect(job: Any, number: int) -> JobReturn:
    """Return what a job left; one that failed outside of its run left an error."""
    from fedgh.sweep.job import no_result

    try:
        result: JobReturn = job.results()[0]
        return result
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip("- ")]
        log.error(
            "job %d ended with an error: %s", number, next((x for x in reversed(lines) if "Error" in x), lines[:1])
        )
        return no_result()
