"""Flower's simulation (package flwr, with Ray) on a workload; see ``peers.py``."""

from __future__ import annotations

import logging
import os
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # read when Flower is imported
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray  # noqa: F401 - Flower without Ray cannot simulate
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch.nn.functional import cross_entropy
from workloads import WORKLOADS, BareLoop

if TYPE_CHECKING:
    from peers import Match

VERSION = version("flwr")
client_app = ClientApp()


@cache
def kept(workload: str) -> BareLoop:
    """Return model and data of a workload, which every process keeps from one client to the next."""
    return BareLoop(WORKLOADS[workload], torch.device("cpu"))


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train one client."""
    loop = kept(message.content["config"]["workload"])
    loop.model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.01, momentum=0.9)
    size = loop.workload.num_examples
    order = torch.randperm(size) + context.node_config["partition-id"] * size
    examples = steps = 0
    for rows in order.split(loop.workload.batch_size):
        images, labels = loop.batch(rows)
        optimizer.zero_grad()
        cross_entropy(loop.model(images), labels).backward()
        optimizer.step()
        examples, steps = examples + len(labels), steps + 1
    metrics = MetricRecord({"num-examples": examples, "steps": steps})
    content = RecordDict({"arrays": ArrayRecord(loop.model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


def play(match: Match, num_cpus: int) -> None:
    """Run the rounds: images as float tensors in every worker's memory, ``num_cpus`` threads a client."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    workload = match.workload
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        loop = kept(workload.name)
        counted: dict[str, int] = {}

        def total(replies: list[RecordDict], _weight: str) -> MetricRecord:
            """Add what the clients of a round have counted."""
            for name in ("num-examples", "steps"):
                counted[name] = sum(reply["metrics"][name] for reply in replies)
            return MetricRecord(counted)

        strategy = FedAvg(
            fraction_train=workload.clients_per_round / workload.num_clients,
            fraction_evaluate=0.0,
            min_available_nodes=workload.num_clients,
            train_metrics_aggr_fn=total,
        )

        @torch.no_grad()
        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            loop.model.load_state_dict(arrays.to_torch_state_dict())
            logits = loop.model(loop.test_images)
            loss = float(cross_entropy(logits, loop.test_labels))
            accuracy = float((logits.argmax(1) == loop.test_labels).float().mean())
            match.evaluated(loss)
            if server_round:
                match.trained(counted["num-examples"], counted["steps"])
            return MetricRecord({"loss": loss, "accuracy": accuracy})

        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(loop.model.state_dict()),
            num_rounds=match.num_rounds,
            train_config=ConfigRecord({"workload": workload.name}),
            evaluate_fn=evaluate,
        )

    run_simulation(
        server_app,
        client_app,
        num_supernodes=workload.num_clients,
        backend_config={"client_resources": {"num_cpus": num_cpus, "num_gpus": 0.0}},
    )
