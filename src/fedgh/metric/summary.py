"""Numbers of clients and of whole runs, summarized."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def client_accuracy(class_accuracy: Tensor, class_counts: Tensor) -> Tensor:
    """Return each client's expected test accuracy on data of its own label distribution.

    Every test image of a class counts by the class's share among the client's training labels. This equals the accuracy
    on an endless test set drawn from the official one with the client's label distribution, at the cost of one pass.

    Args:
        class_accuracy: Accuracy of the model on each class's test images, ``(classes,)``; NaN where there are none.
        class_counts: Training examples per client and class, ``(clients, classes)``.

    Returns:
        ``(clients,)`` float64, in [0, 1]; NaN for a client none of whose classes has test images.
    """
    tested = ~class_accuracy.isnan()
    counts = class_counts.double() * tested
    correct = counts @ class_accuracy.nan_to_num(0.0).double()
    return correct / counts.sum(1)


def spread(values: Tensor, name: str, num_examples: Tensor | None = None) -> dict[str, float]:
    """Return both means, standard deviation (population) and mean of the worst tenth and the worst of clients' values.

    Args:
        values: ``(clients,)``; NaN entries are left out.
        name: Metric name; the keys are ``{name}_mean``, ``{name}_std``, ``{name}_worst10`` and ``{name}_worst``, and
            ``{name}_mean_examples``, over examples: every client counts by how many it has.
        num_examples: ``(clients,)``; without it there is no mean over examples.
    """
    known = ~values.isnan()
    defined = values[known]
    if len(defined) == 0:
        return {}
    over_examples = {}
    if num_examples is not None:
        counts = num_examples[known].to(defined)
        over_examples = {f"{name}_mean_examples": float(defined @ counts / counts.sum())}
    worst = defined.sort().values[: math.ceil(len(defined) / 10)]
    return {
        f"{name}_mean": float(defined.mean()),
        **over_examples,
        f"{name}_std": float(defined.std(correction=0)),
        f"{name}_worst10": float(worst.mean()),
        f"{name}_worst": float(worst[0]),
    }


def closing_numbers(rows: Sequence[Mapping[str, float]], main: str = "acc") -> dict[str, float]:
    """Return what a run is summed up by: accuracy of the last round and of the last ten evaluated, conflict ratio.

    ``final/val_{main}`` and ``last10/val_{main}_mean`` are the same of what was held out of the training data;
    ``final/personal_{main}`` and ``final/fine_tuned_{main}`` are means over clients of their own models; bytes are
    those of all rounds together.

    Args:
        rows: The recorded metrics of its rounds; those that were not evaluated have no accuracy.
        main: The task's main score, which takes the place of accuracy; the names are ``final/{main}`` and so on.
    """
    scores = [row[f"global/test/{main}"] for row in rows if f"global/test/{main}" in row]
    conflict = [row["conflict/ratio"] for row in rows if "conflict/ratio" in row]
    numbers: dict[str, float] = {}
    if scores:
        last = scores[-10:]
        numbers |= {f"final/{main}": scores[-1]}
        numbers |= {f"last10/{main}_best": max(last), f"last10/{main}_mean": sum(last) / len(last)}
    held_out = [row[name] for row in rows if (name := f"global/val/{main}") in row]
    if held_out:
        last = held_out[-10:]
        numbers |= {f"final/val_{main}": held_out[-1], f"last10/val_{main}_mean": sum(last) / len(last)}
    for kind in ("personal", "fine_tuned"):
        own = [row[name] for row in rows if (name := f"{kind}/test/{main}_mean") in row]
        if own:
            numbers[f"final/{kind}_{main}"] = own[-1]
    for way in ("bytes_down", "bytes_up"):
        if any(f"federation/{way}" in row for row in rows):
            numbers[f"total/{way}"] = sum(row.get(f"federation/{way}", 0.0) for row in rows)
    if conflict:
        numbers |= {"final/conflict_ratio": conflict[-1], "mean/conflict_ratio": sum(conflict) / len(conflict)}
    return numbers


def main_of(numbers: Mapping[str, float]) -> str | None:
    """Return the name of the task's main score among the closing numbers of a run; None if it was not evaluated."""
    others = ("final/conflict_ratio", "final/personal_", "final/val_")
    names = (name for name in numbers if name.startswith("final/") and not name.startswith(others))
    return next((name.removeprefix("final/") for name in names), None)


def final_score(numbers: Mapping[str, float]) -> float | None:
    """Return what a run is judged by among its closing numbers, whatever its task; None if there is none.

    That is its final main score, on what was held out of the training data if something was, else on the test split.
    """
    others = ("final/conflict_ratio", "final/personal_", "final/fine_tuned_")
    names = [name for name in numbers if name.startswith("final/") and not name.startswith(others)]
    names.sort(key=lambda name: not name.startswith("final/val_"))
    return numbers[names[0]] if names else None
