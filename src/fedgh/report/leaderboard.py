"""Finished runs of ``experiment=leaderboard/...`` as the rows of one table that others add theirs to.

A row is a way to train (algorithm, rule, both rates) in a setting, over seeds. It holds all that the page is made from,
so that a stored table stands for runs that are not at hand. Accuracies are shares.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedgh.core.command import command
from fedgh.core.configs import CONFIG_DIR
from fedgh.core.errors import DataError
from fedgh.report.compare import Score
from fedgh.report.cost import hardware, seconds
from fedgh.report.groups import BUDGET, short
from fedgh.report.seeds import Line
from fedgh.storage.run import LOADER, Run, flatten

TAG = "leaderboard"
LAST = 10
"""Rounds at the end that the main figure is the mean of."""
LOCAL_RATE, SERVER_RATE = "algorithm.optimizer.lr", "server_optimizer.lr"
RATES = (LOCAL_RATE, SERVER_RATE)
HELD_OUT = "dataset.validation_fraction"
FEDERATION = ("dataset.", "partition.", "model.", "sampler.")


@dataclass(frozen=True)
class Row:
    """A way to train in a setting, over seeds.

    Attributes:
        setting: Name of the experiment, and what was typed beside it: ``encoded_cifar10 partition.alpha=0.3``.
        algorithm: As it is typed, with settings of its own that are not the default: ``fedprox mu=0.1``.
        rule: Likewise: ``fedgh rescale=fedavg_norm``; a server optimizer other than SGD is part of it.
        client_lr: Local rate.
        server_lr: Server rate.
        scores: Main figure by seed: mean test accuracy of the last ten evaluated rounds.
        final: Test accuracy after the last round, mean over seeds; so are all numbers below.
        worst: Accuracy of the worst client on data of its own label mix, mean of the last ten rounds.
        spread: Standard deviation over clients of that accuracy, likewise.
        bytes_per_round: To clients and back, all together.
        conflict_before: Share of pairs of clients whose updates have a negative cosine, mean over the rounds.
        conflict_after: The same of the updates as the rule bent them; NaN where a rule bends none.
        seconds: Training, aggregation and evaluation of a run.
        curve: Test accuracy after each evaluated round.
        rounds: Which rounds these are.
        federation: Short hash of data, partition, model and budget; rows of a setting have the same.
        commits: Of the runs.
        hardware: They ran on.
    """

    setting: str
    algorithm: str
    rule: str
    client_lr: float
    server_lr: float
    scores: Mapping[int, float]
    final: float
    worst: float
    spread: float
    bytes_per_round: float
    conflict_before: float
    conflict_after: float
    seconds: float
    rounds: Sequence[int]
    curve: Sequence[float]
    federation: str
    commits: str
    hardware: str

    @property
    def key(self) -> tuple[str, str, str, float, float]:
        """What tells rows apart."""
        return self.setting, self.algorithm, self.rule, self.client_lr, self.server_lr

    @property
    def score(self) -> Score:
        """The main figure over seeds."""
        return Score.of(self.scores.values())


def rows_of(runs: Sequence[Run]) -> tuple[list[Row], list[str]]:
    """Gather finished runs into rows.

    Returns:
        The rows, by setting; and, a sentence each, which runs are none of the leaderboard's, and why.
    """
    found: dict[tuple[Any, ...], list[Run]] = {}
    problems = []
    for run in runs:
        setting = setting_of(run)
        if setting is None:
            problems.append(f"{run.path} is no run of experiment=leaderboard/<setting> and is left out.")
        elif run.settings.get(HELD_OUT):
            problems.append(f"{run.path} held training data out, to tune rates, and is left out; rates=true reads it.")
        elif not _curve(run)[0]:
            problems.append(f"{run.path} has no test accuracy in its metrics.csv and is left out.")
        else:
            found.setdefault((setting, *_way(run)), []).append(run)
    return [_row(key, of) for key, of in sorted(found.items())], problems


def setting_of(run: Run, but: Sequence[str] = ()) -> str | None:
    """Return the name of a run's setting, with what differs from its yaml; None for a run of something else."""
    tags = run.settings.get("tags") or []
    name = next((tag for tag in tags if tag != TAG), None) if TAG in tags else None
    if name is None or not (CONFIG_DIR / "experiment" / TAG / f"{name}.yaml").is_file():
        return None
    other = [
        f"{key}={run.settings.get(key)}"
        for key, value in _experiment(str(name)).items()
        if key not in but and key not in RATES and not _same(value, run.settings.get(key))
    ]
    return " ".join([str(name), *other])


def merge(stored: Iterable[Row], own: Iterable[Row]) -> tuple[list[Row], list[str]]:
    """Put rows of one's own among stored ones.

    Returns:
        All rows, by setting; and a sentence for each that replaces a stored one or ran in another federation than it.
    """
    rows, problems = {row.key: row for row in stored}, []
    federations = {row.setting: row.federation for row in rows.values()}
    for row in own:
        if row.key in rows:
            problems.append(f"{label_of(row)} on {row.setting}: the runs given take the place of the stored row.")
        if federations.setdefault(row.setting, row.federation) != row.federation:
            problems.append(
                f"{label_of(row)} ran {row.setting} on other data, another partition or model than the stored rows; "
                "the comparison is not fair. Compare their config.yaml: dataset.source, for instance."
            )
        rows[row.key] = row
    return sorted(rows.values(), key=lambda row: row.key), problems


def label_of(row: Row) -> str:
    """Return what a row is called where its rates need not be said: the rule, with an algorithm other than FedAvg."""
    return row.rule if row.algorithm == "fedavg" else f"{row.algorithm} + {row.rule}"


def labels(rows: Sequence[Row]) -> list[str]:
    """Name rows of one setting, with their rates where otherwise two would be called the same."""
    names = [label_of(row) for row in rows]
    rates = [f"lr {row.client_lr:g}, server {row.server_lr:g}" for row in rows]
    return [f"{n}, {rate}" if names.count(n) > 1 else n for n, rate in zip(names, rates, strict=True)]


def lines_of(rows: Iterable[Row]) -> list[Line]:
    """Return ``leaderboard.csv``, a line a row."""
    lines = []
    for row in rows:
        line: Line = {f.name: getattr(row, f.name) for f in fields(Row)}
        score = row.score
        told = {
            "seeds": score.seeds,
            "mean": round(score.mean, 6),
            "sd": round(score.sd, 6) if score.seeds > 1 else nan,
        }
        line["scores"] = " ".join(f"{seed}={value:.6g}" for seed, value in sorted(row.scores.items()))
        line["rounds"] = " ".join(map(str, row.rounds))
        line["curve"] = " ".join(f"{value:.4g}" for value in row.curve)
        numbers = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in line.items()}
        head = ("setting", "algorithm", "rule", "client_lr", "server_lr")
        lines.append({k: numbers[k] for k in head} | told | {k: v for k, v in numbers.items() if k not in head})
    return lines


def read_rows(path: Path) -> list[Row]:
    """Read ``leaderboard.csv``.

    Raises:
        DataError: If it is not there or is another table.
    """
    if not path.is_file():
        raise DataError(f"add={path} does not exist; expected a leaderboard.csv, as fedgh-leaderboard writes it")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_read(line) for line in csv.DictReader(file)]
    except (KeyError, ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise DataError(
            f"add={path} is no leaderboard.csv ({error!r}); expected one that fedgh-leaderboard has written"
        ) from error


def _read(line: Mapping[str, str]) -> Row:
    values: dict[str, Any] = {}
    for f in fields(Row):
        text = line[f.name]
        if f.name == "scores":
            pairs = (word.split("=") for word in text.split())
            values[f.name] = {int(seed): float(value) for seed, value in pairs}
        elif f.name in ("rounds", "curve"):
            values[f.name] = [(int if f.name == "rounds" else float)(word) for word in text.split()]
        else:
            values[f.name] = (float(text) if text else nan) if f.type == "float" else text
    return Row(**values)


def _row(key: tuple[Any, ...], runs: Sequence[Run]) -> Row:
    curves = [_curve(run) for run in runs]
    rounds = sorted(set.intersection(*(set(numbers) for numbers, _ in curves)))
    values = [[of[numbers.index(number)] for number in rounds] for numbers, of in curves]

    def mean(of: Iterable[float]) -> float:
        return Score.of(of).mean

    def last(run: Run, metric: str) -> float:
        return mean([row[metric] for row in run.rows if metric in row][-LAST:])

    def all_rounds(run: Run, *metrics: str) -> float:
        return mean(sum(row[metric] for metric in metrics) for row in run.rows if metrics[0] in row)

    setting, algorithm, rule, client_lr, server_lr = key
    return Row(
        setting,
        algorithm,
        rule,
        client_lr,
        server_lr,
        scores={run.seed: float(np.mean(curve[-LAST:])) for run, (_, curve) in zip(runs, curves, strict=True)},
        final=mean(curve[-1] for _, curve in curves),
        worst=mean(last(run, "client/test/acc_worst") for run in runs),
        spread=mean(last(run, "client/test/acc_std") for run in runs),
        bytes_per_round=mean(all_rounds(run, "federation/bytes_down", "federation/bytes_up") for run in runs),
        conflict_before=mean(all_rounds(run, "conflict/ratio") for run in runs),
        conflict_after=mean(all_rounds(run, "harmonization/conflict_ratio") for run in runs),
        seconds=mean(map(_seconds, runs)),
        rounds=rounds,
        curve=np.mean(values, axis=0).tolist(),
        federation=_federation(runs[0]),
        commits=" ".join(dict.fromkeys(str(run.provenance.get("commit", "unknown")) for run in runs)),
        hardware="; ".join(dict.fromkeys(map(hardware, runs))),
    )


def _seconds(run: Run) -> float:
    known = [spent for what in ("train", "aggregate", "evaluate") if not isnan(spent := seconds(run, what))]
    return sum(known) if known else nan


def _curve(run: Run) -> tuple[list[int], list[float]]:
    """Return the evaluated rounds and the test accuracy after each."""
    rows = [row for row in run.rows if "global/test/acc" in row]
    return [int(row["round"]) for row in rows], [row["global/test/acc"] for row in rows]


def _way(run: Run) -> tuple[str, str, float, float]:
    """Return algorithm, rule and both rates."""
    server = said(run.settings, "server_optimizer", but=("lr",))
    rule = said(run.settings, "aggregator") + ("" if server == "sgd" else f", server {server}")
    client, server_lr = (float(run.settings.get(key, nan)) for key in RATES)
    algorithm = said(run.settings, "algorithm", but=("local_epochs", "batch_size", "optimizer."))
    return algorithm, rule, client, server_lr


def said(settings: Mapping[str, Any], group: str, but: tuple[str, ...] = (), within: str = "") -> str:
    """Return a part as it is typed: its choice, and its settings that are not those of its yaml.

    Args:
        settings: Of a run, flat.
        group: Config group of the part.
        but: Settings that are told elsewhere, by how they begin.
        within: Prefix of the part, if it is inside another one.
    """
    prefix = within or f"{group}."
    choice = str(settings[f"{prefix}_target_"]).rsplit(".", 2)[-2]
    defaults, words = _defaults(group, choice), [choice]
    for key, value in settings.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name.startswith(("_", *but)):
            continue
        inner, _, rest = name.partition(".")
        if rest == "_target_":
            words.append(f"{inner}={short(value) if '.optim.' in str(value) else str(value).rsplit('.', 2)[-2]}")
        elif f"{prefix}{inner}._target_" not in settings and not _same(defaults.get(name), value):
            words.append(f"{name}={value}")
    return " ".join([choice, *sorted(words[1:])])


@cache
def _defaults(group: str, choice: str) -> Mapping[str, Any]:
    """Return the settings of a choice of ours, with those of the choices that it builds on; nothing of others'."""
    path = CONFIG_DIR / group / f"{choice}.yaml"
    if not path.is_file():
        return {}
    tree = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER) or {}
    under = [name for name in tree.pop("defaults", []) if isinstance(name, str) and name != "_self_"]
    return {key: value for name in under for key, value in _defaults(group, name).items()} | flatten(tree)


@cache
def _experiment(name: str) -> Mapping[str, Any]:
    """Return what the yaml of a setting fixes, flat."""
    tree = yaml.load((CONFIG_DIR / "experiment" / TAG / f"{name}.yaml").read_text(encoding="utf-8"), Loader=LOADER)
    tree.pop("defaults")
    tree.pop("tags")
    return {key: value for key, value in flatten(tree).items() if key != "dataset.encoder"}


def _same(ours: Any, theirs: Any) -> bool:
    """Compare settings as values: 1 and 1.0, ``.inf`` and ``inf`` alike."""
    return bool(ours == theirs) or str(ours) == str(theirs)


def _federation(run: Run) -> str:
    kept = {
        key: value
        for key, value in run.outcome().items()
        if key.startswith((*FEDERATION, *BUDGET, "num_rounds")) and not key.startswith((*RATES, "dataset.encoder"))
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:8]


def choose_rates(runs: Sequence[Run]) -> tuple[list[Line], list[str], list[str]]:
    """Choose the rates of every rule by what the runs held out of their training data.

    Args:
        runs: Of ``experiment=leaderboard/...`` with ``dataset.validation_fraction``, over a grid of rates and seeds.

    Returns:
        A line a rule: its best rates by the mean over seeds of the last ten rounds' validation accuracy; commands that
        evaluate them, a line each; and problems, a sentence each.

    Raises:
        DataError: If no run held anything out.
    """
    found: dict[tuple[str, str, str], dict[tuple[float, float], list[Run]]] = {}
    for run in runs:
        setting = setting_of(run, but=(HELD_OUT,))
        if setting is not None and "last10/val_acc_mean" in run.summary:
            algorithm, rule, client, server = _way(run)
            found.setdefault((setting, algorithm, rule), {}).setdefault((client, server), []).append(run)
    if not found:
        raise DataError(
            "none of these runs held training data out of a setting of the leaderboard; tune by fedgh-train -m "
            "experiment=leaderboard/<setting> dataset.validation_fraction=0.1 seed=1,2,3 "
            f"{LOCAL_RATE}=0.1,0.2,0.3,0.5 {SERVER_RATE}=0.75,1,1.5,2"
        )
    lines, commands, problems = [], [], []
    for (setting, algorithm, rule), grid in sorted(found.items()):
        name = f"{algorithm} + {rule} on {setting}"
        if len({frozenset(run.seed for run in of) for of in grid.values()}) > 1:
            problems.append(f"{name}: not all rates were tried with the same seeds.")
        scores = {rates: Score.of(run.summary["last10/val_acc_mean"] for run in of) for rates, of in grid.items()}
        best = max(sorted(scores), key=lambda rates: scores[rates].mean)
        edges = [
            what
            for place, what in enumerate(("local", "server"))
            if len(tried := {rates[place] for rates in grid}) > 1 and best[place] in (min(tried), max(tried))
        ]
        lines.append(
            {"setting": setting, "algorithm": algorithm, "rule": rule, "client_lr": best[0], "server_lr": best[1]}
            | {"validation_mean": scores[best].mean, "validation_sd": scores[best].sd, "seeds": scores[best].seeds}
            | {"rates_tried": len(grid), "at_the_edge_of": " ".join(edges)}
        )
        commands.append(_evaluation(grid[best][0], best))
    if len({len(grid) for grid in found.values()}) > 1:
        problems.append("The rules were not tuned equally: the number of rates tried differs, see rates_tried.")
    return lines, commands, problems


def _evaluation(run: Run, rates: tuple[float, float]) -> str:
    """Return the command that evaluates tuned rates: what was typed, without what belongs to the tuning."""
    words = shlex.split(str(run.provenance.get("command", "")))[1:]
    dropped = ("-", *RATES, HELD_OUT, "seed=", "hydra.", "sweep.", "resume=")
    kept = [_own(word, run) for word in words if not word.startswith(dropped)]
    chosen = [f"{key}={rate:g}" for key, rate in zip(RATES, rates, strict=True)]
    return command("fedgh-train", "-m", *kept, *chosen) + ' seed="$SEEDS" "$@"'


def _own(word: str, run: Run) -> str:
    """Return which of the values that a sweep went through, ``aggregator=mean,fedgh``, is this run's."""
    key, _, value = word.partition("=")
    if "," not in value or value.startswith(("[", "{", '"', "'")):
        return word
    target = run.settings.get(f"{key}._target_")
    own = run.settings.get(key) if target is None else str(target).rsplit(".", 2)[-2]
    return f"{key}={own}"
