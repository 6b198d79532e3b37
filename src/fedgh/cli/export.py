"""A trained model to take away: ``fedgh-export run=<run directory> format=safetensors|torch|onnx``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from omegaconf import DictConfig

from fedgh import config
from fedgh.config.entry import launch
from fedgh.core.errors import ConfigurationError
from fedgh.export.files import FORMS, write_model
from fedgh.export.model import trained_model
from fedgh.storage import checkpoint as checkpoints


def main() -> None:
    """Entry point of ``fedgh-export``."""
    launch(run, "export")


def run(cfg: DictConfig) -> None:
    """Write the model of a run, what one must know to use it, and a card; print where they are and how to load them.

    Raises:
        CheckpointError: If there is no such run.
        ConfigurationError: If there is no such model or format, or the network does not fit the format.
    """
    cfg = config.resolve(cfg)
    if cfg.format not in FORMS:
        raise ConfigurationError(f"format must be one of {', '.join(FORMS)}, got {cfg.format!r}")
    named = Path(str(cfg.run))
    model = trained_model(named, client=cfg.client, index=cfg.index, trust=cfg.trust)
    summary = checkpoints.run_of(named) / "summary.json"
    scores = json.loads(summary.read_text()) if summary.is_file() and cfg.client is None else {}
    closing = {
        key.replace("/", " "): value for key, value in scores.items() if key.startswith(("final/", "completed/"))
    }
    paths = write_model(model, Path(cfg.paths.output_dir), cfg.format, closing)
    sys.stdout.write("".join(f"{path}\n" for path in paths))


if __name__ == "__main__":
    main()
