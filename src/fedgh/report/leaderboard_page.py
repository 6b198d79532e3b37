"""The leaderboard as files that a reader opens: a table and pictures a setting, and what may be said of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import isnan, nan
from pathlib import Path

import numpy as np

from fedgh.plot.ranks import cost_figure, rank_figure
from fedgh.plot.style import style_of
from fedgh.report.compare import Gain
from fedgh.report.document import Document
from fedgh.report.leaderboard import Row, labels, lines_of
from fedgh.report.ranks import Pair, Ranks, pairs
from fedgh.report.seeds import Line, percent, write_csv

MOST_CURVES = 8
ALL_PAIRS = 6  # rows up to which the page has every pair; pairs.csv always has
APART = (
    ("fedgh rescale=fedavg_norm", "direction: harmonized, as long as the mean"),
    ("matched by=norm rule=fedgh", "length: the mean, as long as the harmonized update"),
)
"""The rows that take FedGH's gain apart, by rule."""
EXPLAINED = (
    "Accuracy: of the global model on the official test split, mean of the last ten rounds; mean ± standard deviation "
    "over seeds, in percent. Gain: over FedAvg with the plain mean, in points, paired by seed, with the 95 % interval "
    "of Student's t (not corrected) and the same in standard deviations of the gains (effect). p: of the paired t-"
    "test, corrected by Holm for all pairs of the setting. Worst client: on data of its own label mix. Level: rounds, "
    "and bytes to and from all clients, until the mean curve reaches FedAvg's mean of the last ten rounds."
)


def write_leaderboard(rows: Sequence[Row], folder: Path, problems: Sequence[str] = ()) -> str:
    """Write ``leaderboard.csv``, ``pairs.csv``, ``report.md`` and ``report.html`` with their pictures.

    Args:
        rows: At least one, by setting.
        folder: Where the files go.
        problems: What was left out or is to be known, a sentence each.

    Returns:
        The Markdown text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = Document(folder, "Leaderboard of federated learning under gradient conflict")
    if problems:
        document.points(problems, kind="warning")
    document.text(EXPLAINED)
    table: list[Line] = []
    for setting, of in groupby(rows, key=lambda row: row.setting):
        table += _setting(document, setting, sorted(of, key=lambda row: -row.score.mean))
    write_csv(lines_of(rows), folder / "leaderboard.csv")
    write_csv(table, folder / "pairs.csv")
    return document.write()


def _setting(document: Document, setting: str, rows: Sequence[Row]) -> list[Line]:
    """Add a setting; return its lines of ``pairs.csv``."""
    names = labels(rows)
    compared = pairs([row.scores for row in rows])
    base = baseline(rows)
    document.heading(setting)
    document.table(*_table(rows, names, compared, base))
    document.points(verdict(rows, names, compared, base))
    ranks = Ranks.of([row.scores for row in rows])
    stem = setting.replace(" ", "_").replace("=", "_").replace("/", "_")
    if ranks is not None:
        alike = "" if isnan(ranks.p_value) else f" Friedman's test that all are alike: p = {ranks.p_value:.2g}."
        document.picture(
            f"ranks_{stem}",
            f"Mean rank over the {ranks.seeds} seeds that all have. Ways whose ranks differ by less than the critical "
            f"difference (Nemenyi, 5 %) are joined by a bar.{alike}",
            rank_figure(names, ranks.mean, ranks.difference, ranks.bars()),
        )
    shown = list(range(len(rows)))[:MOST_CURVES]
    shown += [base] if base is not None and base not in shown else []
    document.picture(
        f"cost_{stem}",
        "Accuracy by round, and by bytes to and from all clients together: mean over seeds"
        + (f", the first {MOST_CURVES} and FedAvg." if len(rows) > MOST_CURVES else "."),
        cost_figure(
            [
                ("Round", [_curve(rows[i], names[i], i, 1.0) for i in shown]),
                ("MB, both ways", [_curve(rows[i], names[i], i, rows[i].bytes_per_round / 1e6) for i in shown]),
            ]
        ),
    )
    if len(rows) <= ALL_PAIRS and len(rows) > 2:
        document.heading("All pairs", 3)
        told = [
            [
                f"{names[p.first]} - {names[p.second]}",
                *_gain(p.gain),
                _number(p.effect, "+.1f"),
                _number(p.p_holm, ".2g"),
            ]
            for p in compared
        ]
        document.table(["", "gain (points)", "95 % interval", "effect", "p (Holm)"], told)
    return [
        {"setting": setting, "first": names[p.first], "second": names[p.second], "gain": p.gain.mean}
        | {"low": p.gain.low, "high": p.gain.high, "effect": p.effect, "p_value": p.gain.p_value, "p_holm": p.p_holm}
        | {"seeds": p.gain.pairs}
        for p in compared
    ]


def baseline(rows: Sequence[Row]) -> int | None:
    """Return which of a setting's rows is FedAvg with the plain mean, the best of several; None without one."""
    means = [place for place, row in enumerate(rows) if (row.algorithm, row.rule) == ("fedavg", "mean")]
    return max(means, key=lambda place: rows[place].score.mean, default=None)


def _table(
    rows: Sequence[Row], names: Sequence[str], compared: Sequence[Pair], base: int | None
) -> tuple[list[str], list[list[str]]]:
    head = ["", "seeds", "accuracy (%)", "gain (points)", "95 % interval", "effect", "p (Holm)", "final (%)"]
    head += ["worst client (%)", "over clients (sd)", "level: rounds", "level: MB", "MB a round"]
    head += ["in conflict (%)", "after (%)", "seconds", "lr, server lr"]
    lines = []
    for place, row in enumerate(rows):
        against = _against(compared, place, base)
        gain = ["", "", "", ""] if against is None else [*_gain(against[0]), *against[1:]]
        reached = _level(row, None if base is None else rows[base])
        line = [names[place], str(row.score.seeds), percent(row.score), *gain]
        line += [_number(100 * value, ".2f") for value in (row.final, row.worst, row.spread)]
        line += [_number(reached, ".0f"), _number(reached * row.bytes_per_round / 1e6, ".1f")]
        line += [_number(row.bytes_per_round / 1e6, ".2f")]
        line += [_number(100 * value, ".0f") for value in (row.conflict_before, row.conflict_after)]
        lines.append([*line, _number(row.seconds, ".1f"), f"{row.client_lr:g}, {row.server_lr:g}"])
    return head, lines


def _against(compared: Sequence[Pair], place: int, base: int | None) -> tuple[Gain, str, str] | None:
    """Return the gain of a row over the baseline, its effect and its p-value."""
    for pair in compared:
        if {pair.first, pair.second} == {place, base}:
            sign = 1 if pair.first == place else -1
            gain = pair.gain if sign > 0 else _turned(pair.gain)
            return gain, _number(sign * pair.effect, "+.1f"), _number(pair.p_holm, ".2g")
    return None


def _turned(gain: Gain) -> Gain:
    return Gain(-gain.mean, -gain.high, -gain.low, gain.p_value, gain.pairs)


def _gain(gain: Gain) -> list[str]:
    ends = f"{100 * gain.low:+.2f} to {100 * gain.high:+.2f}" if gain.pairs > 1 else ""
    return [_number(100 * gain.mean, "+.2f"), ends]


def _level(row: Row, base: Row | None) -> float:
    """Return the first round whose mean accuracy is what the baseline has over its last ten; NaN if none is."""
    if base is None:
        return nan
    reached = (number for number, value in zip(row.rounds, row.curve, strict=True) if value >= base.score.mean)
    return float(next(reached, nan))


def _curve(
    row: Row, name: str, place: int, unit: float
) -> tuple[str, Sequence[float], Sequence[float], tuple[str, int]]:
    return name, [number * unit for number in row.rounds], (100 * np.asarray(row.curve)).tolist(), style_of(place)


def verdict(rows: Sequence[Row], names: Sequence[str], compared: Sequence[Pair], base: int | None) -> list[str]:
    """Say in words what the tests allow, and no more, a sentence each."""
    told = [f"{sum(pair.apart for pair in compared)} of {len(compared)} pairs are told apart after Holm's correction."]
    if base is None:
        return [*told, "FedAvg with the plain mean is missing, so there are no gains."]
    ahead, behind, alike = list[str](), list[str](), list[str]()
    for pair in compared:
        if base in (pair.first, pair.second):
            other = pair.first if pair.second == base else pair.second
            gain = pair.gain.mean if other == pair.first else -pair.gain.mean
            (alike if not pair.apart else ahead if gain > 0 else behind).append(names[other])
    for what, of in (("ahead of", ahead), ("behind", behind), ("not told apart from", alike)):
        if of:
            told.append(f"{what[0].upper()}{what[1:]} {names[base]}: {'; '.join(of)}.")
    parts = []
    for rule, meaning in (("fedgh", "both together"), *APART):
        for place, row in enumerate(rows):
            if (row.algorithm, row.rule) == ("fedavg", rule) and (found := _against(compared, place, base)):
                mean, interval = _gain(found[0])
                parts.append(f"{meaning} {mean} ({interval or 'one seed'})")
    if len(parts) > 1:
        told.append(f"FedGH's gain taken apart, in points: {'; '.join(parts)}.")
    return told


def _number(value: float, form: str) -> str:
    return "" if isnan(value) else format(value, form)
