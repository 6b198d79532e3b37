"""Our rules inside Flower's strategies, and our federations on Flower's engine: in this process, and for real."""

import logging
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # read when Flower is imported
pytest.importorskip("flwr", reason="needs pip install fedgh[flower]")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, FedProx, Krum
from flwr.supercore.task_identity import TaskIdentity

from fedgh import config
from fedgh.algorithm.fedavg import FedAvg as PlainAlgorithm
from fedgh.algorithm.fednova import FedNova
from fedgh.core.errors import ConfigurationError, TrainingError
from fedgh.core.types import Cohort, Report, Start
from fedgh.core.updates import UpdateMatrix
from fedgh.federation.round import initial_state, run_round
from fedgh.integrations.flower import client, deployment, server
from fedgh.integrations.flower.records import arrays_of
from fedgh.integrations.flower.server import NodeExecutor
from fedgh.integrations.flower.strategy import Harmonized
from fedgh.server_optimizer.momentum import Momentum
from fedgh.storage import checkpoint as checkpoints
from fedgh.tracking.recorder import read_csv

APP = Path(__file__).parents[2] / "examples" / "flower"


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    """Be the server of some run: messages are made in the name of a running task."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


# --- The strategy ----------------------------------------------------------------------------------------------------


def record(**arrays):
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})


def question(node):
    return Message(RecordDict(), dst_node_id=node, message_type="train")


def reply(arrays, num_examples=1, node=1, **metrics):
    asked = question(node)
    content = {"arrays": arrays, "metrics": MetricRecord({"num-examples": num_examples, **metrics})}
    return Message(RecordDict(content), reply_to=asked)


def failure(node=99):
    return Message(Error(code=0, reason="out of memory"), reply_to=question(node))


class NoGrid(Grid):
    """A grid of nodes that nobody is going to ask."""

    run = set_run = create_message = push_messages = pull_messages = send_and_receive = None

    def __init__(self, nodes=(1, 2)):
        self.nodes = list(nodes)

    def get_node_ids(self):
        return self.nodes


def play(strategy, sent, replies, server_round=1):
    """Play one round and return (arrays as NumPy, metrics, record)."""
    list(strategy.configure_train(server_round, sent, ConfigRecord(), NoGrid()))
    arrays, metrics = strategy.aggregate_train(server_round, replies)
    return {name: array.numpy() for name, array in (arrays or {}).items()}, metrics, arrays


START = record(w=np.array([10.0, 20.0]))


def opposed(first=1, second=1, dtype=np.float64):
    """Return replies of updates (1, 0) and (-1, 1): <g1, g2> = -1, ||g1||^2 = 1, ||g2||^2 = 2."""
    moved = (np.array([11.0, 20.0]), np.array([9.0, 21.0]))
    counts = (first, second)
    return [reply(record(w=w.astype(dtype)), n, node) for node, (w, n) in enumerate(zip(moved, counts, strict=True), 1)]


def test_two_clients_by_hand():
    """h1 = g1 + g2 / 2 = (1/2, 1/2) and h2 = g2 + g1 = (0, 1), weighed 3 to 1."""
    arrays, metrics, _ = play(Harmonized(FedAvg()), START, opposed(3, 1))
    np.testing.assert_allclose(arrays["w"], [10.375, 20.625], rtol=0, atol=1e-12)
    assert metrics["conflict/ratio"] == 1
    assert metrics["conflict/cosine_mean"] == pytest.approx(-1 / math.sqrt(2))
    assert metrics["harmonization/gain"] == pytest.approx(0.75 * 1.5 + 0.25 * 2)
    plain, _, _ = play(FedAvg(), START, opposed(3, 1))
    np.testing.assert_allclose(plain["w"], [10.5, 20.25])


def test_mean_is_fedavg():
    assert play(Harmonized(FedAvg(), "mean"), START, opposed(3, 1))[0]["w"].tolist() == [10.5, 20.25]


def test_float32_stays_float32():
    sent = record(w=np.array([10.0, 20.0], np.float32))
    arrays, _, _ = play(Harmonized(FedAdam()), sent, opposed(dtype=np.float32))
    assert arrays["w"].dtype == np.float32


@pytest.mark.parametrize("name", ["fedgh", "gradvac", "mgda", "median", "clipped", "krum"])
def test_every_kind_of_rule_gives_what_it_gives_alone(name, make):
    """Two rounds, so that what a rule remembers must reach it; clients in any order, weights unequal."""
    generator = np.random.default_rng(3)
    strategy, rule, memory, w = Harmonized(FedAvg(), name, seed=7), make.rule(name), {}, generator.normal(size=(4, 5))
    counts = torch.tensor([5.0, 1, 2, 7, 3, 4]).double()
    for server_round in (1, 2):
        updates = generator.normal(size=(6, 4, 5))
        replies = [
            reply(record(w=w + u), int(n), node=2**63 + k, **{"partition-id": k, "train_loss": 0.5})
            for k, (u, n) in enumerate(zip(updates, counts, strict=True))
        ]
        random.Random(server_round).shuffle(replies)
        matrix = UpdateMatrix.of(torch.from_numpy(updates.reshape(6, -1)))
        cohort = Cohort(tuple(range(6)), counts / counts.sum(), torch.full((6,), 0.5).double(), 7, server_round - 1)
        expected = rule(matrix, matrix.gram(), cohort, memory)
        memory = expected.state
        arrays, metrics, _ = play(strategy, record(w=w), replies, server_round)
        w = w + expected.update.numpy().reshape(4, 5)
        np.testing.assert_allclose(arrays["w"], w, rtol=0, atol=1e-12)
        assert "partition-id" not in metrics
        assert metrics["train_loss"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "make_strategy",
    [
        lambda: FedAvgM(server_momentum=0.9, server_learning_rate=0.5),
        lambda: FedAdam(eta=0.1),
        lambda: FedProx(proximal_mu=0.1),
        lambda: FedMedian(),
        lambda: Krum(num_malicious_nodes=0),
    ],
)
def test_server_steps_go_along_the_harmonized_update(make_strategy):
    """As if there were a single client that moved by (1/4, 3/4), the harmonized update of equal weights."""
    wrapped, alone = Harmonized(make_strategy()), make_strategy()
    ours = theirs = START
    for server_round in (1, 2):
        before, other = ours["w"].numpy(), theirs["w"].numpy()
        moves = ([1.0, 0.0], [-1.0, 1.0])
        replies = [reply(record(w=before + np.array(move)), node=k) for k, move in enumerate(moves, 1)]
        _, _, ours = play(wrapped, ours, replies, server_round)
        _, _, theirs = play(alone, theirs, [reply(record(w=other + np.array([0.25, 0.75])))], server_round)
        np.testing.assert_allclose(ours["w"].numpy(), theirs["w"].numpy(), rtol=0, atol=1e-12)


def normed(weight, mean, batches):
    return record(w=np.array([weight]), running_mean=np.array([mean]), num_batches_tracked=np.array(batches))


@pytest.mark.parametrize(("policy", "mean", "batches"), [("average", 2.5, 9), ("keep_global", 0.0, 5)])
@pytest.mark.parametrize("strategy", [FedAvg, FedAdam])
def test_buffers_follow_their_own_policy(policy, mean, batches, strategy):
    sent = normed(0.0, 0.0, 5)
    replies = [reply(normed(1.0, 2.0, 7), 3), reply(normed(1.0, 4.0, 9), 1, node=2)]
    wrapped = Harmonized(strategy(), parameters=["w"], buffers=policy)
    arrays, metrics, _ = play(wrapped, sent, replies)
    assert arrays["running_mean"] == mean
    assert arrays["num_batches_tracked"] == batches
    assert arrays["num_batches_tracked"].dtype == np.int64
    assert metrics["conflict/ratio"] == 0  # the updates of w agree; buffers are not looked at


def test_parameters_of_a_module(make):
    module = make.normed()
    wrapped = Harmonized(FedAvg(), parameters=module)
    list(wrapped.configure_train(1, ArrayRecord(module.state_dict()), ConfigRecord(), NoGrid()))
    assert wrapped._layout.groups[0] == tuple(name for name, _ in module.named_parameters())
    assert wrapped._layout.groups[2] == ("body.2.num_batches_tracked",)


def test_running_statistics_among_the_parameters_are_reported(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    play(Harmonized(FedAvg()), normed(0.0, 0.0, 5), [reply(normed(1.0, 2.0, 7))])
    assert "running_mean count as parameters; pass Harmonized(..., parameters=<module>)" in caplog.text


def test_a_client_that_is_not_finite_is_set_aside():
    broken = reply(record(w=np.array([np.nan, 0.0])), 1000, node=3)
    arrays, metrics, _ = play(Harmonized(FedAvg()), START, [*opposed(), broken])
    np.testing.assert_allclose(arrays["w"], [10.25, 20.75], rtol=0, atol=1e-12)
    assert metrics["federation/num_dropped"] == 1


def test_replies_with_an_error_are_left_to_the_strategy():
    arrays, _, _ = play(Harmonized(FedAvg()), START, [failure(), *opposed()])
    np.testing.assert_allclose(arrays["w"], [10.25, 20.75], rtol=0, atol=1e-12)


def test_nobody_left_changes_nothing():
    for replies in ([], [failure()], [reply(record(w=np.array([np.inf, 0.0])))]):
        assert play(Harmonized(FedAvg()), START, replies)[2] is None


def test_what_cannot_be_harmonized_is_refused():
    with pytest.raises(ConfigurationError, match=re.escape("buffers must be one of average, keep_global, got 'sum'")):
        Harmonized(FedAvg(), buffers="sum")
    with pytest.raises(ConfigurationError, match=r"no aggregator 'fedgg' \(did you mean fedgh\?\)"):
        Harmonized(FedAvg(), "fedgg")
    with pytest.raises(ConfigurationError, match=r"parameters names 'weight', .*it has: w"):
        play(Harmonized(FedAvg(), parameters=["weight"]), START, opposed())
    with pytest.raises(InconsistentMessageReplies, match="same keys"):
        play(Harmonized(FedAvg()), START, [*opposed(), reply(record(v=np.zeros(2)))])
    with pytest.raises(ConfigurationError, match=r"array w should have shape \(2,\), got \(3,\)"):
        play(Harmonized(FedAvg()), START, [reply(record(w=np.zeros(3)))])


def test_without_flower_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr", None)
    monkeypatch.delitem(sys.modules, "fedgh.integrations.flower")
    with pytest.raises(ModuleNotFoundError, match=re.escape('pip install "fedgh[flower]"')):
        import fedgh.integrations.flower  # noqa: F401


# --- Client and server, in this process ------------------------------------------------------------------------------


class LocalGrid(NoGrid):
    """SuperNodes in this process: node 100 + k is client k."""

    def __init__(self, client_ids, overrides=""):
        super().__init__(100 + k for k in client_ids)
        self.contexts = {
            n: Context(1, n, {"partition-id": n - 100}, RecordDict(), {"overrides": overrides}) for n in self.nodes
        }
        self.failing = set()
        self.messages = []

    def send_and_receive(self, messages, *, timeout=None):
        for message in messages:
            node = message.metadata.dst_node_id
            self.messages.append((message.metadata.message_type, node))
            if node in self.failing and message.metadata.message_type == "train":
                yield Message(Error(code=0, reason="the disk is full"), reply_to=message)
            else:
                yield client.app(message, self.contexts[node])


@pytest.fixture
def deployed(monkeypatch):
    """Return ``deployed(federation, clients)``: the same federation over nodes of this process, and their grid."""
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)

    def deploy(federation, client_ids=None):
        cfg = OmegaConf.create({"evaluation": {"batch_size": 7}})
        monkeypatch.setattr(deployment, "kept", lambda *_: (cfg, federation))
        grid = LocalGrid(range(len(federation.partition.client_indices)) if client_ids is None else client_ids)
        return replace(federation, executor=NodeExecutor(grid, federation, timeout=60)), grid

    return deploy


def rounds(federation, state, num_rounds=3):
    for _ in range(num_rounds):
        outcome = run_round(federation, state)
        state = outcome.server
    return outcome


@dataclass(frozen=True, kw_only=True)
class Counting(PlainAlgorithm):
    """Local training whose loss grows with the number of rounds a client has taken part in."""

    def prepare(self, client):
        return Start(client.received.params, client.received.buffers, {"rounds": torch.zeros(1), **client.state})

    def local_loss(self, batch, forward, params, global_params, state):
        return super().local_loss(batch, forward, params, global_params, state) * (1 + state["rounds"].sum())

    def report(self, client, trained):
        return Report({"rounds": trained.state["rounds"] + 1})


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "fedgh"},
        {"rule": "median", "buffers": "keep_global"},
        {"rule": "gradvac", "server_optimizer": Momentum(lr=0.5, beta=0.9, variant="heavy_ball")},
        {"rule": "fedgh", "kind": FedNova, "num_clients": 5, "fraction": 0.6},
        {"rule": "mean", "kind": Counting, "fraction": 0.7},
    ],
)
def test_rounds_over_nodes_are_those_of_the_simulation(settings, deployed, make):
    """Parameters, running statistics and counters, to the bit."""
    settings = dict(settings)
    algorithm = make.algorithm(settings.pop("kind", PlainAlgorithm), momentum=0.5)
    owners = torch.arange(60).sqrt().long().numpy() % settings.get("num_clients", 3)  # unequal numbers of steps
    federation = make.federation(
        aggregator=make.rule(settings.pop("rule")), algorithm=algorithm, module=make.normed(), owners=owners, **settings
    )
    start = initial_state(federation.model)
    expected = rounds(federation, start)
    found = rounds(deployed(federation)[0], start)
    for name in ("params", "buffers", "counters"):
        torch.testing.assert_close(getattr(found.server, name), getattr(expected.server, name), rtol=0, atol=0)
    assert torch.equal(found.weights, expected.weights)
    assert torch.equal(found.result.train_loss, expected.result.train_loss)


def test_absent_and_failing_nodes_are_left_out(deployed, make, caplog):
    federation, grid = deployed(make.federation(num_clients=4), client_ids=[0, 1, 3])
    grid.failing = {101}
    outcome = run_round(federation, initial_state(federation.model))
    assert outcome.result.client_ids == (0, 3)
    assert "node 101 failed: the disk is full" in caplog.text
    assert "round 1 goes on without clients 1, 2" in caplog.text
    grid.failing = set(grid.nodes)
    with pytest.raises(TrainingError, match="every client failed"):
        run_round(federation, outcome.server)
    grid.nodes.clear()
    assert torch.equal(run_round(federation, outcome.server).server.params, outcome.server.params)


def test_nodes_are_asked_once_who_they_are(deployed, make):
    federation, grid = deployed(make.federation())
    rounds(federation, initial_state(federation.model), 2)
    assert [kind for kind, _ in grid.messages] == ["query"] * 3 + ["train"] * 6


def test_a_node_that_comes_back_under_another_id(deployed, make):
    federation, grid = deployed(make.federation())
    outcome = run_round(federation, initial_state(federation.model))
    grid.nodes[1] = 555
    grid.contexts[555] = grid.contexts[101]
    assert run_round(federation, outcome.server).result.client_ids == (0, 1, 2)


def test_too_few_nodes(deployed, make, caplog):
    federation, _ = deployed(make.federation(num_clients=4), client_ids=[0, 1])
    with pytest.raises(ConfigurationError, match=r"a round has 3 clients, but 2 SuperNodes .* sampler.fraction"):
        federation.executor.wait(3, patience=0)
    federation.executor.wait(2, patience=0)
    assert "2 of 4 clients have a SuperNode" in caplog.text


def test_partition_ids_that_do_not_fit(deployed, make):
    federation, _ = deployed(make.federation(), client_ids=[0, 1, 5])
    with pytest.raises(ConfigurationError, match=r"node 105 has partition-id 5, but partition.num_clients=3"):
        federation.executor.wait(3, patience=0)
    federation, grid = deployed(make.federation())
    grid.contexts[101] = grid.contexts[100]
    with pytest.raises(ConfigurationError, match="nodes 100 and 101 both have partition-id 0"):
        federation.executor.wait(3, patience=0)


@pytest.mark.parametrize("node_config", [{}, {"partition-id": -1}, {"partition-id": 3}, {"partition-id": "a"}])
def test_a_client_that_is_nobody(node_config):
    context = Context(1, 1, node_config, RecordDict(), {})
    with pytest.raises(ConfigurationError, match=r"partition-id is .*, expected 0 to 2, .*--node-config"):
        client.client_id(context, num_clients=3)


def test_our_client_under_a_strategy_of_flower(deployed, make):
    """Harmonized(FedAvg) around the same clients moves as our own server does, to float32 rounding."""
    federation = make.federation(aggregator=make.rule("fedgh"), module=make.normed())
    module = federation.model.module
    start, _ = arrays_of(module)
    expected = rounds(federation, initial_state(federation.model), 2).server
    _, grid = deployed(federation)
    strategy = Harmonized(FedAvg(min_train_nodes=3, min_evaluate_nodes=3), parameters=module, seed=federation.seed)
    result = strategy.start(grid, start, num_rounds=2)
    found = np.concatenate([result.arrays[name].numpy().ravel() for name, _ in module.named_parameters()])
    np.testing.assert_allclose(found, expected.params.numpy(), atol=1e-6)
    assert result.arrays["body.2.num_batches_tracked"].numpy() == expected.counters[0]
    assert 0 <= result.evaluate_metrics_clientapp[2]["acc"] <= 1
    assert "conflict/ratio" in result.train_metrics_clientapp[2]


def test_a_deployed_run_is_a_run_like_any_other(cli, tmp_path):
    """Same numbers, and it can go on as a simulation."""
    overrides = "partition.num_clients=4 sampler.fraction=0.5 num_rounds=2 logger=csv algorithm=feddecorr trainer=cpu"
    overrides += " server_optimizer=adam server_optimizer.lr=0.03 evaluation.every=2"
    run_config = {"overrides": f"{overrides} paths.log_dir={tmp_path}", "timeout": 60, "patience": 0}
    server.app(LocalGrid(range(4), run_config["overrides"]), Context(7, 0, {}, RecordDict(), run_config))
    (deployed,) = (tmp_path / "flower").iterdir()
    simulated = cli(*overrides.split()).run_dir
    assert (deployed / "summary.json").read_text() == (simulated / "summary.json").read_text()
    rows = [read_csv(run / "metrics.csv") for run in (deployed, simulated)]
    for found, expected in zip(*rows, strict=True):
        assert {k: v for k, v in found.items() if "time/" not in k} == {
            k: v for k, v in expected.items() if "time/" not in k
        }
    assert cli(f"resume={deployed}", "num_rounds=3").code == 0
    assert cli(f"resume={simulated}", "num_rounds=3").code == 0
    ours, theirs = (checkpoints.load_newest(run / "checkpoints")[0].server for run in (deployed, simulated))
    assert torch.equal(ours.params, theirs.params)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("algoritm=fedprox", "overrides='algoritm=fedprox' cannot be composed: .*algoritm"),
        ("aggregator=fedgg", "fedgg"),
        ("algorithm.mu=1", "mu"),
        ("num_rounds=0", "num_rounds must be a positive integer, got 0"),
        ("name='half a quotation", "No closing quotation"),
    ],
)
def test_a_wrong_override_is_named(overrides, message):
    with pytest.raises(ConfigurationError, match=message):
        deployment.compose({"overrides": overrides})


def test_errors_of_the_user_are_one_line_in_flowers_log(caplog):
    deployment.show_errors_as_one_line()
    deployment.show_errors_as_one_line()
    log = logging.getLogger("flwr")
    try:
        with caplog.at_level(logging.ERROR, "flwr"):
            for error in (ConfigurationError("no such key\n  at all"), ValueError("a fault of ours")):
                try:
                    raise error
                except Exception as raised:
                    log.error("ServerApp raised an exception", exc_info=raised)
    finally:
        log.removeFilter(deployment._one_line)
    first, second = caplog.records
    assert (first.getMessage(), first.exc_info) == ("error: no such key at all", None)
    assert second.getMessage() == "ServerApp raised an exception"
    assert second.exc_info[0] is ValueError


def test_another_executor_is_replaced():
    cfg = deployment.compose({"overrides": "executor=cohort executor.row_dtype=bfloat16 partition.num_clients=3"})
    federation = deployment.build(cfg)
    assert type(federation.executor).__name__ == "SequentialExecutor"
    assert federation.executor.row_dtype == torch.bfloat16


# --- For real --------------------------------------------------------------------------------------------------------


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def reachable(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def end(processes, home):
    """Ask all to end, then kill whatever still belongs to this Flower home: its executors run in their own sessions."""
    for process in processes:
        process.terminate()
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"FLWR_HOME={home}\0".encode() in (entry / "environ").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
    for process in processes:
        process.wait(10)


@contextmanager
def flower(folder, num_nodes):
    """Start a SuperLink and SuperNodes on loopback; yield ``flwr_run(overrides)``, which returns what it printed."""
    home, (port, *node_ports) = folder / "flwr", free_ports(1 + num_nodes)
    home.mkdir()
    connection = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (home / "config.toml").write_text(connection)
    shutil.copytree(APP, folder / "app")
    programs = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FEDGH_LOG_DIR": str(folder / "logs"),
        "OMP_NUM_THREADS": "1",
    }
    processes = []

    def start(name, *arguments):
        with (folder / f"{name}.log").open("w") as output:
            command = [programs / arguments[0], "--insecure", *map(str, arguments[1:])]
            processes.append(
                subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
            )

    def flwr_run(overrides):
        settings = f'overrides="{overrides}" patience=300'
        command = [programs / "flwr", "run", "app", "here", "--stream", "--run-config", settings]
        ended = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=900)
        return ended.stdout + ended.stderr

    try:
        start("superlink", "flower-superlink", "--port", port, "--disable-runtime-dependency-installation")
        until = time.monotonic() + 60
        while not reachable(port):
            assert time.monotonic() < until, (folder / "superlink.log").read_text()
            time.sleep(0.2)
        for k, node_port in enumerate(node_ports):
            address, identity = f"127.0.0.1:{port}", f"partition-id={k}"
            start(
                f"node{k}", "flower-supernode", "--superlink", address, "--port", node_port, "--node-config", identity
            )
        yield flwr_run
    finally:
        end(processes, home)


needs_proc = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds what Flower leaves running in /proc")


@needs_proc
@pytest.mark.slow  # that rounds over nodes are the simulation's is tested above without processes
def test_superlink_and_supernodes_give_the_simulations_numbers(tmp_path, cli):
    """The same overrides under ``flwr run``, two of three SuperNodes a round, and under ``fedgh-train``."""
    overrides = "partition.num_clients=3 sampler.fraction=0.7 num_rounds=3 logger=csv algorithm=fednova trainer=cpu"
    with flower(tmp_path, num_nodes=3) as flwr_run:
        shown = flwr_run(overrides)
    runs = list((tmp_path / "logs" / "flower").glob("*"))
    assert len(runs) == 1, shown
    assert cli(*overrides.split()).code == 0
    simulated = next((tmp_path / "logs" / "train" / "runs").iterdir())
    deployed, expected = (checkpoints.load_newest(run / "checkpoints")[0] for run in (runs[0], simulated))
    assert deployed.server.round_index == 3, shown
    torch.testing.assert_close(deployed.server.params, expected.server.params, rtol=0, atol=1e-6)
    tables = [read_csv(run / "metrics.csv") for run in (runs[0], simulated)]
    for name in ("global/test/acc", "conflict/ratio"):
        assert [row[name] for row in tables[0]] == pytest.approx([row[name] for row in tables[1]], abs=1e-12)
    assert (runs[0] / "summary.json").read_text() == (simulated / "summary.json").read_text()
    assert "round 3 of 3" in shown
    assert config.parse(deployed.config).algorithm._target_.endswith("FedNova")


@needs_proc
@pytest.mark.slow
def test_a_wrong_override_reaches_the_user(tmp_path):
    with flower(tmp_path, num_nodes=0) as flwr_run:
        shown = flwr_run("algoritm=fedprox")
    (line,) = [line for line in shown.splitlines() if "cannot be composed" in line]
    assert "error: --run-config overrides='algoritm=fedprox' cannot be composed" in line
    assert "Traceback" not in shown
