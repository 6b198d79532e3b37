"""What runs cost: rounds, seconds, samples, hardware; and rounds until the baseline's final level is reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

from fedgh.report.compare import Score
from fedgh.storage.run import Run


def rounds_to_reach(run: Run, level: float) -> float:
    """Return the first round whose test accuracy, a share, is at least ``level``; NaN if none is."""
    return next((row["round"] for row in run.rows if row.get("global/test/acc", -1.0) >= level), nan)


def reach(runs: Mapping[int, Run], baseline: Mapping[int, Run]) -> Score:
    """Return how soon runs come to where the baseline of the same seed ended.

    Args:
        runs: By seed.
        baseline: Likewise.

    Returns:
        Rounds, over the seeds that came there; the others, and those without curves, are not counted.
    """
    levels = {seed: run.summary["final/acc"] for seed, run in baseline.items() if "final/acc" in run.summary}
    rounds = [rounds_to_reach(run, levels[seed]) for seed, run in runs.items() if seed in levels]
    return Score.of(rounds)


def sample_passes(run: Run) -> float:
    """Return how many samples went through local training, repeated epochs counted; NaN where it is not known."""
    epochs = run.settings.get("algorithm.local_epochs", nan)
    return sum((row.get("federation/num_examples", nan) * epochs for row in run.rows), 0.0) if run.rows else nan


def seconds(run: Run, what: str = "train") -> float:
    """Return the seconds spent in training (or in ``aggregate``, ``evaluate``); NaN where it is not known."""
    spent = [row[f"time/{what}_seconds"] for row in run.rows if f"time/{what}_seconds" in row]
    return sum(spent) if spent else nan


def hardware(run: Run) -> str:
    """Return on what it ran, in words."""
    known = run.provenance
    if known.get("device", "cpu") != "cpu":
        return str(known["device"])
    if not known.get("cpu"):
        return "unknown"
    threads = known.get("threads")
    return str(known["cpu"]) if threads is None else f"{known['cpu']}, {threads} thread{'s' * (threads != 1)}"


def cost_line(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the cost of one of some runs alike: means over them, and every hardware they ran on."""
    return {
        "runs": len(runs),
        "rounds": Score.of(run.summary["rounds"] for run in runs).mean,
        "train_seconds": Score.of(seconds(run) for run in runs).mean,
        "aggregate_seconds": Score.of(seconds(run, "aggregate") for run in runs).mean,
        "evaluate_seconds": Score.of(seconds(run, "evaluate") for run in runs).mean,
        "samples": Score.of(sample_passes(run) for run in runs).mean,
        "hardware": "; ".join(dict.fromkeys(map(hardware, runs))),
    }
