"""``hydra/sweeper=optuna``: the jobs of a sweep are the trials of an Optuna study, with any launcher.

Hydra's own hydra-optuna-sweeper needs Optuna below 3, cannot end a trial early and does not go on after an
interruption; the grammar of the space is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from fedgh.core.errors import ConfigurationError

if TYPE_CHECKING:
    from optuna import Study


class OptunaSweeper(Sweeper):
    """Asks a study for trials, runs them as jobs, and tells it their final accuracy, which it maximizes.

    Args:
        n_trials: In all, those of before an interruption included.
        n_jobs: Trials asked for at a time; each batch waits for its slowest.
        seed: Of the sampler, with the number of the trial.
        sampler: Config of an Optuna sampler.
        pruner: Config of an Optuna pruner; the jobs build and ask it.
        params: Overrides by key, beside what is typed.
    """

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        seed: int,
        sampler: DictConfig,
        pruner: DictConfig,
        params: DictConfig | None,
    ) -> None:
        self.n_trials, self.n_jobs, self.seed = n_trials, n_jobs, seed
        self.sampler, self.pruner = sampler, pruner
        self.params: dict[str, str] = {str(key): str(value) for key, value in (params or {}).items()}
        self.launcher: Launcher
        self.config: DictConfig
        self.hydra_context: HydraContext

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what the jobs need."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Run trials until there are ``n_trials``; those that an interruption has left unfinished come first.

        Raises:
            ConfigurationError: If a setting or the space makes no sense, or the search to resume was in another space.
        """
        from fedgh.sweep import search  # here: Hydra imports all its plugins whenever it starts

        for name, number in (("n_trials", self.n_trials), ("n_jobs", self.n_jobs)):
            if not isinstance(number, int) or number < 1:
                raise ConfigurationError(f"hydra.sweeper.{name} must be a positive integer, got {number!r}")
        typed = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        fixed, space = search.space_of(parser.parse_overrides(typed))
        folder = Path(self.config.hydra.sweep.dir)
        study = search.begin(folder, space)
        search.settle(study, folder)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        returns = []
        for numbers in unfinished(study):
            returns += self.run(study, folder, fixed, numbers)
        while (asked := len(study.get_trials(deepcopy=False))) < self.n_trials:
            numbers = list(range(asked, min(asked + self.n_jobs, self.n_trials)))
            for number in numbers:
                study.sampler = search.build_sampler(self.sampler, self.seed, number)
                study.ask(space)
            returns += self.run(study, folder, fixed, numbers)
        return returns

    def run(self, study: Study, folder: Path, fixed: Sequence[str], numbers: Sequence[int]) -> list[JobReturn]:
        """Run trials that follow each other as jobs of the same numbers."""
        from fedgh.federation import stopping
        from fedgh.sweep import search

        stopping.check()
        trials = study.get_trials(deepcopy=False)
        batch = [[*fixed, *(f"{key}={value}" for key, value in trials[n].params.items())] for n in numbers]
        self.validate_batch_is_legal(batch)
        returns = list(self.launcher.launch(batch, initial_job_idx=numbers[0]))
        for job in returns:
            _ = job.return_value  # raises what a job could not keep to itself
        search.settle(study, folder)
        return returns


def unfinished(study: Study) -> list[list[int]]:
    """Return the numbers of the trials that have begun and not ended, those that follow each other together."""
    numbers = [trial.number for trial in study.get_trials(deepcopy=False) if not trial.state.is_finished()]
    runs = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    return [[number for _, number in run] for _, run in runs]
