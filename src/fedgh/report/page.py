"""One run on one page: a static HTML file with its pictures inside, readable without an account or a network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedgh.core.command import resume_command
from fedgh.core.errors import FedGHError
from fedgh.metric.observatory import label_entropy, label_order, label_shares
from fedgh.partition.base import Partition
from fedgh.plot import picture
from fedgh.report.document import Document, whole_page
from fedgh.report.groups import short
from fedgh.storage.portable import anonymous, homeless
from fedgh.storage.run import Run, flatten, open_run
from fedgh.storage.tables import count_projections, layer_history, read_rounds, read_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

BINS = np.linspace(-1, 1, 65)
MOST_CLIENTS = 200  # clients in a table or a matrix
CLIENT_MEANS = {
    "cosine_mean": ("mean cosine", "{:+.2f}"),
    "removed_norm": ("removed", "{:.2f}"),
    "gain": ("coefficient", "{:.2f}"),
}
CLIENT_SUMS = {"times_projected": "projected", "times_projecting": "projecting"}
"""Columns of the observatory's table of clients, as a reader calls them."""
GROUPS = ("algorithm", "aggregator", "server_optimizer", "dataset", "partition", "model", "sampler", "executor")


@dataclass
class Page(Document):
    """A page as it grows.

    Attributes:
        missing: What the run does not have, a sentence each.
    """

    missing: list[str] = field(default_factory=list)

    def attempt(self, part: Callable[..., None], *arguments: Any) -> None:
        """Add a part; what cannot be read is reported on the page and costs only that part."""
        try:
            part(self, *arguments)
        except FedGHError as error:
            log.warning("%s", error)
            self.missing.append(str(error))


def write_page(directory: Path, folder: Path) -> Path:
    """Write ``report.html``, and its pictures as PNG, for one run, finished or not.

    Args:
        directory: Of the run.
        folder: Where the files go.

    Returns:
        The path of the page.

    Raises:
        DataError: If that is no run, or its numbers cannot be read.
    """
    run = open_run(directory)
    folder.mkdir(parents=True, exist_ok=True)
    page = Page(folder, _title(run))
    try:
        partition = Partition.load(directory / "partition.npz")
    except FedGHError as error:
        partition = None
        page.missing.append(f"Who holds what, and all that is ordered by labels: {error}")
    page.attempt(_curves, run)
    if partition is not None:
        page.attempt(_partition, partition)
    page.attempt(_conflict, run, partition)
    page.attempt(_harmonization, run, partition)
    page.attempt(_harm, run)
    page.attempt(_clients, run, partition)
    _settings(page, run)
    path = folder / "report.html"
    path.write_text(_html(run, page), encoding="utf-8")
    return path


def _curves(page: Page, run: Run) -> None:
    if not run.rows:
        page.missing.append("Accuracy and conflict per round: no round is finished yet.")
        return
    page.heading("Accuracy and conflict")
    columns = {
        "round": run.curve("round"),
        "accuracy": run.curve("global/test/acc"),
        "conflict_ratio": run.curve("conflict/ratio"),
    }
    page.picture(
        "rounds",
        "Above: share of the official test set that the global model gets right. Below: share of the pairs of clients "
        "whose raw updates have a negative cosine (the paper's figure 2b).",
        picture.run_figure({_title(run): columns}),
    )


def _partition(page: Page, partition: Partition) -> None:
    page.heading("Who holds what")
    page.html.append(f"<pre>{escape(partition.card())}</pre>")
    page.picture(
        "partition",
        "Training samples of every class at every client. Above: samples per client, the dashed line is their mean.",
        picture.partition_figure(partition.class_counts),
    )


def _conflict(page: Page, run: Run, partition: Partition | None) -> None:
    folder = run.path / "conflict" / "pairs"
    rounds = read_rounds(folder)
    if not rounds:
        page.missing.append(
            "Cosines, layers and projections: there is no conflict/ with the observatory's tables. Runs with "
            "callback=default write them from their first round on."
        )
        return
    page.heading("Conflict")
    last = read_rows(folder, rounds[-1])
    page.picture(
        "sorted_cosines",
        "The cosines of all pairs of updates, in ascending order (the paper's figures 2a and 2c); red is below zero. "
        "After: the same updates as the aggregation rule bent them towards each other, where it does so.",
        picture.sorted_cosines_figure(
            {"Before": last["cosine"], f"After {_rule(run)}": last["cosine_after"]}, f"Round {rounds[-1]}"
        ),
    )
    page.picture("cosine_history", "How the cosines are distributed in every round.", _history(folder, rounds, run))
    if read_rounds(run.path / "conflict" / "layers"):
        page.picture(
            "layers",
            "The same layer by layer, from the input (top) to the output: share of pairs in conflict, mean cosine.",
            picture.layer_figure(**layer_history(run.path / "conflict" / "layers")),
        )
    else:
        page.missing.append("Layers: one Gram matrix per parameter block would have taken too much memory.")
    if partition is not None and len(last["cosine"]):
        correlation = [value for value in run.curve("conflict/label_distance_correlation") if np.isfinite(value)]
        told = (
            f" Over the rounds, cosine and label distance (total variation) of a pair have a rank correlation of "
            f"{np.mean(correlation):+.2f} on average: below zero, the more the labels differ, the more the updates "
            "oppose each other."
            if correlation
            else ""
        )
        page.picture(
            "cosine_matrix",
            "Every pair of the last round's participants, those with like labels side by side: ordered by the class "
            f"they have most of, then by its share.{told}",
            _matrix(last, partition),
        )


def _history(folder: Path, rounds: list[int], run: Run) -> Figure:
    before, after = [], []
    for number in rounds:
        table = read_rows(folder, number, ["cosine", "cosine_after"])
        before.append(np.histogram(table["cosine"], bins=BINS)[0])
        after.append(np.histogram(table["cosine_after"], bins=BINS)[0])
    histograms = {"Before": np.array(before).T}
    if np.any(after) and not np.array_equal(before, after):
        histograms[f"After {_rule(run)}"] = np.array(after).T
    return picture.cosine_history_figure(rounds, BINS, histograms)


def _matrix(pairs: Mapping[str, Any], partition: Partition) -> Figure:
    ids = np.unique(np.concatenate([pairs["first"], pairs["second"]]))
    cosines = np.full((len(ids), len(ids)), np.nan)
    first, second = np.searchsorted(ids, pairs["first"]), np.searchsorted(ids, pairs["second"])
    cosines[first, second] = cosines[second, first] = pairs["cosine"]
    moved = np.isfinite(cosines).any(axis=1)
    cosines[moved, moved] = 1.0
    counts = partition.class_counts[ids]
    order = label_order(counts)
    if len(order) > MOST_CLIENTS:  # evenly over the labels
        order = [order[place] for place in np.linspace(0, len(order) - 1, MOST_CLIENTS).round().astype(int)]
    return picture.cosine_figure(cosines[np.ix_(order, order)], ids[order].tolist(), label_shares(counts)[order])


def _harmonization(page: Page, run: Run, partition: Partition | None) -> None:
    folder = run.path / "conflict" / "pairs"
    if partition is None or not read_rounds(folder):
        return
    ids, counts = count_projections(folder, MOST_CLIENTS)
    if not counts.any():
        return
    page.heading(f"What {_rule(run)} did")
    order = label_order(partition.class_counts[ids])
    page.picture(
        "projections",
        "In how many rounds the update of one client was projected against that of another; clients with like labels "
        f"side by side.{_shown(len(ids), partition.num_clients, 'that were projected most often')}",
        picture.projection_figure(counts[np.ix_(order, order)], ids[order].tolist()),
    )


def _harm(page: Page, run: Run) -> None:
    folder = run.path / "conflict" / "harm"
    rounds = read_rounds(folder)
    if not rounds:
        page.missing.append("Who was harmed: runs with callback=harm_report tell.")
        return
    page.heading("Whom the round harmed")
    table = read_rows(folder, rounds[-1])
    page.picture(
        "harm",
        "How the loss of each participant on its own training data changed in that round: under the chosen rule, and "
        "had the plain mean been taken. Right of zero a client was harmed. Reports of rounds "
        f"{', '.join(map(str, rounds[-8:]))} are in conflict/harm.",
        picture.harm_figure(
            table["client"].tolist(),
            table["loss_mean"] - table["loss_before"],
            table["loss_after"] - table["loss_before"],
            _rule(run),
            f"Round {rounds[-1]}",
        ),
    )


def _clients(page: Page, run: Run, partition: Partition | None) -> None:
    """Add a line a client; of very many, those whose updates opposed the others' most."""
    if partition is None:
        return
    page.heading("Clients")
    seen, means, sums = _client_tables(run.path / "conflict" / "clients", partition.num_clients)
    ids = np.arange(partition.num_clients)
    if len(ids) > MOST_CLIENTS:
        ids = np.sort(np.argsort(means.get("cosine_mean", ids), kind="stable")[:MOST_CLIENTS])  # NaN is last
    counts, shares = partition.class_counts[ids], label_shares(partition.class_counts[ids])
    columns: dict[str, Sequence[Any]] = {
        "client": ids.tolist(),
        "samples": partition.sizes[ids].tolist(),
        "most of": [f"{k} ({share:.0%})" for k, share in zip(shares.argmax(1), shares.max(1), strict=True)],
        "label entropy (bits)": [f"{value:.2f}" for value in label_entropy(counts)],
    }
    if seen.any():
        columns["rounds"] = seen[ids].tolist()
    for name, (label, form) in CLIENT_MEANS.items():
        if name in means:
            columns[label] = [form.format(value) if np.isfinite(value) else "–" for value in means[name][ids]]
    for name, label in CLIENT_SUMS.items():
        if name in sums:
            columns[label] = [f"{value:.0f}" for value in sums[name][ids]]
    if harm := _last_harm(run):
        known = [harm.get(client) for client in ids.tolist()]
        columns["change of loss under the mean"] = ["–" if row is None else f"{row[0]:+.3f}" for row in known]
        columns[f"change of loss under {_rule(run)}"] = ["–" if row is None else f"{row[1]:+.3f}" for row in known]
    page.table(list(columns), [list(map(_cell, row)) for row in zip(*columns.values(), strict=True)], "numbers")
    page.note(
        "Most of: its most frequent class. Mean cosine: to the others' updates. Removed: what was taken away from an "
        "update, relative to its length. Coefficient: how many times as much it counted as in the mean. These are "
        "means over the rounds it took part in. Projected, projecting: how often its update was projected against "
        "another, or another against it. Change of loss: on its own data, in the last round reported; above zero it "
        "was harmed." + _shown(len(ids), partition.num_clients, "whose updates opposed the others' most")
    )


def _client_tables(folder: Path, num_clients: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Return rounds a client took part in, and means and sums over them of what the observatory keeps of clients."""
    seen, sums = np.zeros(num_clients, dtype=int), dict[str, Any]()
    for number in read_rounds(folder):
        table = read_rows(folder, number)
        seen[table["client"]] += 1
        for name in (*CLIENT_MEANS, *CLIENT_SUMS):
            if name in table:
                sums.setdefault(name, np.zeros(num_clients))[table["client"]] += np.nan_to_num(table[name])
    times = np.where(seen, seen, np.nan)
    return seen, {name: sums[name] / times for name in CLIENT_MEANS if name in sums}, sums


def _last_harm(run: Run) -> dict[int, tuple[float, float]]:
    """Return by how much each client's loss changed under the mean and under the chosen rule, when last reported."""
    folder, found = run.path / "conflict" / "harm", dict[int, tuple[float, float]]()
    for number in read_rounds(folder):
        rows = read_rows(folder, number)
        changes = (rows[name] - rows["loss_before"] for name in ("loss_mean", "loss_after"))
        found |= dict(zip(rows["client"].tolist(), zip(*changes, strict=True), strict=True))
    return found


def _shown(number: int, total: int, which: str) -> str:
    return f" The {number} of {total:,} clients {which}." if number < total and number == MOST_CLIENTS else ""


def _settings(page: Page, run: Run) -> None:
    page.heading("Configuration")
    chosen = [(group, _short_target(run.settings.get(f"{group}._target_", "–"))) for group in GROUPS]
    page.table([], [("seed", _cell(run.settings["seed"])), *chosen], "names")
    lines = "\n".join(f"{key}: {value}" for key, value in run.settings.items())
    page.html.append(f"<details><summary>All settings</summary><pre>{escape(lines)}</pre></details>")
    page.heading("Provenance")
    known = [(key, _cell(value)) for key, value in flatten(run.provenance).items()]
    page.table([], known or [("unknown", "provenance.json is missing")], "names")


def _html(run: Run, page: Page) -> str:
    finished, total = _finished(run), int(run.settings["num_rounds"])
    notes = []
    if finished < total:
        notes.append(
            f"<p class='warning'>This run is not finished: {finished} of {total} rounds. "
            f"Go on with it: <code>{escape(homeless(resume_command(run.path)))}</code></p>"
        )
    if page.missing:
        lines = "".join(f"<li>{escape(text)}</li>" for text in page.missing)
        notes.append(f"<div class='warning'>Not on this page:<ul>{lines}</ul></div>")
    tiles = "".join(f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in _tiles(run).items())
    head = f"<p class='note'>{escape(anonymous(str(run.path)))}</p>\n<section class='tiles'>{tiles}</section>"
    return whole_page(page.title, "\n".join([head, *notes, *page.html]))


def _tiles(run: Run) -> dict[str, str]:
    """Return the numbers that come first."""
    tiles = {"rounds finished": f"{_finished(run)} of {run.settings['num_rounds']}"}
    for metric, name in (
        ("global/test/acc", "test accuracy"),
        ("client/test/acc_worst10", "accuracy of the worst tenth of clients"),
        ("personal/test/acc_mean", "accuracy of personal models, mean over clients"),
        ("fine_tuned/test/acc_mean", "accuracy of fine-tuned models, mean over clients"),
        ("conflict/ratio", "pairs in conflict"),
        ("harmonization/conflict_ratio", f"pairs in conflict after {_rule(run)}"),
        ("harm/share", "clients harmed in the last report"),
    ):
        values = [value for value in run.curve(metric) if np.isfinite(value)]
        if values:
            tiles[name] = f"{values[-1]:.1%}"
    seconds = sum(row.get("time/train_seconds", 0.0) + row.get("time/aggregate_seconds", 0.0) for row in run.rows)
    if run.rows:
        tiles["training and aggregation"] = f"{seconds / 60:.1f} min" if seconds >= 100 else f"{seconds:.1f} s"
    return tiles


def _finished(run: Run) -> int:
    return int(run.rows[-1]["round"]) if run.rows else 0


def _title(run: Run) -> str:
    return f"{run.settings.get('name', run.path.name)}, seed {run.settings['seed']}"


def _rule(run: Run) -> str:
    return str(short(run.settings["aggregator._target_"]))


def _short_target(target: str) -> str:
    return target.removeprefix("fedgh.")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
