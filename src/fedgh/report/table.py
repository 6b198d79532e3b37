"""Tables over seeds: what differs between runs names a row, seeds are averaged, FedGH is paired with the mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from fedgh.report.compare import paired_gain
from fedgh.report.cost import cost_line
from fedgh.report.run import Run

Setting = tuple[tuple[str, Any], ...]
"""Keys and values, of the settings in which runs differ."""

MEASURES = {
    "final": "final/acc",
    "last10": "last10/acc_mean",
    "best10": "last10/acc_best",
    "conflict": "mean/conflict_ratio",
}


def runs_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one line per run: what it was, what came out, and what stands behind the number."""
    keys = differing(runs)
    lines = []
    for run in runs:
        what = {key: short(run.settings.get(key)) for key in keys}
        numbers = {name: run.summary.get(key) for name, key in MEASURES.items()}
        behind = {name: value for name, value in cost_line([run]).items() if name not in ("runs", "hardware")}
        known = {name: run.provenance.get(name) for name in ("commit", "device", "cpu", "threads", "command")}
        known["torch"] = run.provenance.get("versions", {}).get("torch")
        lines.append({**what, "seed": run.seed, **numbers, **behind, **known, "run": str(run.path)})
    return pd.DataFrame(lines)


def seeds_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one line per setting: number of seeds, mean and standard deviation (over seeds, n - 1) of each measure."""
    table, keys = runs_table(runs), differing(runs)
    names = list(MEASURES)
    if not keys:
        table, keys = table.assign(setting="all"), ["setting"]
    grouped = table.groupby(keys, sort=False, dropna=False)[names]
    result = grouped.agg(["mean", "std"])
    result.columns = [f"{name}_{statistic}" for name, statistic in result.columns]
    return result.assign(seeds=grouped.size()).reset_index()


def paired_gains(runs: Sequence[Run], measure: str = "final") -> pd.DataFrame:
    """Compare every aggregator with the mean, seed by seed, where all other settings agree.

    Returns:
        Per setting and aggregator: what :func:`fedgh.report.compare.paired_gain` says, in shares of the test set.
    """
    scores = {
        setting: {run.seed: run.summary[MEASURES[measure]] for run in alike if MEASURES[measure] in run.summary}
        for setting, alike in by_setting(runs).items()
    }
    means = {_others(setting): score for setting, score in scores.items() if ("aggregator._target_", "Mean") in setting}
    rows = []
    for setting, ours in scores.items():
        baseline = means.get(_others(setting))
        if baseline is not None and baseline is not ours:
            gain = paired_gain(ours, baseline)
            line = {"gain": gain.mean, "low": gain.low, "high": gain.high, "p_value": gain.p_value, "pairs": gain.pairs}
            rows.append({**dict(setting), **line})
    return pd.DataFrame(rows)


def _others(setting: Setting) -> Setting:
    return tuple(item for item in setting if not item[0].startswith("aggregator."))


def by_setting(runs: Sequence[Run]) -> dict[Setting, list[Run]]:
    """Group runs by the settings in which they differ; the aggregator's own come last."""
    groups: dict[Setting, list[Run]] = {}
    keys = sorted(differing(runs), key=lambda key: key.startswith("aggregator."))
    for run in runs:
        setting = tuple((key, short(run.settings[key])) for key in keys if run.settings.get(key) is not None)
        groups.setdefault(setting, []).append(run)
    return groups


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the settings that take more than one value over the runs that have them, but for those without effect."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for key, value in run.outcome().items():
            values.setdefault(key, set()).add(repr(value))
    return [key for key, taken in values.items() if len(taken) > 1]


def short(value: Any) -> Any:
    """Return the last part of an import path, a list as text, and anything else as it is."""
    if isinstance(value, list):
        return str(value)
    return value.rsplit(".", 1)[1] if isinstance(value, str) and value.startswith("fedgh.") else value


def cells_of_table(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return head and rows as text, numbers with four digits; what is not known is left empty."""
    return list(map(str, table.columns)), [[_cell(value) for value in row] for row in table.to_numpy().tolist()]


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
