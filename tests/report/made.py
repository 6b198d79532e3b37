"""Runs that never ran: settings of a cell of the paper, numbers made up."""

import json

import numpy as np
from omegaconf import OmegaConf

from fedgh.paper.matrix import GROUPS, cells
from fedgh.storage.run import Run
from fedgh.storage.tables import write_rows
from fedgh.tracking.recorder import CsvTable

KNOWN = {"commit": "abc123", "device": "cpu", "cpu": "Abacus", "threads": 1, "command": "fedgh-train made=up"}


def cell(place, column, row="fedavg", aggregator="mean", preset="quick"):
    wanted = (place, column, row, aggregator)
    return next(c for c in cells(preset) if (c.place, c.column, c.row, c.aggregator) == wanted)


def settings_of(cell, seed=1, **more):
    """Return what a run of this cell has in its config, as flat keys."""
    targets = {f"{group}._target_": f"fedgh.{group}.{cell.settings[group]}.Part" for group in GROUPS}
    values = {key: value for key, value in cell.settings.items() if key not in GROUPS}
    if cell.settings["aggregator"] == "mean":
        targets["aggregator._target_"] = "fedgh.aggregator.mean.Mean"
    return {**targets, **values, "seed": seed, "name": "made up", **more}


def rows_of(accuracies, **more):
    return [
        {"round": number, "global/test/acc": accuracy, "global/test/loss": 1 - accuracy, **more}
        for number, accuracy in enumerate(accuracies, 1)
    ]


def make_run(tmp_path, cell, seed=1, accuracies=(0.25, 0.5), name=None, row=(), **more):
    """Return a finished run in memory; the last accuracy is its result."""
    settings = settings_of(cell, seed, **more)
    summary = {
        "rounds": settings["num_rounds"],
        "final/acc": accuracies[-1],
        "last10/acc_mean": sum(accuracies) / len(accuracies),
        "last10/acc_best": max(accuracies),
    }
    path = tmp_path / (name or f"{cell.name}-{cell.aggregator}".replace("/", "_") + f"_{seed}")
    return Run(path, settings, summary, KNOWN, rows_of(accuracies, **dict(row)))


def write_run(run):
    """Write a run's directory, as far as the report reads it."""
    run.path.mkdir(parents=True)
    nested = OmegaConf.create()
    for key, value in run.settings.items():
        OmegaConf.update(nested, key, value, force_add=True)
    OmegaConf.save(nested, run.path / "config.yaml")
    (run.path / "summary.json").write_text(json.dumps(run.summary))
    (run.path / "provenance.json").write_text(json.dumps(run.provenance))
    table = CsvTable(run.path / "metrics.csv")
    for row in run.rows:
        table.append(row)
    return run.path


def observe(path, cosines=((-0.5, 0.0, 0.5), (-0.25, -0.25, 0.75)), layers=("body", "head")):
    """Write the observatory's tables into a run's directory, as far as the dashboard reads them: a round a line."""
    for number, values in enumerate(cosines, 1):
        write_rows(path / "conflict" / "pairs", number, {"cosine": np.array(values)})
        shares = {"layer": list(layers), "ratio": [0.5] * len(layers), "cosine_mean": [0.0] * len(layers)}
        write_rows(path / "conflict" / "layers", number, shares)
