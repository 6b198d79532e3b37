"""Evaluate a saved federation: ``fedgh-evaluate checkpoint=<run directory or .ckpt file>``."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import torch
from omegaconf import DictConfig

from fedgh import config
from fedgh.config.entry import launch
from fedgh.federation.evaluation import evaluate
from fedgh.federation.round import to_device
from fedgh.metric.summary import client_accuracy
from fedgh.storage import checkpoint as checkpoints


def main() -> None:
    """Entry point of ``fedgh-evaluate``."""
    launch(run, "evaluate")


def run(cfg: DictConfig) -> float:
    """Print and write the global and per-client results of a checkpoint; return the global accuracy."""
    cfg = config.resolve(cfg)
    path = Path(cfg.checkpoint)
    saved, path = checkpoints.load_newest(path / "checkpoints") if path.is_dir() else (checkpoints.load(path), path)
    stored = config.parse(saved.config)
    stored.trainer.accelerator = "auto"  # a run that trained on a GPU can be evaluated without one
    config.validate(stored)
    federation = config.build_federation(stored)
    layout = checkpoints.layout_of(federation.model)
    checkpoints.check_fits(saved, path, layout, federation.dataset.fingerprint, federation.partition.hash)

    server = to_device(saved.server, federation.model.device)
    evaluation = evaluate(federation.model, server, federation.dataset, stored.evaluation.batch_size)
    counts = torch.from_numpy(federation.partition.class_counts)
    metrics = evaluation.metrics(counts)
    accuracies = client_accuracy(evaluation.class_accuracy, counts).tolist()

    output_dir = Path(cfg.paths.output_dir)
    (output_dir / "evaluation.json").write_text(json.dumps({"checkpoint": str(path), **metrics}, indent=2) + "\n")
    with (output_dir / "clients.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["client", "num_examples", "acc"])
        writer.writerows(zip(range(len(counts)), counts.sum(1).tolist(), accuracies, strict=True))
    lines = [f"{path} after round {server.round_index}", *(f"{k:24s} {v:.4f}" for k, v in metrics.items()), ""]
    lines += ["client  examples  accuracy on its own label distribution"]
    lines += [f"{k:6d}  {int(n):8d}  {a:.4f}" for k, (n, a) in enumerate(zip(counts.sum(1), accuracies, strict=True))]
    sys.stdout.write("\n".join([*lines, f"written to {output_dir}", ""]))
    return metrics["global/test/acc"]


if __name__ == "__main__":
    main()
