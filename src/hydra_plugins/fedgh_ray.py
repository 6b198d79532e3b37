"""``hydra/launcher=ray``: every job of a sweep is a Ray task, on this machine or on a cluster.

Hydra's own hydra-ray-launcher needs cloudpickle below 3, boto3 and Ray's cluster launcher; this one needs Ray alone.
The machines of a cluster must see the sweep's directory under the same path, and have FedGH installed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from fedgh.core.errors import ConfigurationError
from fedgh.executor import ray_cluster

log = logging.getLogger(__name__)


class RayLauncher(Launcher):
    """Runs jobs as Ray tasks; a job whose process dies does not take the others with it.

    Args:
        address: Of a cluster, ``auto`` for the one that this machine is part of, None to start Ray here and now.
        cpus_per_job: Cores that a job holds.
        gpus_per_job: GPUs that a job holds and sees; a fraction shares one.
    """

    def __init__(self, address: str | None, cpus_per_job: float, gpus_per_job: float) -> None:
        self.address = address
        self.resources = {"num_cpus": cpus_per_job, "num_gpus": gpus_per_job}
        self.parts: tuple[HydraContext, TaskFunction, DictConfig]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what the jobs need."""
        self.parts = (hydra_context, task_function, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs.

        Raises:
            ConfigurationError: If Ray is missing, its cluster does not answer, or can never hold a job.
        """
        ray = ray_cluster.load("hydra.launcher")
        setup_globals()
        config = self.parts[2]
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)
        Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        ray_cluster.start(self.address, "hydra.launcher.address")
        check_resources(self.resources)
        run = ray.remote(max_retries=0, **self.resources)(execute)
        parts, state = ray.put(self.parts), ray.put(Singleton.get_state())
        tasks = []
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            log.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
            tasks.append(run.remote(parts, state, number, list(overrides)))
        return self.collect(dict(enumerate(tasks, start=initial_job_idx)), job_overrides)

    def collect(self, tasks: dict[int, Any], job_overrides: Sequence[Sequence[str]]) -> list[JobReturn]:
        """Wait for all jobs and return what they left; one whose worker died left nothing."""
        from fedgh.federation import stopping
        from fedgh.sweep.job import lost

        ray = ray_cluster.load("hydra.launcher")
        sweep = Path(str(self.parts[2].hydra.sweep.dir))
        words = dict(zip(tasks, job_overrides, strict=True))
        numbers, returns = {task: number for number, task in tasks.items()}, dict[int, JobReturn]()
        while len(returns) < len(tasks):
            stopping.check()
            waiting = [task for number, task in tasks.items() if number not in returns]
            for task in ray.wait(waiting, timeout=ray_cluster.PATIENCE)[0]:
                number = numbers[task]
                try:
                    returns[number] = ray.get(task)
                except ray.exceptions.RayError as error:
                    returns[number] = lost(sweep, number, words[number], str(error).strip().splitlines()[0])
                else:
                    log.info("job %d has ended", number)
            ray_cluster.check_head("the sweep")
        return [returns[number] for number in tasks]


def check_resources(resources: dict[str, float]) -> None:
    """Refuse a job that would wait for ever.

    Raises:
        ConfigurationError: If no machine has what one job needs.
    """
    if not ray_cluster.room(**resources):
        raise ConfigurationError(
            "hydra.launcher.cpus_per_job={num_cpus:g} and gpus_per_job={num_gpus:g}".format(**resources)
            + f" would wait for ever: Ray has {ray_cluster.size()}, and no machine with as many"
        )


def execute(
    parts: tuple[HydraContext, TaskFunction, DictConfig], state: dict[Any, Any], number: int, overrides: list[str]
) -> JobReturn:
    """Run one job, in a worker of Ray."""
    context, task, config = parts
    setup_globals()
    Singleton.set_state(state)
    job_config = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(job_config):
        job_config.hydra.job.id = job_config.hydra.job.num = number
    HydraConfig.instance().set_config(job_config)
    return run_job(
        hydra_context=context,
        task_function=task,
        config=job_config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
