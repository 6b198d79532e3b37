"""The paper's experiments as data: which cells there are, and how each is asked of ``fedgh-train``.

A cell is one federation: a column (data set, split, clients), a row (algorithm), an aggregator, a seed, at the size of
a preset. ``tables.csv`` holds tables 1 to 4 with the published accuracies, ``figures.csv`` figures 2, 4 and 5,
``variants.yaml`` comparisons of ours, ``presets.yaml`` the sizes. Two cells with the same settings are one run.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_HERE = Path(__file__).parent
GROUPS = ("algorithm", "aggregator", "server_optimizer", "dataset", "partition", "model", "sampler")
"""The config groups that decide a run's numbers."""

Settings = Mapping[str, Any]
"""Flat: a choice per group (``{"algorithm": "fedprox"}``) and dotted values (``{"algorithm.mu": 0.1}``)."""

STANDARD: Settings = {
    "sampler": "uniform",
    "server_optimizer": "sgd",
    "server_optimizer.lr": 1.0,
    "algorithm.batch_size": 64,
    "algorithm.optimizer.lr": 0.01,
    "algorithm.optimizer.momentum": 0.9,
    "algorithm.optimizer.weight_decay": 0.0,  # the paper does not say
    "dataset.train_fraction": 1.0,
}
"""What every cell has unless it says otherwise; the defaults of ``fedgh-train``."""


def _augmented(**settings: Any) -> Settings:
    return {f"dataset.augmentation.{key}": value for key, value in {**settings, "auto_augment": True}.items()}


OF_CHOICE: Mapping[tuple[str, str], Settings] = {
    ("algorithm", "fedprox"): {"algorithm.mu": 0.1},
    ("algorithm", "feddecorr"): {"algorithm.beta": 0.1, "algorithm.normalize": False},
    ("aggregator", "fedgh"): {
        "aggregator.order": "random",
        "aggregator.sweeps": 1,
        "aggregator.scope": "model",
        "aggregator.min_norm_ratio": 0.0,
        "aggregator.rescale": "none",
    },
    ("partition", "dirichlet_guarded"): {"partition.min_size": 10},
    ("partition", "dirichlet"): {"partition.min_size": 1},
    ("model", "cnn2"): {"model.channels": [32, 64], "model.hidden": 128, "model.dropout": [0.25, 0.5]},
    ("dataset", "cifar10"): _augmented(crop_padding=4, flip=True),
    ("dataset", "cifar100"): _augmented(crop_padding=4, flip=True),
    ("dataset", "tiny_imagenet"): _augmented(crop_padding=0, flip=False),
}
"""What comes with a choice, likewise."""

EXPERIMENTS = ("cifar10", "cifar100", "tiny_imagenet")
"""Choices of ``experiment=`` that cells start from, named after the column's data set."""


@dataclass(frozen=True)
class Cell:
    """One federation, seen from one place of the paper (or from a variant).

    Attributes:
        place: ``table1`` to ``table4``, ``figure2``, ``figure4``, ``figure5``, or a variant's name.
        column: The paper's setting, such as ``cifar10_a0.1_k20``; the preset may make it smaller.
        row: The algorithm.
        aggregator: ``mean`` or ``fedgh``; in a variant the name of its arm.
        preset: ``paper``, ``quick`` or ``smoke``.
        seed: Of the run.
        settings: What makes the cell, complete but for the seed.
        published: Accuracy in percent, or None where the paper prints none.
    """

    place: str
    column: str
    row: str
    aggregator: str
    preset: str
    seed: int
    settings: Settings = field(hash=False)
    published: float | None = None

    @property
    def name(self) -> str:
        """What the run is, equal for equal settings: ``cifar10_a0.1_k10/fedprox+fedgh/seed1``; its directory."""
        return f"{setting_name(self.settings)}/{method_name(self.settings)}/seed{self.seed}"

    @property
    def overrides(self) -> list[str]:
        """The arguments of ``fedgh-train``, choices before values; what is usual is left out."""
        experiment = next(name for name in EXPERIMENTS if self.column.startswith(f"{name}_"))
        usual = {"dataset": experiment, "partition": "dirichlet_guarded", **_usual(self.settings)}
        asked = [(key, value) for key, value in self.settings.items() if usual.get(key) != value]
        choices_first = sorted(asked, key=lambda item: "." in item[0])
        return [f"experiment={experiment}", *(f"{k}={_as_argument(v)}" for k, v in choices_first), f"seed={self.seed}"]


def _usual(settings: Settings) -> dict[str, Any]:
    """Return what comes without saying with the choices of some settings."""
    chosen = [OF_CHOICE.get((group, settings.get(group, "")), {}) for group in GROUPS]
    return {**STANDARD, **{key: value for values in chosen for key, value in values.items()}}


def _as_argument(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


@cache
def presets() -> Mapping[str, Mapping[str, Any]]:
    """Return the content of ``presets.yaml``."""
    content: Mapping[str, Mapping[str, Any]] = yaml.safe_load((_HERE / "presets.yaml").read_text())
    return content


@cache
def variants() -> Mapping[str, Mapping[str, Any]]:
    """Return the content of ``variants.yaml``."""
    content: Mapping[str, Mapping[str, Any]] = yaml.safe_load((_HERE / "variants.yaml").read_text())
    return content


@cache
def places() -> tuple[str, ...]:
    """Return tables, figures and variants, in the order of the paper."""
    return tuple(dict.fromkeys([line["place"] for line in _lines()] + list(variants())))


@cache
def cells(preset: str = "paper", seeds: Sequence[int] = (1,)) -> tuple[Cell, ...]:
    """Return every cell of every place, in the order of the paper, seeds last.

    Args:
        preset: One of :func:`presets`.
        seeds: A tuple.
    """
    return tuple(
        Cell(place, column, row, name, preset, seed, at_preset(settings, preset, place), published)
        for place, column, row, name, settings, published in _published_size()
        for seed in seeds
    )


def cells_of(settings: Settings) -> tuple[Cell, ...]:
    """Return the cells that a run is, none, one, or several where tables share it.

    Args:
        settings: Its resolved config as flat keys, as :mod:`fedgh.report` reads it.
    """
    seed = int(settings.get("seed", 0))
    return tuple(cell for preset in presets() for cell in cells(preset, (seed,)) if _is(settings, cell.settings))


def cell_of(settings: Settings) -> Cell | None:
    """Return the first cell that a run is, or None; see :func:`cells_of`."""
    return next(iter(cells_of(settings)), None)


def _is(settings: Settings, wanted: Settings) -> bool:
    def found(key: str) -> Any:
        return str(settings.get(f"{key}._target_", "..")).split(".")[-2] if key in GROUPS else settings.get(key)

    return all(found(key) == value for key, value in wanted.items())


def setting_name(settings: Settings) -> str:
    """Return the name of a column, or of what a preset made of it: ``cifar100_a0.1_k50_c0.2_e1``."""
    split = settings["partition"]
    if "partition.alpha" in settings:
        split = f"{'plain' if split == 'dirichlet' else 'a'}{settings['partition.alpha']:g}"
    parts = [settings["dataset"], split, f"k{settings['partition.num_clients']}"]
    if settings["sampler.fraction"] != 1:
        parts.append(f"c{settings['sampler.fraction']:g}")
    if settings["algorithm.local_epochs"] != 5:
        parts.append(f"e{settings['algorithm.local_epochs']}")
    return "_".join(parts)


def method_name(settings: Settings) -> str:
    """Return the name of a row with its aggregator, ``fedprox+fedgh``, and what is unusual about them."""
    names, usual = [], _usual(settings)
    for group in ("algorithm", "aggregator"):
        unusual = [
            f"_{key.rpartition('.')[2]}-{value}"
            for key, value in settings.items()
            if key.startswith(f"{group}.") and key != "algorithm.local_epochs" and usual.get(key) != value
        ]
        names.append(settings[group] + "".join(unusual))
    return "+".join(names)


def at_preset(settings: Settings, preset: str, place: str) -> Settings:
    """Return the settings of a cell at the size of a preset."""
    size = presets()[preset]
    changes = dict(size.get("values", {}))
    for group in ("dataset", "partition"):
        changes |= size.get(f"of_{group}", {}).get(changes.get(group, settings[group]), {})
    clients = size.get("clients", {})
    number = settings["partition.num_clients"]
    changes["partition.num_clients"] = clients.get(place, clients.get("", {})).get(number, number)
    return layered(settings, changes)


def layered(settings: Settings, changes: Settings) -> dict[str, Any]:
    """Return settings with changes on top; another choice of a group takes the values of the old one with it."""
    replaced = [group for group in GROUPS if group in changes and changes[group] != settings.get(group)]
    gone = {key for group in replaced for key in OF_CHOICE.get((group, settings.get(group, "")), {})}
    new = {key: value for group in replaced for key, value in OF_CHOICE.get((group, changes[group]), {}).items()}
    return {**{key: value for key, value in settings.items() if key not in gone}, **new, **changes}


@cache
def _published_size() -> tuple[tuple[str, str, str, str, Settings, float | None], ...]:
    """Return place, column, row, aggregator, settings and published accuracy of every cell."""
    found = [*_printed()]
    columns = {column: settings for _, column, _, _, settings, _ in reversed(found)}
    for place, variant in variants().items():
        for column in variant["columns"]:
            for row in variant["rows"]:
                for arm, changes in variant["arms"].items():
                    settings = layered(columns[column], {"algorithm": row, "aggregator": "mean"})
                    found.append((place, column, row, arm, layered(settings, changes), None))
    return tuple(found)


def _printed() -> Iterator[tuple[str, str, str, str, Settings, float | None]]:
    for line in _lines():
        aggregator = "fedgh" if line["with_fedgh"] == "true" else "mean"
        split, _, alpha = line["alpha_or_split"].partition(":")
        choices = {
            "dataset": line["dataset"],
            "model": line["model"],
            "partition": "dirichlet_guarded" if alpha else split,
            "algorithm": line["baseline"],
            "aggregator": aggregator,
        }
        values = {
            "partition.num_clients": int(line["K_total"]),
            **({"partition.alpha": float(alpha)} if alpha else {}),
            "sampler.fraction": float(line["C"]),
            "num_rounds": int(line["T"]),
            "algorithm.local_epochs": int(line["E"]),
        }
        settings = layered(STANDARD, {**choices, **values})
        published = float(line["accuracy"]) if line["accuracy"] else None
        yield line["place"], setting_name(settings), line["baseline"], aggregator, settings, published


@cache
def _lines() -> list[dict[str, str]]:
    lines: list[dict[str, str]] = []
    for name in ("tables.csv", "figures.csv"):
        with (_HERE / name).open(newline="") as file:
            lines += csv.DictReader(file)
    return lines
