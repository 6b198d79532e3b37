"""Tables over seeds: one for sweeps, reports, dashboards and W&B; and a line a run.

In memory and in CSV files accuracies are shares, as runs record them; tables for readers are in percent and say so.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

from fedgh.metric.summary import main_of
from fedgh.report.compare import Gain, Score, paired_gain
from fedgh.report.cost import cost_line
from fedgh.report.groups import Group, Groups, differing, short
from fedgh.storage.portable import anonymous
from fedgh.storage.run import Run

MEASURES = {"accuracy": "final/acc", "last10": "last10/acc_mean", "conflict": "mean/conflict_ratio"}
"""Column -> closing number: test accuracy after the last round, its mean over the last ten rounds, and the share of
pairs of clients in conflict over all rounds."""
WHERE_THERE = {"validation": "final/val_acc", "personal": "final/personal_acc", "fine_tuned": "final/fine_tuned_acc"}
"""Likewise, where a part of the training data was held out: accuracy on it after the last round; and where clients use
models of their own, kept or fine-tuned: mean over clients of their accuracy."""
OF_A_RUN = {
    "final": MEASURES["accuracy"],
    "last10": MEASURES["last10"],
    "best10": "last10/acc_best",
    "conflict": MEASURES["conflict"],
}
"""Columns of ``runs.csv``, likewise."""
HEADINGS = {
    "accuracy": "accuracy (%)",
    "last10": "mean of the last ten rounds (%)",
    "validation": "held-out training data (%)",
    "personal": "personal models (%)",
    "fine_tuned": "fine-tuned models (%)",
    "conflict": "pairs in conflict (%)",
}
EXPLAINED = (
    "Test accuracy of the global model, or what else its task is judged by, after the last round, its mean over the "
    "last ten rounds, and the share of pairs of clients whose updates oppose each other, over all rounds; mean ± "
    "standard deviation over seeds."
)

Line = dict[str, Any]
Table = tuple[list[str], list[list[str]]]
"""Head and rows, as text."""


def seeds_table(groups: Iterable[tuple[Mapping[str, Any], Sequence[Mapping[str, float]]]]) -> list[Line]:
    """Return a line per group of runs that differ in their seed only; the one table over seeds.

    Args:
        groups: What names the group, by column, and the closing numbers of its finished runs.

    Returns:
        The names, ``seeds``, and of each measure mean and standard deviation (n - 1; NaN for one seed), in shares.
    """
    groups, lines = list(groups), []
    measures = measures_of([result for _, results in groups for result in results])
    for names, results in groups:
        line: Line = {**names, "seeds": len(results)}
        for column, key in measures.items():
            score = Score.of(result[key] for result in results if key in result)
            line |= {f"{column}_mean": score.mean, f"{column}_sd": score.sd}
        lines.append(line)
    return lines


def measures_of(results: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Return column -> closing number for runs of these closing numbers, whatever their tasks are judged by.

    A score that is no accuracy has columns of its own name, ``r2`` and ``r2_last10``; if there is no accuracy at all,
    accuracy has none.
    """
    there = {key for result in results for key in result}
    mains = sorted({main for result in results if (main := main_of(result)) not in (None, "acc")})
    measures = {} if mains and MEASURES["accuracy"] not in there else dict(MEASURES)
    for main in mains:
        measures |= {main: f"final/{main}", f"{main}_last10": f"last10/{main}_mean"}
    measures |= {"conflict": measures.pop("conflict", MEASURES["conflict"])}  # last
    return measures | {column: key for column, key in WHERE_THERE.items() if key in there}


def of_groups(groups: Groups) -> list[Line]:
    """Return :func:`seeds_table` of groups: federation, method, and the settings that differ as the config has them."""
    return seeds_table(
        (
            _names(groups, group) | dict(group.settings),
            [run.summary for run in group.finished],
        )
        for group in groups.members
    )


def over_seeds(groups: Groups) -> Table:
    """Return the table for readers: federation where there are several, method, seeds, measures in percent."""
    named = ["federation"] * (len(groups.federations) > 1) + ["method"]
    table = of_groups(groups)
    rows = [[*(line[key] for key in named), str(line["seeds"]), *_measured(line)] for line in table]
    return [*named, "seeds", *(_heading(name) for name in _measures(table[0]))], rows


def gains(groups: Groups) -> list[tuple[Group, Gain]]:
    """Compare every aggregator with the plain mean, seed by seed, where all other settings agree; in shares."""

    def scores(group: Group) -> dict[int, float]:
        mains = {run.seed: (run, main_of(run.summary)) for run in group.finished}
        return {seed: run.summary[f"final/{main}"] for seed, (run, main) in mains.items() if main}

    def others(group: Group) -> str:
        run = (*group.finished, *group.unfinished)[0]
        return repr({key: value for key, value in sorted(run.outcome().items()) if not key.startswith("aggregator.")})

    means = {others(group): group for group in groups.members if group.aggregator == "Mean"}
    pairs = [(group, means.get(others(group))) for group in groups.members if group.aggregator != "Mean"]
    return [(group, paired_gain(scores(group), scores(mean))) for group, mean in pairs if mean is not None]


def gains_table(groups: Groups) -> Table:
    """Return :func:`gains` for readers, in points."""
    named = ["federation"] * (len(groups.federations) > 1) + ["method"]
    rows, mains = [], set[str]()
    for group, gain in gains(groups):
        names, main = _names(groups, group), next((m for run in group.finished if (m := main_of(run.summary))), "acc")
        mains.add(main)
        low, high = (_signed(end, main) for end in (gain.low, gain.high))
        told = [_signed(gain.mean, main), f"{low} to {high}" if gain.pairs > 1 else ""]
        rows.append([names[key] for key in named] + [*told, "" if isnan(gain.p_value) else f"{gain.p_value:.2g}"])
        rows[-1].append(str(gain.pairs))
    what = " or ".join("accuracy (points)" if main == "acc" else main for main in sorted(mains))
    return [*named, f"gain in {what or 'accuracy (points)'}", "95 % interval", "p", "seeds in both"], rows


def gain_lines(groups: Groups) -> list[Line]:
    """Return :func:`gains` for programs, in shares."""
    return [
        _names(groups, group)
        | dict(group.settings)
        | {"gain": gain.mean, "low": gain.low, "high": gain.high, "p_value": gain.p_value, "pairs": gain.pairs}
        for group, gain in gains(groups)
    ]


def runs_table(runs: Sequence[Run]) -> list[Line]:
    """Return a line per run: what it was, what came out, and what stands behind the number."""
    keys, lines = differing(runs), []
    others = measures_of([run.summary for run in runs])
    columns = OF_A_RUN | {name: key for name, key in others.items() if name not in HEADINGS}
    for run in runs:
        what = {key: short(run.settings.get(key)) for key in keys}
        numbers = {name: run.summary.get(key, nan) for name, key in columns.items()}
        behind = {name: value for name, value in cost_line([run]).items() if name not in ("runs", "hardware")}
        known = {name: run.provenance.get(name) for name in ("commit", "device", "cpu", "threads", "command")}
        known["torch"] = run.provenance.get("versions", {}).get("torch")
        lines.append({**what, "seed": run.seed, **numbers, **behind, **known, "run": anonymous(str(run.path))})
    return lines


def text_of(table: Sequence[Line]) -> str:
    """Return a table over seeds for a terminal: in percent, mean ± standard deviation."""
    names = [key for key in table[0] if not key.endswith(("_mean", "_sd"))]
    head = [*names, *(f"{name} (%)" if name in HEADINGS else name for name in _measures(table[0]))]
    lines = [head, *([str(line[key]) for key in names] + [cell or "-" for cell in _measured(line)] for line in table)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def write_csv(table: Sequence[Line], path: Path) -> None:
    """Write lines of equal columns, all or nothing; what is not known stays empty. Without lines nothing is written."""
    if not table:
        return
    aside = path.with_suffix(".tmp")
    with aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if value != value else value for key, value in line.items()} for line in table)
    aside.replace(path)


def percent(score: Score) -> str:
    """Return a share over seeds in percent, mean ± standard deviation; empty if it is not known."""
    if not score.seeds:
        return ""
    return f"{100 * score.mean:.2f}" + (f" ± {100 * score.sd:.2f}" if score.seeds > 1 else "")


def _names(groups: Groups, group: Group) -> Line:
    return {"federation": groups.federations[group.federation], "method": groups.methods[group.method]}


def _measures(line: Line) -> list[str]:
    own = [name.removesuffix("_mean") for name in line if name.endswith("_mean")]
    return [*(n for n in own if n not in HEADINGS), *(name for name in HEADINGS if name in own)]


def _heading(name: str) -> str:
    main = name.removesuffix("_last10")
    return HEADINGS.get(name) or (name if main == name else f"mean {main} of the last ten rounds")


def _measured(line: Line) -> list[str]:
    return [
        told(
            name,
            Score(mean := line[f"{name}_mean"], sd := line[f"{name}_sd"], 0 if isnan(mean) else 1 if isnan(sd) else 2),
        )
        for name in _measures(line)
    ]


def told(name: str, score: Score) -> str:
    """Return a measure over seeds for readers: shares in percent, a score of a task's own as it is."""
    if name in HEADINGS or not score.seeds:
        return percent(score)
    return f"{score.mean:.3f}" + (f" ± {score.sd:.3f}" if score.seeds > 1 else "")


def _signed(gain: float, main: str) -> str:
    return "" if isnan(gain) else f"{100 * gain:+.2f}" if main == "acc" else f"{gain:+.3f}"
