"""Which runs are which cells of the paper's experiments, and what they say over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fedgh.paper.matrix import Cell, cells, cells_of, places, presets
from fedgh.report.compare import Gain, Score, paired_gain
from fedgh.report.groups import short
from fedgh.storage.run import Run

MISSING, MIXED = "missing", "mixed, left out"
MEASURES = {"final": "final/acc", "last10": "last10/acc_mean"}
"""Accuracy after the last round, and its mean over the last ten; shares in the run's summary."""


@dataclass
class Result:
    """One cell over seeds.

    Attributes:
        cell: Where in the paper, and at which preset; its seed means nothing.
        runs: One per seed; none where the cell is missing.
        note: Why there is none; empty otherwise.
        baseline: The same under the plain mean, where there is such a cell and it can be compared.
    """

    cell: Cell
    runs: dict[int, Run] = field(default_factory=dict)
    note: str = ""
    baseline: Result | None = None

    def values(self, measure: str = "final") -> dict[int, float]:
        """Return accuracy in percent by seed, as far as it is known."""
        numbers = {seed: run.summary.get(MEASURES[measure]) for seed, run in self.runs.items()}
        return {seed: 100 * number for seed, number in numbers.items() if number is not None}

    def score(self, measure: str = "final") -> Score:
        """Return the mean and spread of :meth:`values`."""
        return Score.of(self.values(measure).values())

    def gain(self, measure: str = "final") -> Gain:
        """Return the gain over the baseline in points, by the seeds that both have."""
        return paired_gain(self.values(measure), self.baseline.values(measure) if self.baseline else {})

    @property
    def published_gain(self) -> float | None:
        """The paper's gain in points, where it prints both numbers."""
        if self.baseline is None or self.cell.published is None or self.baseline.cell.published is None:
            return None
        return self.cell.published - self.baseline.cell.published


def results(runs: Iterable[Run]) -> tuple[list[Result], list[Run], list[str]]:
    """Sort runs into the paper's cells, at every preset of which there is one.

    Returns:
        Every cell of these presets, those without a run too, in the order of the paper; the runs that are no cell; and,
        a sentence each, what could not be used and what can be done about it.
    """
    found: dict[tuple[str, ...], list[Run]] = {}
    others = []
    for run in runs:
        matched = cells_of(run.settings)
        for cell in matched:
            found.setdefault(_key(cell), []).append(run)
        if not matched:
            others.append(run)
    met = {key[0] for key in found}
    sorted_in, problems = [], []
    for cell in (cell for preset in presets() if preset in met for cell in cells(preset)):
        result, complaints = _one_per_seed(cell, found.get(_key(cell), []))
        sorted_in.append(result)
        problems += complaints
    means = {_federation(result.cell): result for result in sorted_in if result.cell.settings["aggregator"] == "mean"}
    for result in sorted_in:
        mean = means.get(_federation(result.cell))
        if mean is not None and mean is not result:
            result.baseline, complaints = _comparable(result, mean)
            problems += complaints
    return sorted_in, others, list(dict.fromkeys(problems))  # tables share runs, and so their problems


def begun(found: Sequence[Result], preset: str) -> dict[str, list[Result]]:
    """Return the results at one preset by their place in the paper, without places of which nothing was run."""
    at = {place: [r for r in found if (r.cell.preset, r.cell.place) == (preset, place)] for place in places()}
    return {place: of for place, of in at.items() if any(result.runs or result.note != MISSING for result in of)}


def _comparable(result: Result, mean: Result) -> tuple[Result | None, list[str]]:
    """Refuse to compare runs that differ in more than how they aggregate."""
    for ours, theirs in zip(list(result.runs.values())[:1], list(mean.runs.values())[:1], strict=False):
        if differences := _differences(ours, theirs, beside="aggregator."):
            return None, [
                f"{ours.path} and {theirs.path} differ in more than the aggregator: {differences}; no gain is given. "
                "Run both with the same settings."
            ]
    return mean, []


def _one_per_seed(cell: Cell, runs: Sequence[Run]) -> tuple[Result, list[str]]:
    """Refuse to average two versions of a config; of two runs of one seed take the last."""
    if not runs:
        return Result(cell, note=MISSING), []
    for run in runs[1:]:
        differences = _differences(runs[0], run)
        if differences:
            return Result(cell, note=MIXED), [
                f"{runs[0].path} and {run.path} are both {cell.name.rpartition('/')[0]} at preset {cell.preset}, but "
                f"differ in {differences}; they are not averaged, and the cell is left out. Give the report one of the "
                "two versions: runs=[<folder>, ...]"
            ]
    problems, chosen = [], dict[int, Run]()
    for run in runs:
        if run.seed in chosen:
            problems.append(
                f"{chosen[run.seed].path} and {run.path} are the same cell and seed {run.seed}; only the second is "
                "counted. Leave one of them out of runs=."
            )
        chosen[run.seed] = run
    return Result(cell, dict(sorted(chosen.items()))), problems


def _differences(first: Run, second: Run, beside: str = "-") -> str:
    """Return the settings in which two runs differ, with both values; how cohorts are executed is no difference."""
    ours, theirs = first.outcome(), second.outcome()
    keys = [key for key in ours.keys() & theirs.keys() if ours[key] != theirs[key] and not key.startswith(beside)]
    return ", ".join(f"{key} ({short(ours[key])} and {short(theirs[key])})" for key in sorted(keys))


def _key(cell: Cell) -> tuple[str, ...]:
    return cell.preset, cell.place, cell.column, cell.row, cell.aggregator


def _federation(cell: Cell) -> str:
    """Return all of a cell but how it aggregates, as a key."""
    settings = {key: value for key, value in cell.settings.items() if key.partition(".")[0] != "aggregator"}
    return repr((cell.preset, cell.place, cell.column, sorted(settings.items())))
