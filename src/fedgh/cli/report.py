"""Finished runs as tables, ``fedgh-report runs=<folder>``; one run as a page, ``fedgh-report run=<directory>``."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from fedgh import config
from fedgh.config.entry import launch
from fedgh.core.errors import ConfigurationError
from fedgh.report.page import write_page
from fedgh.report.runs import gather
from fedgh.report.write import write_report


def main() -> None:
    """Entry point of ``fedgh-report``."""
    launch(run, "report")


def run(cfg: DictConfig) -> None:
    """Write the tables over runs and print them, or write the page of one run.

    Raises:
        ConfigurationError: Unless exactly one of ``run`` and ``runs`` is given.
    """
    cfg = config.resolve(cfg)
    if (cfg.run is None) == (cfg.runs is None):
        raise ConfigurationError(
            "fedgh-report needs either run=<directory of one run>, for its page, or runs=<folder or list of folders>, "
            f"for tables over all finished runs below; got run={cfg.run} and runs={cfg.runs}"
        )
    output_dir = Path(cfg.paths.output_dir)
    if cfg.run is not None:
        sys.stdout.write(f"page of {cfg.run}\nwritten to {write_page(Path(str(cfg.run)), output_dir)}\n")
        return
    folders = list(cfg.runs) if isinstance(cfg.runs, ListConfig) else [cfg.runs]
    runs, problems = gather(Path(str(folder)) for folder in folders)
    text = write_report(runs, output_dir, problems)
    sys.stdout.write(f"{text}\nwritten to {output_dir}\n")


if __name__ == "__main__":
    main()
