"""Rules compared with enough seeds: ``fedgh-leaderboard runs=<folder>``, beside stored rows by ``add=<csv>``."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from fedgh import config
from fedgh.config.entry import launch
from fedgh.core.errors import ConfigurationError
from fedgh.report.leaderboard import choose_rates, merge, read_rows, rows_of
from fedgh.report.leaderboard_page import write_leaderboard
from fedgh.report.runs import gather
from fedgh.report.seeds import write_csv
from fedgh.storage.run import Run

SCRIPT = """#!/bin/sh
# Written by fedgh-leaderboard rates=true: every rule at the rates chosen for it on held-out training data, rates.csv.
# SEEDS=101,102 sh evaluate.sh <what goes to every fedgh-train>; seeds must be others than those of the tuning.
set -e
SEEDS=${{SEEDS:-101,102,103,104,105,106,107,108,109,110}}
{commands}
"""


def main() -> None:
    """Entry point of ``fedgh-leaderboard``."""
    launch(run, "leaderboard")


def run(cfg: DictConfig) -> None:
    """Write table and page of the runs, or the rates that tuning runs choose.

    Raises:
        ConfigurationError: If neither runs nor a stored table are given, or what is given does not go together.
        DataError: If there is no run, or the stored table cannot be read.
    """
    cfg = config.resolve(cfg)
    if not isinstance(cfg.rates, bool):
        raise ConfigurationError(f"rates must be true or false, got {cfg.rates!r}")
    if cfg.runs is None and (cfg.add is None or cfg.rates):
        raise ConfigurationError(
            "fedgh-leaderboard needs runs=<folder or list of folders> of experiment=leaderboard/<setting>; beside "
            "stored rows: add=<leaderboard.csv>; to choose rates from a tuning sweep: rates=true"
        )
    folder = Path(cfg.paths.output_dir)
    sources = [] if cfg.runs is None else list(cfg.runs) if isinstance(cfg.runs, ListConfig) else [cfg.runs]
    runs, problems = gather(Path(str(source)) for source in sources) if sources else ([], [])
    if cfg.rates:
        _choose(runs, problems, folder)
        return
    rows, notes = rows_of(runs)
    stored = [] if cfg.add is None else read_rows(Path(str(cfg.add)))
    rows, more = merge(stored, rows)
    problems += [*notes, *more]
    if not rows:
        raise ConfigurationError("none of these runs is of experiment=leaderboard/<setting>:\n" + "\n".join(problems))
    sys.stdout.write(f"{write_leaderboard(rows, folder, problems)}\nwritten to {folder}\n")


def _choose(runs: list[Run], problems: list[str], folder: Path) -> None:
    """Write ``rates.csv`` and ``evaluate.sh``."""
    lines, commands, more = choose_rates(runs)
    write_csv(lines, folder / "rates.csv")
    (folder / "evaluate.sh").write_text(SCRIPT.format(commands="\n".join(commands)), encoding="utf-8")
    for line in lines:
        edge = f", at the edge of the grid ({line['at_the_edge_of']})" * bool(line["at_the_edge_of"])
        sys.stdout.write(
            f"{line['setting']}: {line['algorithm']} + {line['rule']}: lr {line['client_lr']:g}, server "
            f"{line['server_lr']:g} ({line['validation_mean']:.2%} on held-out data, {line['seeds']} seeds){edge}\n"
        )
    sys.stderr.writelines(f"{problem}\n" for problem in [*problems, *more])
    sys.stdout.write(f"written to {folder / 'rates.csv'}\nevaluate   sh {folder / 'evaluate.sh'}\n")


if __name__ == "__main__":
    main()
