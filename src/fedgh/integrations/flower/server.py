"""Our server as a Flower ServerApp: the rounds of ``fedgh-train``, with clients on SuperNodes.

Only the executor differs from a simulation: it sends the global model to the nodes of the cohort's clients and gathers
what they reply. Sampling, weights, aggregation, server step, evaluation, recording and checkpoints are the
simulation's own, and with every node present so are the numbers.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import cast

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from omegaconf import DictConfig

from fedgh import config
from fedgh.core.errors import ConfigurationError, TrainingError
from fedgh.core.types import CohortResult, ServerState
from fedgh.executor.base import Executor
from fedgh.federation.loop import Preparing, describe, memories
from fedgh.federation.round import Federation, first_state, run_round
from fedgh.integrations.flower.deployment import build, compose, show_errors_as_one_line
from fedgh.integrations.flower.records import PARTITION_ID, Layout, arrays_of, gather, metrics_in
from fedgh.metric.summary import closing_numbers
from fedgh.storage import checkpoint as checkpoints
from fedgh.storage.checkpoint import Checkpoint
from fedgh.storage.claim import run_directory
from fedgh.storage.provenance import check_writable, provenance
from fedgh.tracking.recorder import Recorder

log = logging.getLogger("flwr")  # what it says is shown by ``flwr run --stream``

SHOWN = ("global/test/acc", "client/train/loss", "conflict/ratio")
"""What is logged of every round; ``metrics.csv`` has all."""

app = ServerApp()


@app.main()
def serve(grid: Grid, context: Context) -> None:
    """Run the federation that the run's config describes, in a run directory on the ServerApp's machine."""
    show_errors_as_one_line()
    log.info(
        "for every message a node starts a process, which loads PyTorch and the data again; with small models most of "
        "a round's time goes there"
    )
    stamp = f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{context.run_id}"
    trust = str(context.run_config.get("trust", "")).split()
    cfg = compose(context.run_config, f"paths.output_dir=${{paths.log_dir}}/flower/{stamp}", trust=trust)
    federation = build(cfg)
    nodes = NodeExecutor(grid, federation, timeout=float(context.run_config["timeout"]))
    cohort = len(federation.sampler(len(federation.partition.client_indices), cfg.seed, 0))
    nodes.wait(cohort, float(context.run_config["patience"]))
    with run_directory(Path(cfg.paths.output_dir), resumed=False):
        # what asks a federation for its executor calls it, or reads its row_dtype
        federate(cfg, replace(federation, executor=cast(Executor, nodes)))


def federate(cfg: DictConfig, federation: Federation) -> ServerState:
    """Run all rounds, recorded and checkpointed as those of ``fedgh-train``; return the last state."""
    run_dir = Path(cfg.paths.output_dir).absolute()
    check_writable(run_dir)
    log.info("this run is written to %s", run_dir)
    config.save(cfg, run_dir / "config.yaml")
    (run_dir / "provenance.json").write_text(json.dumps(provenance(federation.model.device), indent=2) + "\n")
    federation.partition.save(run_dir / "partition.npz")
    schedule, callbacks = config.build_schedule(cfg), config.build_callbacks(cfg)
    server = first_state(federation)
    for callback in callbacks:
        if isinstance(callback, Preparing):
            callback.prepare(federation, schedule, server)
    stamp = Checkpoint(
        server=server,
        config=config.to_text(cfg),
        wandb_id=secrets.token_hex(4),
        layout=checkpoints.layout_of(federation.model),
        dataset=federation.dataset.fingerprint,
        partition=federation.partition.hash,
    )
    loggers = config.build_loggers(cfg, run_dir, stamp.wandb_id, f"flower, seed {cfg.seed}", None)
    recorder, status, closing = Recorder(run_dir, loggers), "failed", dict[str, float]()
    try:
        while server.round_index < schedule.num_rounds:
            outcome = run_round(federation, server)
            row = describe(federation, outcome, schedule)
            for callback in callbacks:
                callback(federation, server, outcome, row)
            recorder.record(row)
            server = outcome.server
            if schedule.due(schedule.checkpoint_every, server.round_index):
                recorded = recorder.keep(server.round_index)
                now = replace(stamp, server=server, callbacks=memories(callbacks), recorded=recorded)
                checkpoints.save(now, run_dir / "checkpoints", cfg.checkpoint.keep)
            shown = {name: row.metrics[name] for name in SHOWN if name in row.metrics}
            log.info("round %d of %d: %s", server.round_index, schedule.num_rounds, shown)
        closing = {"rounds": server.round_index} | closing_numbers(recorder.table.rows, federation.dataset.task.main)
        (run_dir / "summary.json").write_text(json.dumps(closing, indent=2) + "\n")
        status = "success"
    finally:
        recorder.close(status, closing)
    return server


class NodeExecutor:
    """An executor whose clients are SuperNodes, known by their ``partition-id``.

    Nodes may come and go between rounds. A client of the cohort whose node is absent, fails or does not answer in time
    is left out of the round with a warning, which no simulation does.

    Args:
        grid: Flower's connection to the nodes.
        federation: Whose model, number of clients and type of the matrix of updates are used.
        timeout: Seconds that a round's clients have.

    Attributes:
        row_dtype: Of the matrix of updates.
        nodes: Node of each client that is there.
    """

    def __init__(self, grid: Grid, federation: Federation, timeout: float) -> None:
        self.grid, self.timeout = grid, timeout
        self.num_clients = len(federation.partition.client_indices)
        self.layout = Layout.of(*arrays_of(federation.model.module))
        self.row_dtype = federation.executor.row_dtype
        self.nodes: dict[int, int] = {}

    def __call__(self, client_ids: Sequence[int], server: ServerState) -> CohortResult:
        """Have these clients train from the global model; see :class:`fedgh.executor.base.Executor`.

        Raises:
            TrainingError: If all whose nodes are there fail.
        """
        self.meet()
        arrays = self.layout.join(server.params, server.buffers, server.counters)
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": server.round_index + 1})})
        present = {k: self.nodes[k] for k in client_ids if k in self.nodes}
        replies = self.ask("train", list(present.values()), content)
        answers = {k: replies[node] for k, node in present.items() if node in replies}
        if present and not answers:
            raise TrainingError(f"round {server.round_index + 1}: every client failed; the warnings above say why")
        absent = sorted(set(client_ids).difference(answers))
        if absent:
            log.warning("round %d goes on without clients %s", server.round_index + 1, ", ".join(map(str, absent)))
        return gather(answers, self.layout, server.params, row_dtype=self.row_dtype)

    def meet(self) -> None:
        """Ask nodes that are new which client they are, and forget those that have gone.

        Raises:
            ConfigurationError: If one is no client of this federation, or two are the same.
        """
        connected = set(self.grid.get_node_ids())
        self.nodes = {k: node for k, node in self.nodes.items() if node in connected}
        new = sorted(connected.difference(self.nodes.values()))
        for node, content in self.ask("query", new, RecordDict({"config": ConfigRecord()})).items():
            k = int(metrics_in(content)[PARTITION_ID])  # type: ignore[arg-type]
            if k >= self.num_clients:
                raise ConfigurationError(
                    f"node {node} has partition-id {k}, but partition.num_clients={self.num_clients}; start it with a "
                    f"partition-id of 0 to {self.num_clients - 1}, or raise partition.num_clients"
                )
            if k in self.nodes:
                raise ConfigurationError(
                    f"nodes {self.nodes[k]} and {node} both have partition-id {k}; give every SuperNode its own"
                )
            self.nodes[k] = node

    def wait(self, num_nodes: int, patience: float) -> None:
        """Wait for the nodes of all clients; after ``patience`` seconds do with ``num_nodes`` of them.

        Raises:
            ConfigurationError: If there are fewer.
        """
        deadline = time.monotonic() + patience
        self.meet()
        while len(self.nodes) < self.num_clients and time.monotonic() < deadline:
            time.sleep(1)
            self.meet()
        if len(self.nodes) < num_nodes:
            raise ConfigurationError(
                f"a round has {num_nodes} clients, but {len(self.nodes)} SuperNodes with a partition-id are connected "
                f"after {patience:g} seconds; start more, or lower partition.num_clients or sampler.fraction"
            )
        if len(self.nodes) < self.num_clients:
            log.warning(
                "%d of %d clients have a SuperNode; the others are left out of their rounds, so the numbers differ "
                "from a simulation's",
                len(self.nodes),
                self.num_clients,
            )

    def ask(self, message_type: str, nodes: Sequence[int], content: RecordDict) -> dict[int, RecordDict]:
        """Return what these nodes answer in time; report those that fail."""
        messages = [Message(content, dst_node_id=node, message_type=message_type) for node in nodes]
        answers = {}
        for reply in self.grid.send_and_receive(messages, timeout=self.timeout) if messages else ():
            if reply.has_error():
                log.warning("node %d failed: %s", reply.metadata.src_node_id, reply.error.reason)
            else:
                answers[reply.metadata.src_node_id] = reply.content
        return answers
