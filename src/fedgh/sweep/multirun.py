"""Sweeps, ``fedgh-train -m ...``: a directory that is this sweep's own, resumed on request, and tables at the end.

A sweep's directory holds ``sweep.json`` (what was asked), ``.jobs/<number>.json`` (what became of each job), the jobs'
own directories, and from the end on ``jobs.csv`` and ``seeds.csv``. What happens inside a job is in
:mod:`fedgh.sweep.job`.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
import traceback
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fedgh import config
from fedgh.config.compose import unresolved
from fedgh.config.entry import disk_trouble, give_up
from fedgh.core.command import command, setting
from fedgh.core.errors import ConfigurationError, FedGHError
from fedgh.federation.stopping import HeldSignals
from fedgh.storage.claim import claim, in_use, refuse_if_taken
from fedgh.storage.jobs import JobRecord, read_jobs
from fedgh.storage.portable import restored, shareable
from fedgh.sweep import job as sweep_job
from fedgh.sweep import search, slurm
from fedgh.sweep.tables import jobs_table, mean_over_seeds, text_of, write_csv
from fedgh.tracking.wandb_run import beside_the_run, finish_run

log = logging.getLogger(__name__)

RECORD = "sweep.json"
NEEDED = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "submitit"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "submitit"),
    "ray": ("ray", "ray"),
    "optuna": ("optuna", "search"),
}
"""What choices of ``hydra/launcher`` and ``hydra/sweeper`` import, and the extra that brings it."""


@dataclass(frozen=True)
class Sweep:
    """The sweep that this process leads.

    Attributes:
        folder: Its directory.
        overrides: What was typed, without ``sweep.`` and ``hydra``.
        hydra: What was typed for Hydra: launcher, sweeper, directory.
        total: Jobs that it will have; None if its sweeper decides as it goes.
        wandb_id: Of the W&B run with the table over seeds.
        config: As composed before the jobs' own overrides.
        held: Its lock, and its hold of signals.
        signals: That hold.
    """

    folder: Path
    overrides: list[str]
    hydra: list[str]
    total: int | None
    wandb_id: str
    config: DictConfig
    held: ExitStack
    signals: HeldSignals


_led: list[Sweep] = []


class Lead(Callback):
    """Hydra calls this when a sweep begins, see ``configs/hydra/callbacks/sweep.yaml``."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Find, check and claim the sweep's directory; ends the process if that is refused."""
        try:
            _led.append(begin(config))
            sweep_job.leader = os.getpid()
        except FedGHError as error:
            give_up(str(error))
        except OmegaConfBaseException as error:
            give_up(unresolved(error))
        except OSError as error:
            give_up(disk_trouble(error))
        except Exception:  # Hydra would turn it into a warning and go on
            traceback.print_exc()
            sys.exit(1)


def begin(cfg: DictConfig) -> Sweep:
    """Make a sweep's directory this process's own.

    Args:
        cfg: The sweep's config with ``hydra``; is told the directory if an earlier sweep is resumed.

    Raises:
        ConfigurationError: If the directory is in use or holds another sweep, or if there is none to resume.
    """
    check_plugins(cfg)
    overrides = [o for o in config.as_typed(cfg.hydra.overrides.task) if not o.startswith("sweep.")]
    hydra = [o for o in config.as_typed(cfg.hydra.overrides.hydra) if not o.startswith("hydra.mode=")]
    if any(o.startswith("resume=") for o in overrides):
        raise ConfigurationError("resume=<directory> goes on with one run; for a sweep type sweep.resume=true")
    if config.in_wandb_sweep():
        raise ConfigurationError(
            "an agent of a W&B sweep has started this, and its jobs would all write into one W&B run; leave out -m"
        )
    if cfg.sweep.resume is not False:
        folder = find(cfg, overrides)
        with open_dict(cfg):
            cfg.hydra.sweep.dir = config.literal(str(folder))
        cfg.hydra.overrides.hydra.append(setting("hydra.sweep.dir", folder))  # from there the jobs have it
    folder = Path(cfg.hydra.sweep.dir)
    held = ExitStack()
    held.enter_context(claim(folder, "wait for it, or choose another directory: hydra.sweep.dir=<folder>"))
    record = folder / RECORD
    if not record.exists():
        refuse_if_taken(folder)
        words = {name: list(map(shareable, of)) for name, of in (("overrides", overrides), ("hydra", hydra))}
        asked = {**words, "wandb_id": secrets.token_hex(4)}
        record.write_text(json.dumps(asked, indent=2) + "\n")
    elif cfg.sweep.resume is False:
        raise ConfigurationError(
            f"{folder} holds a sweep already; go on with it by sweep.resume=true, or choose another directory: "
            "hydra.sweep.dir=<folder>"
        )
    content = read_record(folder)
    if content["overrides"] != overrides:
        raise ConfigurationError(f"{folder} holds another sweep: {difference(folder, content, overrides)}")
    total = count(cfg, overrides)
    signals = held.enter_context(HeldSignals())
    return Sweep(folder, overrides, hydra, total, content["wandb_id"], cfg, held, signals)


def read_record(folder: Path) -> dict[str, Any]:
    """Return what a sweep's directory keeps of the command that started it."""
    content: dict[str, Any] = json.loads((folder / RECORD).read_text())
    return content | {key: list(map(restored, content.get(key, []))) for key in ("overrides", "hydra")}


def find(cfg: Any, overrides: Sequence[str]) -> Path:
    """Return the directory of the sweep to resume: the one named, or the newest that was started with the same words.

    Raises:
        ConfigurationError: If there is none; with what sets the newest apart.
    """
    named = cfg.sweep.resume is not True
    if not str(cfg.sweep.resume):
        raise ConfigurationError("sweep.resume= is empty; type sweep.resume=true, or sweep.resume=<directory>")
    if named or any(o.startswith("hydra.sweep.dir=") for o in config.as_typed(cfg.hydra.overrides.hydra)):
        folder = Path(str(cfg.sweep.resume if named else cfg.hydra.sweep.dir))
        if not (folder / RECORD).is_file():
            raise ConfigurationError(
                f"{folder} is not a sweep: it has no {RECORD}; expected a directory such as "
                "logs/train/multiruns/<time>, or sweep.resume=true for the newest of this command"
            )
        return folder
    folder = Path(cfg.paths.log_dir, cfg.task_name, "multiruns")
    known = {path.parent: read_record(path.parent) for path in sorted(folder.glob(f"*/{RECORD}"))}
    same = [path for path, stored in known.items() if stored["overrides"] == list(overrides)]
    if same:
        return same[-1]
    if not known:
        raise ConfigurationError(f"there is no sweep in {folder} to resume; leave out sweep.resume=true to start one")
    newest, stored = list(known.items())[-1]
    told = difference(newest, stored, overrides)
    raise ConfigurationError(f"no sweep in {folder} was started with these settings. The newest, {newest.name}: {told}")


def difference(folder: Path, stored: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """Return what sets a recorded sweep apart from another one, and what to do about it."""
    before = stored["overrides"]
    parts = [f"started with {o}" for o in before if o not in overrides]
    parts += [f"now {o}" for o in overrides if o not in before]
    return (
        f"{', '.join(parts) or 'the same settings in another order'}. Repeat the command it was started with, "
        f"`{go_on(folder, stored.get('hydra', []), before)}`, or start a new sweep without sweep.resume"
    )


def go_on(folder: Path, hydra: Sequence[str], overrides: Sequence[str]) -> str:
    """Return what to type to go on with the sweep in a directory."""
    kept = [o for o in hydra if not o.startswith("hydra.sweep.dir=")]
    return command("fedgh-train", "-m", *kept, *overrides, setting("sweep.resume", folder))


def check_plugins(cfg: DictConfig) -> None:
    """Refuse a launcher or sweeper whose package is missing.

    Raises:
        ConfigurationError: Naming the extra to install.
    """
    for part in ("launcher", "sweeper"):
        choice = str(cfg.hydra.runtime.choices[f"hydra/{part}"])
        package, extra = NEEDED.get(choice, ("hydra", ""))
        if not installed(package):
            raise ConfigurationError(
                f"hydra/{part}={choice} needs {package.rpartition('.')[2]}, which is not installed; type "
                f'pip install "fedgh[{extra}]"'
            )


def installed(package: str) -> bool:
    """Tell whether a module could be imported, without importing it."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # nor is what contains it
        return False


def count(cfg: DictConfig, overrides: Sequence[str]) -> int | None:
    """Return how many jobs a sweep has, or None if its sweeper decides as it goes.

    Raises:
        ConfigurationError: If it holds an interval, and its sweeper does not search.
    """
    if search.is_search(cfg.hydra):
        number = cfg.hydra.sweeper.n_trials
        return number if isinstance(number, int) else None
    if cfg.hydra.runtime.choices["hydra/sweeper"] != "basic":
        return None
    params = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
    parsed = OverridesParser.create().parse_overrides([*params, *overrides])
    for override in parsed:
        if override.is_interval_sweep():
            raise ConfigurationError(f"{override.input_line} can be searched, not listed; type hydra/sweeper=optuna")
    return len(BasicSweeper.split_arguments(parsed, None)[0])


@contextmanager
def tables() -> Iterator[None]:
    """Write and show the tables of the sweep that this process led inside the context, whatever ended it.

    The process ends with status 1 if a job did not finish, 130 if somebody pressed Ctrl-C.
    """
    code = 0
    try:
        yield
    except KeyboardInterrupt:
        code = 130
    except Exception:
        if not _led:
            raise
        traceback.print_exc()  # a launcher's; those of jobs do not come here
        code = 1
    finally:
        finished = end(_led.pop()) if _led else True
        sweep_job.leader = None
    if code or not finished:
        sys.exit(code or 1)


def end(sweep: Sweep) -> bool:
    """Write and show the tables of a sweep, say what goes on without its leader, and let go of its directory.

    Returns:
        Whether all its jobs are finished.
    """
    with sweep.held:
        sweep.signals.acting = False  # a second Ctrl-C must not cost what this writes
        alive = slurm.alive(sweep.folder)
        jobs = read_jobs(sweep.folder)
        seeds = mean_over_seeds(jobs)
        if jobs:
            write_csv(jobs_table(jobs), sweep.folder / "jobs.csv")
            write_csv(seeds, sweep.folder / "seeds.csv")
            sweep.signals.acting = True
            try:
                send(sweep, seeds)
            except (Exception, KeyboardInterrupt) as error:  # a dashboard out of reach must not cost the result
                log.warning("W&B did not take the table over seeds: %s", error or "interrupted")
            sweep.signals.acting = False
        counts = count_statuses(jobs, alive, sweep.total)
        total, ended = sum(counts.values()), counts["finished"] + counts["pruned"]
        lines = ["", *([text_of(seeds), ""] if jobs else [])]
        lines += [", ".join(f"{number} {status}" for status, number in counts.items())]
        lines += [f"job {job.number} {job.status}: {job.error}" for job in jobs if job.error]
        searched = search.is_search(sweep.config.hydra)
        if searched and jobs:
            lines += search.result(sweep.folder)
        lines += slurm.told(alive)
        lines += [f"written to      {sweep.folder}"]
        lines += [f"tables, curves  {command('fedgh-report', setting('runs', sweep.folder))}"] * bool(jobs)
        if ended + searched * counts["failed"] < total:  # a search goes on without its failed trials
            lines += [f"go on           {go_on(sweep.folder, sweep.hydra, sweep.overrides)}"]
        if jobs or alive:
            sys.stdout.write("\n".join(lines) + "\n")
        return bool(jobs) and ended == total


def count_statuses(jobs: Sequence[JobRecord], alive: Collection[int], total: int | None) -> Counter[str]:
    """Count a sweep's jobs by what became of them.

    Args:
        jobs: Those that have begun.
        alive: Numbers of those that SLURM still runs or will run.
        total: Jobs that there will be, if known.
    """

    def status(job: JobRecord) -> str:
        runs = job.number in alive or in_use(job.directory)
        return job.status if job.status != "running" else "running" if runs else "unfinished"

    counts = Counter(map(status, jobs))
    begun = {job.number for job in jobs}
    waiting = sum(number not in begun for number in alive)
    if waiting:
        counts["waiting"] = waiting
    if total is not None and total > len(jobs) + waiting:
        counts["not begun"] = total - len(jobs) - waiting
    return counts


def send(sweep: Sweep, table: Sequence[Mapping[str, Any]]) -> None:
    """Show the table over seeds in W&B, as one more run in the sweep's group, if the sweep's runs are there."""
    if "wandb" not in sweep.config.logger:
        return
    only = {key: sweep.config.logger[key] for key in ("mode", "patience", "wandb")}
    cfg = config.resolve(
        OmegaConf.create({"logger": only, "tags": sweep.config.tags, "sweep": list(map(shareable, sweep.overrides))})
    )
    group = sweep.folder.name
    for logger in config.build_loggers(cfg, sweep.folder, sweep.wandb_id, f"{group} over seeds", group):
        import wandb

        rows = [list(line.values()) for line in table]
        seeds = beside_the_run(wandb.Table(columns=[*table[0]], data=rows), logger.experiment)
        logger.experiment.log({"seeds": seeds})
        finish_run(logger.experiment, 0, {})
