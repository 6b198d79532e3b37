"""``hydra/launcher=ray``: every job of a sweep is a Ray task, on this machine or on a cluster.

Hydra's own hydra-ray-launcher needs cloudpickle below 3, boto3 and Ray's cluster launcher; this one needs Ray alone.
The machines of a cluster must see the sweep's directory under the same path, and have FedGH installed.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from fedgh.core.errors import ConfigurationError

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that a cluster has to answer."""


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
            ConfigurationError: If the cluster does not answer, or can never hold a job.
        """
        ray = import_module("ray")
        setup_globals()
        config = self.parts[2]
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)
        Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        start(self.address)
        check_resources(self.resources)
        run = ray.remote(max_retries=0, **self.resources)(execute)
        parts, state = ray.put(self.parts), ray.put(Singleton.get_state())
        tasks = []
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            log.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
            tasks.append(run.remote(parts, state, number, list(overrides)))
        return [collect(task, number) for number, task in enumerate(tasks, start=initial_job_idx)]


def start(address: str | None) -> None:
    """Connect to a cluster, or start Ray here.

    Raises:
        ConfigurationError: If the cluster does not answer.
    """
    ray = import_module("ray")
    if ray.is_initialized():
        return
    try:
        if address not in (None, "auto", "local"):
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=PATIENCE).close()  # Ray itself tries for ten minutes
        local = {} if address else {"include_dashboard": False}
        ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **local)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"Ray at {address or 'this machine'} does not answer: {str(error).strip().splitlines()[0]}; check "
            "hydra.launcher.address=<host:port>, or leave it out to start Ray here"
        ) from error


def check_resources(resources: dict[str, float]) -> None:
    """Refuse a job that would wait for ever.

    Raises:
        ConfigurationError: If the whole cluster has less than one job needs.
    """
    ray = import_module("ray")
    there = ray.cluster_resources()
    for kind, setting, name in (("CPU", "cpus_per_job", "num_cpus"), ("GPU", "gpus_per_job", "num_gpus")):
        if resources[name] > there.get(kind, 0):
            raise ConfigurationError(
                f"hydra.launcher.{setting}={resources[name]:g}, but Ray has {there.get(kind, 0):g} {kind}s in all; "
                "a job would wait for ever"
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


def collect(task: Any, number: int) -> JobReturn:
    """Wait for a job and return what it left; one whose worker died left nothing."""
    ray = import_module("ray")
    try:
        result: JobReturn = ray.get(task)
    except ray.exceptions.RayError as error:
        log.error("job %d is lost: %s", number, str(error).strip().splitlines()[0])
        result = JobReturn()
        result.status, result.return_value = JobStatus.COMPLETED, None
    else:
        log.info("job %d has ended", number)
    return result
