"""Searches with Optuna: their space, what a job reports to its trial, and what was found.

A trial is the job of the same number. Both are asked for by ``hydra_plugins.fedgh_optuna``, which also tells the study
what became of them; the study is a file in the sweep's directory. Optuna is imported only where a search is on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from fedgh.config import did_you_mean
from fedgh.config.entry import in_sweep
from fedgh.core.command import command
from fedgh.core.errors import ConfigurationError
from fedgh.metric.summary import final_score
from fedgh.report.seeds import Line, write_csv
from fedgh.storage.jobs import closing, read_jobs

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from fedgh.core.types import ServerState
    from fedgh.federation.round import Federation, Round
    from fedgh.tracking.recorder import Row

log = logging.getLogger(__name__)

JOURNAL = "study.journal"
TRIALS = "trials.csv"
_NAME = "search"  # the same for all: Hyperband derives its schedules from it
_TAGS = ("log", "int")


def space_of(overrides: Sequence[Override]) -> tuple[list[str], dict[str, BaseDistribution]]:
    """Divide overrides into what every trial has and what is searched; the last one of a key counts.

    Args:
        overrides: In Hydra's grammar: ``interval`` with the tags ``log`` and ``int``, ``range``, ``choice``, ``a,b,c``,
            ``glob``.

    Raises:
        ConfigurationError: If a range is empty or upside down, a tag is unknown, or nothing is searched.
    """
    fixed: dict[str, str] = {}
    space: dict[str, BaseDistribution] = {}
    for override in overrides:
        key = override.get_key_element()
        fixed.pop(key, None)
        space.pop(key, None)
        if override.is_sweep_override():
            space[key] = _distribution(override)
        else:
            fixed[key] = f"{key}={override.get_value_element_as_str()}"
    if not space:
        raise ConfigurationError(
            "there is nothing to search; type for instance algorithm.optimizer.lr='tag(log,interval(0.001,0.1))' or "
            "aggregator=mean,fedgh"
        )
    if "seed" in space:
        raise ConfigurationError(
            "a search over seed= would find the luckiest one; give one seed, then run the best trial with several: "
            "fedgh-train -m seed=1,2,3 ..."
        )
    return list(fixed.values()), space


def _distribution(override: Override) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    tags = set(getattr(value, "tags", ()))
    for tag in sorted(tags.difference(_TAGS)):
        _refuse(override, f"has an unknown tag, {tag}{did_you_mean(tag, list(_TAGS))}; there are: {', '.join(_TAGS)}")
    if isinstance(value, IntervalSweep):
        low, high = float(value.start or 0), float(value.end or 0)
        if low > high:
            _refuse(override, "is empty; expected interval(<low>,<high>)")
        logarithmic = "log" in tags
        if logarithmic and low <= 0:
            _refuse(override, "has no logarithm at its lower end; begin above 0")
        if "int" in tags or isinstance(value.start, int):  # tag(int, interval(...)) or int(interval(...))
            return IntDistribution(math.ceil(low), math.floor(high), log=logarithmic)
        return FloatDistribution(low, high, log=logarithmic)
    if tags:
        _refuse(override, f"takes no tag; {' and '.join(sorted(tags))} go with interval(<low>,<high>)")
    if isinstance(value, RangeSweep):
        return _steps(override, value)
    choices = list(override.sweep_string_iterator())
    if not choices:
        _refuse(override, "is empty")
    return CategoricalDistribution(choices)


def _steps(override: Override, value: RangeSweep) -> BaseDistribution:
    """Return the numbers of Hydra's ``range(start,stop,step)``, which does not contain its stop."""
    from optuna.distributions import FloatDistribution, IntDistribution

    count = len(list(value.range())) if value.step else 0
    if not count:
        _refuse(override, "is empty; expected range(<start>,<stop>,<step>)")
    start, step = Decimal(str(value.start)), Decimal(str(value.step))
    low, high = sorted((start, start + (count - 1) * step))
    if all(isinstance(number, int) for number in (value.start, value.stop, value.step)):
        return IntDistribution(int(low), int(high), step=int(abs(step)))
    return FloatDistribution(float(low), float(high), step=float(abs(step)))


def _refuse(override: Override, why: str) -> NoReturn:
    raise ConfigurationError(f"{override.input_line} {why}")


def open_study(folder: Path, **settings: Any) -> tuple[Study, BaseStorage]:
    """Return the study in a sweep's directory, begun if there is none, and its storage.

    Args:
        folder: The sweep's.
        settings: Of ``optuna.create_study``.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    study = optuna.create_study(
        storage=storage, study_name=_NAME, direction="maximize", load_if_exists=True, **settings
    )
    return study, storage


def begin(folder: Path, space: Mapping[str, BaseDistribution]) -> Study:
    """Return a new study, or that of the search that is resumed.

    Raises:
        ConfigurationError: If that search was in another space.
    """
    from optuna.trial import TrialState

    study, _ = open_study(folder)
    asked = {key: str(distribution) for key, distribution in space.items()}
    stored = study.user_attrs.get("space", asked)
    if stored != asked:
        parts = [f"started with {key}={value}" for key, value in stored.items() if asked.get(key) != value]
        parts += [f"now {key}={value}" for key, value in asked.items() if stored.get(key) != value]
        raise ConfigurationError(
            f"{folder} holds another search: {', '.join(parts)}. Give it as it was, or start a new search without "
            "sweep.resume"
        )
    study.set_user_attr("space", asked)
    for trial in study.trials:
        if not trial.state.is_finished() and trial.params.keys() != space.keys():  # killed while it was drawn
            study.tell(trial.number, state=TrialState.FAIL)
    return study


def build_sampler(node: Any, seed: int, number: int) -> BaseSampler:
    """Return the sampler for one trial, with a seed of its own, so that a resumed search tries the same."""
    from fedgh.core.seeding import torch_seed  # here: PyTorch, which a refusal should not wait for

    given = {} if "seed" in node else {"seed": torch_seed(seed, "search", number) % 2**32}
    sampler: BaseSampler = _build(node, **given)
    return sampler


def _build(node: Any, **settings: Any) -> Any:
    try:
        return instantiate(node, **settings, _convert_="all")
    except InstantiationException as error:
        why = str(error.__cause__ or error)
        raise ConfigurationError(f"{node.get('_target_')} cannot be built: {why}") from error


def settle(study: Study, folder: Path) -> None:
    """Tell the study what has become of its trials, as far as they have ended."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    for job in read_jobs(folder):
        if job.number >= len(trials) or trials[job.number].state.is_finished():
            continue
        result = final_score(closing(job.directory)) if job.status == "finished" else None
        if result is not None and math.isfinite(result):
            study.tell(job.number, result)
        elif job.status == "pruned":
            study.tell(job.number, state=TrialState.PRUNED)
        elif job.status in ("finished", "failed"):
            study.tell(job.number, state=TrialState.FAIL)


class Reporting:
    """A callback that reports a job's accuracy to its trial after each evaluation, and ends the job if it is pruned.

    Args:
        folder: Of the sweep.
        number: Of the job and the trial.
        pruner: Decides.
    """

    def __init__(self, folder: Path, number: int, pruner: BasePruner) -> None:
        self.study, self.storage = open_study(folder, pruner=pruner)
        self.number, self.pruner, self.pruned = number, pruner, False

    def __call__(self, federation: Federation, before: ServerState, outcome: Round, row: Row) -> None:  # noqa: ARG002
        """Report a round that was evaluated; a study out of reach costs only the pruning."""
        split = "test" if federation.validation is None else "val"
        score = row.metrics.get(f"global/{split}/{federation.dataset.task.main}")  # the last one is the trial's result
        if score is None:
            return
        try:
            trial = self.study.get_trials(deepcopy=False)[self.number]
            self.storage.set_trial_intermediate_value(trial._trial_id, row.round, score)
            self.pruned = self.pruner.prune(self.study, self.study.get_trials(deepcopy=False)[self.number])
        except Exception as error:
            log.warning("trial %d did not take round %d: %s", self.number, row.round, error)

    def should_stop(self) -> bool:
        """Tell whether the run ends here."""
        return self.pruned


def reporting() -> list[Reporting]:
    """Return the callback of a job that belongs to a search; nothing for other runs."""
    if not in_sweep() or not is_search(hydra := HydraConfig.get()):
        return []
    return [Reporting(Path(hydra.sweep.dir), int(hydra.job.num), _build(hydra.sweeper.pruner))]


def is_search(hydra: Any) -> bool:
    """Tell whether Hydra's settings are those of a search."""
    return str(hydra.runtime.choices["hydra/sweeper"]) == "optuna"


def result(folder: Path) -> list[str]:
    """Write ``trials.csv`` of a search.

    Returns:
        What to print: the best trial, and the command that runs it again.
    """
    study, _ = open_study(folder)
    trials = study.get_trials(deepcopy=False)
    if not trials:
        return []
    write_csv([_line(trial, list(study.user_attrs["space"])) for trial in trials], folder / TRIALS)
    finished = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if not finished:
        return ["best trial      none has finished"]
    best = study.best_trial
    (job,) = [job for job in read_jobs(folder) if job.number == best.number]
    held_out = any(name.startswith("final/val_") for name in closing(job.directory))
    where = " of held-out training data" if held_out else ""
    tried = ", ".join(f"{key}={value}" for key, value in best.params.items())
    return [
        f"best trial      {best.number} of {len(trials)}: {best.value:.2%}{where} with {tried}",
        f"run it again    {command('fedgh-train', *job.overrides)}",
    ]


def _line(trial: FrozenTrial, keys: Sequence[str]) -> Line:
    rounds = trial.last_step
    return {
        "trial": trial.number,
        **{key: trial.params.get(key, "") for key in keys},
        "state": trial.state.name.lower(),
        "accuracy": math.nan if trial.value is None else trial.value,
        "rounds": math.nan if rounds is None else rounds,
    }
