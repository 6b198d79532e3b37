"""Runs in groups that differ in their seed only, each named by its method and by the federation it ran in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedgh.plot.style import COLOURS, DASHES, style_of
from fedgh.storage.run import Run

NAMING = ("algorithm._target_", "aggregator._target_")
METHOD = ("algorithm.", "aggregator.", "server_optimizer.")
BUDGET = ("algorithm.local_epochs", "algorithm.batch_size", "algorithm.optimizer.")
"""Settings of the algorithm that belong to the federation: methods are compared where they agree."""

WORDS = {
    "partition.num_clients": "{:g} clients",
    "partition.alpha": "α {:g}",
    "sampler.fraction": "{:.0%} of clients a round",
    "algorithm.local_epochs": "{:g} local epochs",
    "num_rounds": "{:g} rounds",
}
"""How settings are said; the others go by their name."""
NAMES = {
    "digits": "handwritten digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny_imagenet": "Tiny-ImageNet",
    "Classes": "by class",
    "Clipped": "clipped updates",
    "FedExP": "extrapolated",
    "Matched": "matched mean",
    "DirichletGuarded": "guarded Dirichlet",
    "TrimmedMean": "trimmed mean",
    "Median": "median",
    "GeometricMedian": "geometric median",
    "FedMGDAPlus": "FedMGDA+",
    "AlignedMTL": "Aligned-MTL",
    "NashMTL": "Nash-MTL",
    "IMTLG": "IMTL-G",
}
"""Names of data sets and parts where their own are no reader's."""
SAID = {("aggregator.by", "gain"): "by coefficient sum", ("aggregator.by", "norm"): "by length"}
"""Values that do not explain themselves: what the matched mean has in common with the other rule."""


@dataclass(frozen=True, eq=False)
class Group:
    """Runs alike but for their seed.

    Attributes:
        method: Index into :attr:`Groups.methods`.
        federation: Index into :attr:`Groups.federations`.
        finished: Those that ran all rounds.
        unfinished: The others.
        aggregator: Name of the rule's class.
        settings: What sets this group apart from others, as the config has it.
    """

    method: int
    federation: int
    finished: Sequence[Run]
    unfinished: Sequence[Run]
    aggregator: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Groups:
    """All groups.

    Attributes:
        methods: Algorithm, aggregator unless it is the plain mean, and the values of theirs that differ:
            ``FedProx + FedGH, mu 0.1``.
        federations: What else sets the runs apart: ``CIFAR-10, α 0.1``.
        styles: Per method a colour, and an index into the dashes.
        members: Sorted by federation, then method.
        datasets: Names.
    """

    methods: Sequence[str]
    federations: Sequence[str]
    styles: Sequence[tuple[str, int]]
    members: Sequence[Group]
    datasets: Sequence[str]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Groups:
        """Group some runs, of which there is at least one."""
        keys = differing(runs)
        keys += ["partition.alpha"] * ("partition._target_" in keys and "partition.alpha" not in keys)
        of_method = [key for key in keys if key.startswith(METHOD) and not key.startswith(BUDGET)]
        told = telling(runs, [key for key in keys if key not in of_method])
        parameters = telling(runs, [key for key in of_method if key not in NAMING])
        names_of = [_names_of({str(run.settings[key]) for run in runs}) for key in NAMING]

        def _method(run: Run) -> tuple[Any, ...]:
            parts = (names[str(run.settings[key])] for names, key in zip(names_of, NAMING, strict=True))
            return (*parts, *_values(run, parameters))

        methods = _sorted({_method(run) for run in runs})
        federations = _sorted({_values(run, told) for run in runs})
        found: dict[tuple[int, int], list[Run]] = {}
        for run in sorted(runs, key=lambda run: run.seed):
            place = federations.index(_values(run, told)), methods.index(_method(run))
            found.setdefault(place, []).append(run)
        members = [
            Group(
                *(method, federation),
                *([run for run in alike if run.finished], [run for run in alike if not run.finished]),
                str(methods[method][1]),
                {key: short(alike[0].settings.get(key)) for key in keys},
            )
            for (federation, method), alike in sorted(found.items(), key=lambda item: item[0])
        ]
        datasets = list(dict.fromkeys(_dataset(str(run.settings.get("dataset._target_", "unknown"))) for run in runs))
        names = [", ".join(_say(k, v) for k, v in zip(told, values, strict=True) if v != "") for values in federations]
        labels = [_label(method, parameters) for method in methods]
        brief = [_label(method, parameters, ("", "none")) for method in methods]
        labels = brief if len(set(brief)) == len(brief) else labels
        return cls(labels, [name or datasets[0] for name in names], _styles(methods), members, datasets)

    def name(self, group: Group) -> str:
        """Return the method of a group, and its federation where there are several."""
        federation = f", {self.federations[group.federation]}" * (len(self.federations) > 1)
        return f"{self.methods[group.method]}{federation}"


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the settings that take more than one value over the runs that have them, but for those without effect.

    A setting of nothing (``null``) is a value; one that a run does not have, since its parts know none such, is not.
    """
    values: dict[str, set[str]] = {}
    for run in runs:
        for key, value in [*run.outcome().items(), *((key, None) for key in run.left_empty())]:
            values.setdefault(key, set()).add(repr(value))
    return [key for key, taken in values.items() if len(taken) > 1]


def short(value: Any) -> Any:
    """Return the last part of an import path, a list as text, and anything else as it is."""
    if isinstance(value, list):
        return str(value)
    return value.rsplit(".", 1)[1] if isinstance(value, str) and value.startswith("fedgh.") else value


def telling(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """Leave out settings without which the same runs are told apart; parts stay rather than details of theirs."""
    kept = sorted(keys, key=lambda key: (key not in WORDS, "_target_" not in key, key.count("."), keys.index(key)))
    for key in kept[::-1]:
        rest = [other for other in kept if other != key]
        if len({_values(run, rest) for run in runs}) == len({_values(run, kept) for run in runs}):
            kept = rest
    return kept


def _values(run: Run, keys: Sequence[str]) -> tuple[Any, ...]:
    """Return settings, comparable; a split without alpha goes by its name, what else a run lacks is empty."""
    values = [run.settings.get(key) for key in keys]
    if "partition.alpha" in keys and values[keys.index("partition.alpha")] is None:
        values[keys.index("partition.alpha")] = short(run.settings.get("partition._target_"))
    return tuple("" if v is None else str(v) if isinstance(v, list | bool) else v for v in values)


def _names_of(targets: set[str]) -> dict[str, str]:
    """Name classes by their last part, and by module, too, where two would be called the same."""
    taken = Counter(str(short(target)) for target in targets)
    return {
        target: str(short(target)) if taken[str(short(target))] == 1 else target.removeprefix("fedgh.")
        for target in targets
    }


def _sorted(found: set[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Sort tuples of numbers and words; FedAvg and the plain mean, which others are compared with, come first."""
    return sorted(
        found,
        key=lambda values: [
            (isinstance(v, str), (v not in ("FedAvg", "Mean"), v) if isinstance(v, str) else v) for v in values
        ],
    )


def _label(method: tuple[Any, ...], parameters: Sequence[str], unsaid: Sequence[str] = ("",)) -> str:
    algorithm, rule = (NAMES.get(str(name), str(name)) for name in method[:2])
    said = [_say(key, value) for key, value in zip(parameters, method[2:], strict=True) if value not in unsaid]
    return ", ".join([algorithm if rule == "Mean" else f"{algorithm} + {rule}", *said])


def _say(key: str, value: Any) -> str:
    """Return a part by its name, a value with the name of its setting."""
    number = isinstance(value, int | float)
    if key == "dataset._target_":
        return _dataset(str(value))
    if key.endswith("_target_") or (key == "partition.alpha" and not number):
        server = "server " * (key == "server_optimizer._target_")
        return server + NAMES.get(str(short(value)), str(short(value)))
    if (key, value) in SAID:
        return SAID[key, value]
    if key in WORDS and number:
        return WORDS[key].format(value)
    group, _, rest = key.partition(".")
    name = f"server {rest}" if group == "server_optimizer" else rest or group
    return f"{name.replace('.', ' ').replace('_', ' ')} {format(value, 'g') if number else value}"


def _dataset(target: str) -> str:
    module = target.removeprefix("fedgh.dataset.").partition(".")[0]
    return NAMES.get(module, module)


def _styles(methods: Sequence[tuple[Any, ...]]) -> list[tuple[str, int]]:
    """Give every method a colour; where they are too many, every algorithm one, and a dash to its rules."""
    algorithms = list(dict.fromkeys(method[:1] + method[2:] for method in methods))
    rules = list(dict.fromkeys(method[1] for method in methods))[::-1]  # the mean, which comes first, is dashed
    many = len(methods) > len(COLOURS)
    if many and len(algorithms) <= len(COLOURS) and len(rules) <= len(DASHES):
        return [(COLOURS[algorithms.index(m[:1] + m[2:])], rules.index(m[1])) for m in methods]
    return [style_of(index) for index in range(len(methods))]
