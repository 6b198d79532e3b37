"""Run the paper's experiments: ``fedgh-paper table=1 preset=quick rows=fedavg,fedprox seeds=1,2,3``."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fedgh import config
from fedgh.config.rules import aggregator_names
from fedgh.config.typed import check_typed, known_keys
from fedgh.core.command import command, setting
from fedgh.core.errors import ConfigurationError, DataError, FedGHError
from fedgh.paper import matrix
from fedgh.paper.matrix import Cell
from fedgh.sweep.processes import Job, Outcome, run_processes
from fedgh.sweep.state import state_of

HELP = """fedgh-paper: the paper's experiments, a process a cell.

  fedgh-paper table=1                                        all cells of a table, as published
  fedgh-paper table=1 preset=quick seeds=1,2,3 workers=2     cut down to minutes a cell
  fedgh-paper figure=2 preset=quick dataset.source=parquet paths.data_dir=<folder with cifar10/ and so on>
  fedgh-paper table=1 columns=cifar10_* aggregators=upgrad   another rule in the paper's settings
  fedgh-paper variant=matched_rate preset=quick dry_run=true

table, figure, variant  what to run: {places}
preset                  {presets}; default paper
rows, columns,          parts of it, separated by commas; columns may hold *
  aggregators
seeds                   default 1
workers                 processes at once, default 1
dry_run                 true: print the commands only, and as comments what cannot be run and why
paths.log_dir           runs land in <log_dir>/paper/<preset>
any other key=value     goes to fedgh-train, for every cell

Run again: finished cells are skipped, interrupted ones resumed, failed ones tried again.
"""
GOOD = ("finished", "done")
SELECTING = ("table", "figure", "variant", "preset", "rows", "columns", "aggregators", "seeds", "workers", "dry_run")
OWN = {
    "algorithm": "rows=",
    "aggregator": "aggregators=",
    "seed": "seeds=",
    "experiment": "table= or figure=",
    "resume": "the same command again",
}


@dataclass(frozen=True)
class Request:
    """What was typed.

    Attributes:
        cells: The selected cells, each settings and seed once.
        preset: Their size.
        workers: Processes at once.
        dry_run: Whether to print only.
        log_dir: Where all runs land.
        extra: What goes to every ``fedgh-train``.
    """

    cells: list[Cell]
    preset: str
    workers: int
    dry_run: bool
    log_dir: Path
    extra: list[str]

    @property
    def folder(self) -> Path:
        """Where runs of this size land."""
        return self.log_dir / "paper" / self.preset


def main() -> None:
    """Entry point of ``fedgh-paper``."""
    arguments = sys.argv[1:]
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(HELP.format(places=", ".join(_spelled(matrix.places())), presets=", ".join(matrix.presets())))
        sys.exit(0 if arguments else 2)
    try:
        sys.exit(run(read(arguments)))
    except FedGHError as error:
        sys.stderr.write(f"\nerror: {error}\n")
        sys.exit(2)


def run(request: Request) -> int:
    """Run the cells that are not finished; return the exit status, 0 if all are."""
    config.quieten()
    jobs = [job_of(cell, request) for cell in request.cells]
    checked = [check(job, cell, request) for job, cell in zip(jobs, request.cells, strict=True)]
    waiting = [answer for answer in checked if isinstance(answer, Job)]
    outcomes = {answer.job.name: answer for answer in checked if isinstance(answer, Outcome)}
    counts = Counter(outcome.status for outcome in outcomes.values())
    resumed, cells = sum(job.begun for job in waiting), "cell" if len(jobs) == 1 else "cells"
    summary = (
        f"{len(jobs)} {cells} at preset {request.preset}: {counts['finished']} finished, {resumed} to resume, "
        f"{len(waiting) - resumed} to run, {counts['failed']} that cannot be run"
    )
    if request.dry_run:
        say(plan(summary, [job.arguments for job in waiting], list(outcomes.values())))
        return 1 if counts["failed"] else 0
    say(summary)
    outcomes |= {outcome.job.name: outcome for outcome in run_processes(waiting, request.workers, say)}
    ordered = [outcomes[job.name] for job in jobs if job.name in outcomes]
    if ordered:
        say(closing(ordered, request))
    return 1 if any(outcome.status not in GOOD for outcome in ordered) else 0


def check(job: Job, cell: Cell, request: Request) -> Job | Outcome:
    """Look at a cell's directory and data before anything is started.

    Returns:
        The job, told whether it goes on with a run, or its outcome if there is nothing to run.

    Raises:
        ConfigurationError: If what goes to every cell does not fit.
    """
    if (job.directory / "config.yaml").is_file():
        wanted = composed(cell, request)
        try:
            state = state_of(job.directory, {**wanted, "seed": cell.seed})
        except DataError as error:
            return Outcome(job, "failed", str(error))
        if state.kind == "finished":
            return Outcome(job, "finished")
        if state.kind == "other":
            return Outcome(job, "failed", other_settings(job, state.differences))
        job = replace(job, begun=state.kind == "resumable")
    else:  # composing takes a while, so one cell stands for all of its data set
        twin = next(other for other in request.cells if other.settings["dataset"] == cell.settings["dataset"])
        wanted = composed(twin, request)
    missing = missing_data(wanted["dataset"], cell)
    return Outcome(job, "failed", missing) if missing else job


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def plan(summary: str, commands: Sequence[Sequence[str]], outcomes: Sequence[Outcome]) -> str:
    """Return what a dry run prints: the commands as a shell takes them, and all else as comments below them.

    Args:
        summary: How many cells are to be run, finished, and so on.
        commands: Arguments of ``fedgh-train``, a list a cell.
        outcomes: Of the cells that are not run: finished ones, and those that cannot be run, by their reason.
    """
    lines = [command("fedgh-train", *arguments) for arguments in commands] + [f"# {summary}"]
    for (_, reason), names in _by_reason(outcome for outcome in outcomes if outcome.status == "failed").items():
        lines += [f"# cannot be run: {reason}", f"#     {_some(names)}"]
    return "\n".join(lines)


def _by_reason(outcomes: Iterable[Outcome]) -> dict[tuple[str, str], list[str]]:
    """Return the names of cells by their status and message."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        reasons.setdefault((outcome.status, outcome.message), []).append(outcome.job.name)
    return reasons


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def closing(outcomes: Sequence[Outcome], request: Request) -> str:
    """Return the end of the output: how many ended how, why some did not, and what comes next."""
    counts = Counter(outcome.status for outcome in outcomes)
    lines = ["", ", ".join(f"{number} {status}" for status, number in counts.items())]
    unfinished = [outcome for outcome in outcomes if outcome.status not in GOOD]
    for (status, reason), names in _by_reason(unfinished).items():
        lines.append(f"{status}: {_some(names)}\n    {reason}".rstrip())
    if unfinished:
        lines.append("go on           the same command again")
    if len(unfinished) < len(outcomes):
        lines.append(f"tables          {command('fedgh-report', setting('runs', request.folder))}")
    return "\n".join(lines)


def job_of(cell: Cell, request: Request) -> Job:
    """Return the run of a cell, in the directory that its settings name."""
    directory = (request.folder / cell.name).absolute()
    return Job(f"{request.preset}/{cell.name}", directory, (*cell.overrides, *request.extra))


def composed(cell: Cell, request: Request) -> dict[str, Any]:
    """Return a cell's config as ``fedgh-train`` will resolve it, but for the seed.

    Raises:
        ConfigurationError: If it does not compose or is not valid, naming the cell.
    """
    try:
        return _composed(tuple(word for word in cell.overrides if not word.startswith("seed=")), tuple(request.extra))
    except (HydraException, OmegaConfBaseException, ConfigurationError) as error:
        misspelt = re.search(r"Could not override '([\w./@]+)'", str(error))
        hint = config.did_you_mean(misspelt.group(1), [*SELECTING, *known_keys("train")]) if misspelt else ""
        text = f"there is no key {misspelt.group(1)}{hint}" if misspelt else str(error)
        raise ConfigurationError(f"cell {request.preset}/{cell.name} cannot be composed: {text}") from error


@cache
def _composed(overrides: tuple[str, ...], extra: tuple[str, ...]) -> dict[str, Any]:
    cfg = config.compose([*overrides, *extra])
    config.validate(cfg)
    return config.to_values(cfg)


def missing_data(dataset: Mapping[str, Any], cell: Cell) -> str:
    """Return what to do about a data set that is not on disk, or an empty string.

    Args:
        dataset: The config of the cell's data set.
        cell: The cell.
    """
    root = dataset.get("root")
    if root is None or dataset.get("download") or Path(root).expanduser().is_dir():
        return ""
    download = ", dataset.download=true" if "download" in dataset else ""
    return (
        f"{cell.settings['dataset']} is not at {root}; type paths.data_dir=<folder that holds {Path(root).name}/>, "
        f"dataset.root=<that folder itself>{download}, or dataset.source=parquet with either for the Parquet layout; "
        "preset=smoke needs no data"
    )


def other_settings(job: Job, differences: Sequence[str]) -> str:
    """Return what to do about a directory that holds a run with other settings."""
    return (
        f"{job.directory} holds a run with other settings: {'; '.join(differences)}. Give the settings it was started "
        "with, move it away, or choose another folder with paths.log_dir=<folder>"
    )


def read(arguments: Sequence[str]) -> Request:
    """Return what the command line asks for.

    Raises:
        ConfigurationError: If something does not exist or cannot be combined.
    """
    given: dict[str, str] = {}
    extra = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ConfigurationError(f"expected key=value, got {argument!r}; `fedgh-paper --help` shows the keys")
        if key in SELECTING or key == "paths.log_dir":
            if key in given:
                raise ConfigurationError(f"{key}= is given twice")
            given[key] = value
        elif key in OWN or key.startswith("hydra."):
            raise ConfigurationError(
                f"{argument} would go to every cell, but sets cells apart; use {OWN.get(key, 'paths.log_dir=')}"
            )
        else:
            check_typed([argument])
            extra.append(argument)
    preset = _one_of("preset", given.get("preset", "paper"), list(matrix.presets()))
    seeds = tuple(_number("seeds", word, 0) for word in _words(given.get("seeds", "1")))
    return Request(
        cells=select(given, preset, seeds),
        preset=preset,
        workers=_number("workers", given.get("workers", "1"), 1),
        dry_run=_one_of("dry_run", given.get("dry_run", "false").lower(), ["true", "false"]) == "true",
        log_dir=Path(given.get("paths.log_dir") or os.environ.get("FEDGH_LOG_DIR") or "logs"),
        extra=extra,
    )


def select(given: dict[str, str], preset: str, seeds: tuple[int, ...]) -> list[Cell]:
    """Return the cells asked for, those that are one run once.

    Raises:
        ConfigurationError: If a name does not exist, or nothing is left.
    """
    places = []
    for kind, known in _by_kind().items():
        short = [place.removeprefix(kind) for place in known]
        places += [known[short.index(_one_of(kind, word, short))] for word in _words(given.get(kind, ""))]
    if not places:
        raise ConfigurationError(f"say what to run: {', '.join(_spelled(matrix.places()))}")
    cells = [cell for cell in matrix.cells(preset, seeds) if cell.place in places]
    cells += with_other_rules(cells, _words(given.get("aggregators", "")))
    for key, attribute in (("rows", "row"), ("columns", "column"), ("aggregators", "aggregator")):
        known = list(dict.fromkeys(getattr(cell, attribute) for cell in cells))
        wanted = _words(given.get(key, "*"))
        for word in wanted:
            if not any(fnmatchcase(name, word) for name in known):
                _one_of(key, word, known)
        cells = [cell for cell in cells if any(fnmatchcase(getattr(cell, attribute), word) for word in wanted)]
    return list({cell.name: cell for cell in cells}.values())


def with_other_rules(cells: Sequence[Cell], names: Sequence[str]) -> list[Cell]:
    """Return the cells with the mean again under every rule named that is a choice of ``aggregator=`` but no cell."""
    known = {cell.aggregator for cell in cells}
    names = [name for name in names if name not in known and name in aggregator_names()]
    means = [cell for cell in cells if cell.aggregator == "mean"]
    return [
        replace(cell, aggregator=name, settings=matrix.layered(cell.settings, {"aggregator": name}), published=None)
        for name in names
        for cell in means
    ]


def _by_kind() -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {"table": [], "figure": [], "variant": []}
    for place in matrix.places():
        kinds[next((kind for kind in ("table", "figure") if place.startswith(kind)), "variant")].append(place)
    return kinds


def _spelled(places: Sequence[str]) -> list[str]:
    return [
        f"{kind}={place.removeprefix(kind)}" for kind, known in _by_kind().items() for place in known if place in places
    ]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.strip("[]").split(",") if word.strip()]


def _one_of(key: str, word: str, known: list[str]) -> str:
    if word not in known:
        raise ConfigurationError(
            f"there is no {key}={word}{config.did_you_mean(word, known)}; known: {', '.join(known)}"
        )
    return word


def _number(key: str, word: str, least: int) -> int:
    if not word.isdigit() or int(word) < least:
        raise ConfigurationError(f"{key} must be whole numbers of {least} or more, got {word!r}")
    return int(word)


if __name__ == "__main__":
    main()
