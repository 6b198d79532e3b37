"""Many runs: found below folders and in what W&B gives out, each counted once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fedgh.core.command import resume_command
from fedgh.core.errors import DataError
from fedgh.metric.summary import main_of
from fedgh.storage.run import Run, open_run
from fedgh.tracking.wandb_files import read_export, read_offline

log = logging.getLogger(__name__)


def gather(sources: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Read every finished run below some folders, and in files that W&B gave out.

    Args:
        sources: As for :func:`find_all`.

    Returns:
        The finished runs, each once, in the order of their paths; and, a sentence each, what was left out, why, and
        what can be done about it.

    Raises:
        DataError: If nothing there is a run.
    """
    found, problems = find_all(sources)
    problems += [_unfinished(run) for run in found if not run.finished]
    runs, repeats = once([run for run in found if run.finished])
    return runs, problems + repeats


def find_all(sources: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Read every run below some folders, in whatever state, and in files that W&B gave out.

    Args:
        sources: Folders, ``run-<id>.wandb`` files, or CSV files exported from W&B's table of runs.

    Returns:
        The runs in the order of their paths; and, a sentence each, what cannot be read.

    Raises:
        DataError: If nothing there is a run.
    """
    found: list[Run] = []
    problems: list[str] = []
    sources = [Path(source) for source in sources]
    for source in sources:
        if not source.exists():
            problems.append(f"runs={source} does not exist; expected a folder such as logs/train.")
        for read, files in _readers(source):
            try:
                found += read(files)
            except DataError as error:
                problems.append(f"{error}; mend it, or leave it out of runs=.")
    if not found:
        names = ", ".join(map(str, sources))
        told = (
            f"no run below {names}; expected directories with provenance.json, as fedgh-train writes them, .wandb "
            "files, or a CSV exported from W&B's table of runs; type runs=<such a folder or file>"
        )
        raise DataError("\n".join([told, *problems]))
    return found, problems


def _readers(source: Path) -> Iterator[tuple[Callable[[Any], list[Run]], Any]]:
    """Yield what is to be read, and how; W&B's files inside a run's directory say nothing that it does not."""
    if source.suffix == ".csv":
        yield read_export, source
    elif source.suffix == ".wandb":
        yield read_offline, [source]
    else:
        directories = {path.parent for path in source.rglob("provenance.json")}
        for directory in sorted(directories):
            yield (lambda path: [open_run(path)]), directory
        directories |= {path.parent for path in source.rglob("sweep.json")}  # a sweep's own file holds its tables only
        loose = [file for file in sorted(source.rglob("run-*.wandb")) if directories.isdisjoint(file.parents)]
        for name in dict.fromkeys(file.name for file in loose):
            yield read_offline, [file for file in loose if file.name == name]


def find_runs(folders: Iterable[Path]) -> list[Run]:
    """Return every finished run below some folders; what is left out is said in the log.

    Raises:
        DataError: If there is none.
    """
    runs, problems = gather(folders)
    for problem in problems:
        log.warning("%s", problem)
    if not runs:
        raise DataError("none of these runs is finished:\n" + "\n".join(problems))
    return runs


def once(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Keep one of the runs that share all that decides the outcome, and the seed: the last in order.

    Returns:
        The runs kept; and a sentence for every one that is not and came out differently.
    """
    kept: dict[str, Run] = {}
    notes = []
    for run in runs:
        key = identity(run)
        other = kept.get(key)
        if other is not None and other.rows and not run.rows:
            run, other = other, run  # the one that knows its rounds
        if other is not None and _score(other) != _score(run):
            notes.append(
                f"{other.path} and {run.path} have the same settings and seed {run.seed} but ended at "
                f"{_score(other)} and {_score(run)} (commits {other.provenance.get('commit')} and "
                f"{run.provenance.get('commit')}); only the second is counted. Leave one of them out of runs=."
            )
        kept[key] = run
    return list(kept.values()), notes


def identity(run: Run) -> str:
    """Return all that decides the outcome of a run, and its seed, as a key."""
    return json.dumps([run.seed, run.outcome()], sort_keys=True, default=str)


def _unfinished(run: Run) -> str:
    done = int(run.rows[-1]["round"]) if run.rows else int(run.summary.get("rounds", 0))
    told = f"{run.path} is not finished ({done} of {run.settings['num_rounds']} rounds) and is left out"
    return f"{told}; go on with it: {resume_command(run.path)}" if run.path.is_dir() else f"{told}."


def _score(run: Run) -> str:
    main = main_of(run.summary)
    value = run.summary.get(f"final/{main}")
    return "no score" if value is None else f"{value:.2%}" if main == "acc" else f"{main} {value:.4g}"
