"""Aggregate recorded updates again under another rule, without training: ``fedgh-replay recording=<run directory>``.

Several rules at once (``-m aggregator=mean,fedgh,...``) give one table, and the family at a glance: a picture a round.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fedgh import config
from fedgh.aggregator.base import Aggregator, State
from fedgh.config.entry import in_sweep, launch
from fedgh.core.errors import CheckpointError
from fedgh.core.updates import UpdateMatrix
from fedgh.federation.evaluation import evaluate
from fedgh.federation.round import Federation, to_device
from fedgh.plot.family import family_figure
from fedgh.plot.picture import save_png
from fedgh.recording.family import geometry, gram_to_csv
from fedgh.recording.updates import Recording, check_fits, find, hash_of, read

Line = dict[str, Any]

MOST_CLIENTS = 200
"""Clients up to which a round's Gram matrix is written as CSV; that of more takes megabytes."""


def main() -> None:
    """Entry point of ``fedgh-replay``."""
    launch(run, "replay")


def run(cfg: DictConfig) -> float:
    """Replay every round of a recording under one rule; print and write a table.

    Returns:
        Test accuracy under the rule, mean over the recorded rounds, for sweeps that search.
    """
    words, asked = config.typed_words(cfg), cfg
    cfg = config.resolve(cfg)
    rule: Aggregator = config.build(cfg.aggregator)
    paths = find(Path(str(cfg.recording)))
    recording = read(paths[0])
    stored = config.apply_where(stored_config(recording, paths[0], cfg.trust), asked, words)
    config.validate(stored)
    federation, batch_size = config.build_federation(stored), stored.evaluation.batch_size

    output_dir = Path(cfg.paths.output_dir)
    folder = Path(HydraConfig.get().sweep.dir) if in_sweep() else output_dir
    lines: list[Line] = []
    memory: State = {}
    for path in paths:
        recording = recording if path == paths[0] else read(path)
        check_fits(recording, path, federation.model, federation.dataset.fingerprint)
        stored = stored_config(recording, path, cfg.trust)
        if stored.aggregator == cfg.aggregator:  # the rule of the run goes on with what it remembered
            memory = dict(recording.before.aggregator)
        federation = replace(federation, server_optimizer=config.build(stored.server_optimizer))
        line, memory = replay(federation, rule, recording, memory, batch_size)
        lines.append({"round": recording.round, "rule": rule_name(cfg), **line})
        if len(recording.gram) <= MOST_CLIENTS:
            gram_to_csv(folder / f"gram_round_{recording.round:06d}.csv", recording.gram, recording.cohort)

    write_table(lines, output_dir / "replay.csv")
    table = gather(folder) if in_sweep() else lines
    pictures = draw(table, folder)
    sys.stdout.write(f"{text_of(table)}\nwritten to {folder / 'replay.csv'}\n")
    sys.stdout.writelines(f"drawn to {path}\n" for path in pictures)
    return sum(float(line["acc"]) for line in lines) / len(lines)


def stored_config(recording: Recording, path: Path, trust: Sequence[str]) -> DictConfig:
    """Return the config of the run that was recorded.

    Raises:
        CheckpointError: If the recording holds none.
        ConfigurationError: If it asks for parts that are not ours, see :func:`fedgh.config.parse`.
    """
    if not recording.config:
        raise CheckpointError(f"recording {path} holds no config; record the run again with fedgh-train")
    stored = config.parse(recording.config, trust)
    stored.callback = {}  # nothing is trained
    stored.resume = None
    return stored


def replay(
    federation: Federation, rule: Aggregator, recording: Recording, memory: State, batch_size: int
) -> tuple[Line, State]:
    """Aggregate one recorded round, take the server step, evaluate.

    Args:
        federation: Model, data set and server optimizer of the recording.
        rule: How to aggregate.
        recording: The round.
        memory: What the rule remembers from the round before; empty at first.
        batch_size: Test images per forward pass.

    Returns:
        ``acc`` and ``loss`` of the model after the round, what :func:`fedgh.recording.family.geometry` says of the
        update, and whether the parameters are, bit for bit, the run's (``same_as_run``); and the rule's new memory.
    """
    device = federation.model.device
    updates = UpdateMatrix(recording.updates.rows.to(device), recording.updates.blocks)
    before = to_device(recording.before, device)
    aggregate = rule(updates, recording.gram, recording.cohort, memory)
    params, _ = federation.server_optimizer_at(before.round_index).step(
        before.params, aggregate.update, before.optimizer
    )
    after = replace(before, params=params, buffers=recording.buffers.to(device), counters=recording.counters.to(device))
    evaluation = evaluate(federation.model, after, federation.dataset, batch_size)
    line = {
        evaluation.main: evaluation.value,
        "loss": evaluation.loss,
        **geometry(updates, recording.gram, recording.cohort.weights, aggregate),
        "same_as_run": "yes" if hash_of(params) == recording.params_hash else "no",
    }
    return line, aggregate.state


def rule_name(cfg: DictConfig) -> str:
    """Return the chosen ``aggregator=`` and the settings given to it, such as ``fedgh sweeps=2``."""
    if not HydraConfig.initialized():
        return str(cfg.aggregator["_target_"]).split(".")[-2]
    hydra = HydraConfig.get()
    words = config.as_typed(hydra.overrides.task)
    settings = [o.removeprefix("aggregator.") for o in words if o.startswith("aggregator.")]
    return " ".join([str(hydra.runtime.choices["aggregator"]), *settings])


def write_table(lines: Sequence[Line], path: Path) -> None:
    """Write lines of equal columns as CSV, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    with aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    aside.replace(path)


def gather(sweep_dir: Path) -> list[Line]:
    """Write the table of all jobs that have finished so far to the sweep's directory, and return it.

    Whoever writes last looks once more for tables that came meanwhile, so jobs side by side lose nothing.
    """
    written: list[Path] | None = None
    lines: list[Line] = []
    while written != (found := sorted(sweep_dir.glob("*/replay.csv"), key=_job)):
        written, lines = found, [line for path in found for line in read_table(path)]
        lines.sort(key=lambda line: int(line["round"]))  # stable: the jobs' order within a round
        write_table(lines, sweep_dir / "replay.csv")
    return lines


def draw(lines: Sequence[Line], folder: Path) -> list[Path]:
    """Draw the family at a glance, a picture for each round that was aggregated under several rules."""
    rounds: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        numbers = {key: float(value) for key, value in line.items() if key not in ("round", "rule", "same_as_run")}
        rounds.setdefault(int(line["round"]), []).append({"rule": line["rule"], **numbers})
    paths = []
    for number, rows in sorted(rounds.items()):
        if len(rows) > 1:
            paths.append(folder / f"family_round_{number:06d}.png")
            aside = paths[-1].with_suffix(f".{os.getpid()}.tmp")
            save_png(family_figure(rows), aside)
            aside.replace(paths[-1])
    return paths


def read_table(path: Path) -> list[Line]:
    """Read what :func:`write_table` wrote; every value is text."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def text_of(lines: Sequence[Line]) -> str:
    """Return the table for a terminal."""
    table = [list(lines[0]), *([_cell(key, value) for key, value in line.items()] for line in lines)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table)


def _cell(key: str, value: Any) -> str:
    if key in ("round", "rule", "same_as_run"):
        return str(value)
    return "-" if str(value) == "nan" else f"{float(value):.4f}"


def _job(path: Path) -> tuple[int, str]:
    name = path.parent.name
    return (int(name) if name.isdigit() else sys.maxsize, name)


if __name__ == "__main__":
    main()
