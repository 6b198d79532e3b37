"""Evaluate a saved federation: ``fedgh-evaluate checkpoint=<run directory or .ckpt file>``."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from omegaconf import DictConfig

from fedgh import config
from fedgh.config.entry import launch
from fedgh.federation.evaluation import cells_of, evaluate
from fedgh.federation.round import to_device
from fedgh.storage import checkpoint as checkpoints
from fedgh.storage.portable import to_home


def main() -> None:
    """Entry point of ``fedgh-evaluate``."""
    launch(run, "evaluate")


def run(cfg: DictConfig) -> float:
    """Print and write the global and per-client results of a checkpoint; return the main global score."""
    words, asked = config.typed_words(cfg), cfg
    cfg = config.resolve(cfg)
    stored, saved, path = config.reopen(Path(str(cfg.checkpoint)), cfg.trust)
    stored.trainer.accelerator = "auto"  # a run that trained on a GPU can be evaluated without one
    stored = config.apply_where(stored, asked, words)
    config.validate(stored)
    federation = config.build_federation(stored)
    layout = checkpoints.layout_of(federation.model)
    checkpoints.check_fits(saved, path, layout, federation.dataset.fingerprint, federation.partition.hash)

    server = to_device(saved.server, federation.model.device)
    batch_size = stored.evaluation.batch_size
    evaluation = evaluate(federation.model, server, federation.dataset, batch_size, federation.metrics)
    cells, main = cells_of(federation.dataset, federation.partition), evaluation.main
    metrics = evaluation.metrics(cells)
    scores = cells.client_scores(evaluation.scores[main]).tolist()
    sizes = federation.partition.sizes.tolist()

    output_dir = Path(cfg.paths.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    content = {"checkpoint": to_home(str(path)), **metrics}
    (output_dir / "evaluation.json").write_text(json.dumps(content, indent=2) + "\n")
    with (output_dir / "clients.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["client", "num_examples", main])
        writer.writerows(zip(range(len(sizes)), sizes, scores, strict=True))
    lines = [f"{path} after round {server.round_index}", *(f"{k:24s} {v:.4f}" for k, v in metrics.items()), ""]
    where = "its own label distribution" if federation.partition.test_indices is None else "its own test examples"
    lines += [f"client  examples  {'accuracy' if main == 'acc' else main} on {where}"]
    lines += [f"{k:6d}  {n:8d}  {score:.4f}" for k, (n, score) in enumerate(zip(sizes, scores, strict=True))]
    sys.stdout.write("\n".join([*lines, f"written to {output_dir}", ""]))
    return evaluation.value


if __name__ == "__main__":
    main()
