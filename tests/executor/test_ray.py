"""Clients on Ray's workers: the bits of the sequential executor, whoever trains whom, also when a worker dies."""

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fedgh.algorithm.fedavg import FedAvg
from fedgh.algorithm.feddecorr import FedDecorr
from fedgh.algorithm.fedprox import FedProx
from fedgh.core.errors import ConfigurationError, TrainingError
from fedgh.core.types import Report, Start
from fedgh.dataset.augmentation import Augmentation
from fedgh.executor import ray_cluster
from fedgh.executor.ray import Raw, RayExecutor
from fedgh.executor.sequential import SequentialExecutor
from fedgh.federation.round import initial_state, run_round
from fedgh.model.cnn2 import CNN2
from fedgh.storage import checkpoint as checkpoints
from fedgh.tracking.recorder import read_csv

from ..accelerator import DEVICE, Accelerator

pytestmark = [
    pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # pipes of Ray's own processes
]

UNEVEN = torch.repeat_interleave(torch.arange(4), torch.tensor([5, 9, 16, 30])).numpy()
SMALL = {"cpus_per_worker": 0.5, "gpus_per_worker": None, "threads_per_worker": 1, "object_store_mib": None}
TWO = partial(RayExecutor, address=None, num_workers=2, max_attempts=2, **SMALL, row_dtype="float32")


@pytest.fixture(scope="module")
def ray(make):
    """Return Ray with a cluster of its own, which the executors of this module find and use."""
    module = pytest.importorskip("ray", reason="Ray is not installed: pip install 'fedgh[ray]'")
    assert ray_cluster.start(None, "executor.address", num_cpus=2)
    for example in (Wayward, type(make.normed())):  # workers cannot import the tests
        module.cloudpickle.register_pickle_by_value(sys.modules[example.__module__])
    yield module
    module.shutdown()


def rounds(federation, count, first=0):
    """Return what came of rounds from the initial model on."""
    server, outcomes = replace(initial_state(federation.model), round_index=first), []
    for _ in range(count):
        outcomes.append(run_round(federation, server))
        server = outcomes[-1].server
    return outcomes


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        for name in ("params", "buffers", "counters"):
            assert torch.equal(getattr(one.server, name), getattr(other.server, name)), name
        for name in ("local_steps", "train_loss", "num_examples", "buffers", "counters"):
            assert torch.equal(getattr(one.result, name), getattr(other.result, name)), name
        assert one.result.client_ids == other.result.client_ids
        assert one.server.clients.keys() == other.server.clients.keys()
        for k, state in one.server.clients.items():
            assert all(torch.equal(tensor, other.server.clients[k][name]) for name, tensor in state.items())
        assert torch.equal(one.gram, other.gram)


@dataclass(frozen=True, kw_only=True)
class Wayward(FedAvg):
    """Remembers its updates and trains on them; now and then a step takes its time."""

    def prepare(self, client):
        first = {"sum": torch.zeros(15), "labels": client.label_counts}
        return Start(client.received.params, client.received.buffers, {**first, **client.state})

    def local_loss(self, batch, forward, params, global_params, state):
        time.sleep(int.from_bytes(os.urandom(1), "big") / 10_000)
        return super().local_loss(batch, forward, params, global_params, state) + 0.1 * (params @ state["sum"])

    def report(self, client, trained):
        sum_of_updates = trained.state["sum"] + trained.update
        return Report({**trained.state, "sum": sum_of_updates, "last": trained.update})


def plain(make):
    return {"algorithm": make.algorithm(Wayward, local_epochs=2, batch_size=4), "fraction": 0.75}


def normed(make):
    shape = (3, 8, 8)
    augmentation = Augmentation(crop_padding=1, flip=True, auto_augment=True)
    algorithm = make.algorithm(FedProx, mu=0.1, momentum=0.9, local_epochs=2, batch_size=4)
    dataset = make.dataset(shape=shape, augmentation=augmentation)
    parts = {"dataset": dataset, "module": make.normed(shape=shape), "algorithm": algorithm}
    return {**parts, "aggregator": make.rule("fedgh")}


def convolutions(make):
    dataset = make.dataset(shape=(3, 8, 8))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = CNN2(dataset.image_shape, dataset.num_classes, channels=[4, 6], hidden=5, dropout=[0.2, 0.5])
    return {
        "dataset": dataset,
        "module": module,
        "algorithm": make.algorithm(FedDecorr, beta=0.1, normalize=True, batch_size=4),
    }


CASES = {
    "fedprox, batch normalization, dropout, augmentation, fedgh": (normed, "float32"),
    "feddecorr, convolutions in channels_last, bfloat16 rows": (convolutions, "bfloat16"),
}


def federations(make, settings, row_dtype="float32", **ray_settings):
    """Return the same federation twice: under Ray and one client after the other."""
    for executor in (partial(TWO, **ray_settings), SequentialExecutor):
        choices = {"num_clients": 4, "owners": UNEVEN, **settings(make)}
        federation = make.federation(executor=partial(executor, row_dtype=row_dtype), **choices)
        federation.model.memory_format = torch.channels_last
        yield federation


@pytest.mark.parametrize("case", CASES)
def test_every_bit_is_the_sequential_executors(make, ray, case):
    ours, theirs = federations(make, *CASES[case])
    assert_same(rounds(ours, 3), rounds(theirs, 3))
    ours.executor.close()
    assert not ours.executor._slots


def test_answers_come_in_any_order(make, ray, monkeypatch):
    """One client a call, and calls of random length: rows are filled in another order than they are handed out.

    Fewer than all clients take part, and they keep a state.
    """
    ours, theirs = federations(make, plain)
    filled, write = [], RayExecutor._write
    monkeypatch.setattr(RayExecutor, "shares", lambda self, clients: iter([[2], [1], [0]]))
    monkeypatch.setattr(RayExecutor, "_write", lambda self, a, rows, r: filled.extend(rows) or write(self, a, rows, r))
    ours.executor.open()
    ray.get([slot.task for slot in ours.executor._slots])
    assert_same(rounds(ours, 5), rounds(theirs, 5))
    assert len(filled) == 5 * 3
    assert filled != 5 * [2, 1, 0]
    ours.executor.close()


@dataclass(frozen=True, kw_only=True)
class Fatal(FedAvg):
    """Kills its process at client 3, of 30 examples, as long as there is a file to take away."""

    lives: Path

    def prepare(self, client):
        return Start(client.received.params, client.received.buffers, {"examples": client.label_counts.sum()})

    def local_loss(self, batch, forward, params, global_params, state):
        if int(state["examples"]) == 30 and (files := list(self.lives.iterdir())):
            files[0].unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().local_loss(batch, forward, params, global_params, state)


def test_a_worker_that_dies_is_replaced_and_changes_nothing_but_not_for_ever(make, ray, tmp_path, caplog):
    def fatal(make):
        return {"algorithm": make.algorithm(Fatal, lives=tmp_path, batch_size=4)}

    ours, theirs = federations(make, fatal)
    expected = rounds(theirs, 3)
    (tmp_path / "one").touch()
    assert_same(rounds(ours, 3), expected)
    assert not list(tmp_path.iterdir()), "nobody died"
    assert "a worker of Ray is lost and replaced" in caplog.text
    for name in ("one", "two"):
        (tmp_path / name).touch()
    message = r"round 6: workers of Ray died 2 times while training client 3, which is executor\.max_attempts; the last"
    with pytest.raises(TrainingError, match=message):
        rounds(ours, 1, first=5)
    assert not ours.executor._slots, "workers that are still at work are ended, too"


def test_a_users_error_in_a_worker_is_the_users_error_here(make, ray):
    ours, _ = federations(make, lambda make: {"trainer": make.trainer(limit_train_batches=0)}, num_workers=1)
    with pytest.raises(TrainingError, match=r"^round 1: clients .* local steps, but took .*limit_train_batches"):
        rounds(ours, 1)


def test_the_largest_clients_are_handed_out_first_and_ever_fewer_at_a_time(make):
    executor = make.federation(executor=TWO, algorithm=make.algorithm(batch_size=4)).executor
    executor._slots = [None, None]  # never started
    executor.client_indices = [torch.arange(4 * n) for n in [1, 9, 2, 8, 7, 3, 5, 5, 2, 8]]
    clients = [SimpleNamespace(client_id=k) for k in range(10)]
    calls = list(executor.shares(clients))
    assert [row for call in calls for row in call] == [1, 3, 9, 4, 6, 7, 5, 2, 8, 0]
    assert [len(call) for call in calls] == [2, 2, 1, 1, 1, 1, 1, 1]
    executor._seconds_per_step = 1e-9  # not worth a call of its own: one call a worker
    assert [sum(executor.num_steps(k) for k in call) for call in executor.shares(clients)] == [25, 25]


@pytest.mark.parametrize(
    "tensor", [torch.arange(6.0).view(2, 3), torch.ones(3, 0), torch.ones(()), torch.ones(2).bfloat16()]
)
def test_tensors_arrive_as_they_were(tensor):
    arrived = pickled(Raw(tensor))
    assert (arrived.dtype, arrived.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(arrived, tensor)


def test_a_tensor_of_a_device_arrives_on_the_cpu():
    with Accelerator() as accelerator:
        tensor = torch.arange(6.0).to(DEVICE).view(2, 3)[:, 1:].requires_grad_()
        constructor, (memory, *rest) = Raw(tensor).__reduce__()
        assert accelerator.copied_to_host.total() == 1
    assert torch.equal(constructor(memory, *rest), torch.tensor([[1.0, 2.0], [4.0, 5.0]]))


def pickled(value):
    return pickle.loads(pickle.dumps(value))


SETTINGS = {
    "num_workers": (0, r"executor\.num_workers must be a positive integer, got 0"),
    "max_attempts": (1.5, r"executor\.max_attempts must be a positive integer, got 1\.5"),
    "cpus_per_worker": (0, r"executor\.cpus_per_worker must be positive, got 0; try 1"),
    "gpus_per_worker": ("all", r"executor\.gpus_per_worker must be 0 or more, got 'all'; try 0\.5"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_out_of_range(make, name):
    value, message = SETTINGS[name]
    with pytest.raises(ConfigurationError, match=message):
        make.federation(executor=partial(TWO, **{name: value}))


def test_without_ray(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    federation = make.federation(executor=TWO)  # evaluating such a run needs no Ray
    with pytest.raises(ConfigurationError, match=r'executor=ray needs Ray .*pip install "fedgh\[ray\]"'):
        federation.executor.open()


def test_a_worker_without_a_gpu_cannot_train_on_one(make, ray):
    federation = make.federation(executor=partial(TWO, gpus_per_worker=1))
    with pytest.raises(ConfigurationError, match=r"gpus_per_worker=1, but this run is on cpu; leave it out, or"):
        federation.executor.open()


def test_workers_that_no_machine_can_hold(make, ray):
    federation = make.federation(executor=partial(TWO, num_workers=5))
    message = r"num_workers=5 with executor\.cpus_per_worker=0\.5 .* Ray has 2 CPUs and 0 GPUs, room for 4; lower"
    with pytest.raises(ConfigurationError, match=message):
        federation.executor.open()
    federation = make.federation(executor=partial(TWO, num_workers=None, cpus_per_worker=3))
    with pytest.raises(ConfigurationError, match=r"num_workers=1 with executor\.cpus_per_worker=3 .*room for 0"):
        federation.executor.open()


RUN = [
    *("partition=iid", "partition.num_clients=5", "algorithm.local_epochs=1", "dataset.train_fraction=0.1"),
    *("model.hidden=[4]", "trainer=cpu", "logger=csv", "callback=none"),
]
RAY = ["executor=ray", "executor.num_workers=2", "executor.cpus_per_worker=0.5"]


def metrics(run_dir):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_csv(run_dir / "metrics.csv")]


def bits(run_dir):
    return checkpoints.load_newest(run_dir / "checkpoints")[0].server.params


def test_a_whole_run_stopped_and_resumed(cli, ray, tmp_path):
    ours, theirs = tmp_path / "ray", tmp_path / "sequential"
    run = [*RUN, "algorithm=fednova", "sampler.fraction=0.6"]
    assert cli(*run, "num_rounds=4", f"hydra.run.dir={theirs}").code == 0
    assert cli(*run, *RAY, "num_rounds=2", f"hydra.run.dir={ours}").code == 0
    assert cli(f"resume={ours}", "num_rounds=4").code == 0
    assert metrics(ours) == metrics(theirs)
    assert torch.equal(bits(ours), bits(theirs))


def test_an_address_that_does_not_answer(cli, monkeypatch):
    """No run is begun: there is nothing to resume, and no W&B run."""
    monkeypatch.setattr(pytest.importorskip("ray"), "is_initialized", lambda: False)
    address = f"127.0.0.1:{free_port()}"
    answer = cli(*RUN, *RAY, f"executor.address={address}")
    assert answer.code == 2
    assert f"Ray at {address} does not answer: [Errno 111] Connection refused; check executor.address=" in answer.err
    assert not list((answer.log_dir / "train" / "runs").glob("*"))


class Marked:
    """Processes that can be told from all others, whoever their parent is, by a word in their environment."""

    def __init__(self, folder):
        self.folder, self.mark, self.started = folder, uuid.uuid4().hex, []

    def start(self, *command):
        environment = {**os.environ, "FEDGH_TEST": self.mark, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        with (self.folder / f"{len(self.started)}.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.started.append(process)
        return process

    def alive(self):
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and self.mark.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def wait_until_gone(self, seconds=30):
        until = time.monotonic() + seconds
        while self.alive() and time.monotonic() < until:
            time.sleep(0.2)
        return self.alive()


@pytest.fixture
def marked(tmp_path):
    if not Path("/proc/self/environ").exists():
        pytest.skip("reads Linux's process information")
    processes = Marked(tmp_path)
    yield processes
    for pid in processes.alive():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for process in processes.started:
        process.wait()


def wait_for(check, process, seconds=180):
    until = time.monotonic() + seconds
    while not check():
        assert process.poll() is None, "it has ended before"
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def nodes_of(log):
    """Return the nodes on which a run says that its workers are."""
    return set(re.findall(r"a worker of Ray has started: .*, node (\w+)", log.read_text()))


def recorded(run_dir):
    return metrics(run_dir) if (run_dir / "metrics.csv").exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_no_process_behind(marked, tmp_path, number):
    """Ctrl-C lets the round finish; either way Ray, which was started for the run, goes with it."""
    pytest.importorskip("ray")
    run_dir = tmp_path / "run"
    run = [*RUN, *RAY, "num_rounds=100000", f"hydra.run.dir={run_dir}"]
    process = marked.start(sys.executable, "-m", "fedgh.cli.train", *run)
    wait_for(lambda: len(recorded(run_dir)) > 2, process)
    assert len(marked.alive()) > 3
    os.kill(process.pid, number)
    assert process.wait(60) == 128 + number
    assert checkpoints.load_newest(run_dir / "checkpoints")[0].server.round_index >= 2
    assert marked.wait_until_gone() == []


@contextmanager
def two_nodes(marked, tmp_path, monkeypatch):
    """Two Rays on the loopback, a worker each; yield their processes, and the settings of a run on them."""
    pytest.importorskip("ray")
    (tmp_path / "token").write_text(uuid.uuid4().hex * 2)  # heads ask for one since Ray 2.60
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    address, client_port = f"127.0.0.1:{free_port()}", free_port()
    command = Path(sys.executable).parent / "ray"
    node = [command, "start", "--num-cpus=1", "--block", "--disable-usage-stats", "--object-store-memory=200000000"]
    node += ["--min-worker-port=0", "--max-worker-port=0", "--node-ip-address=127.0.0.1"]
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # paths of its sockets must be short
        head = ["--head", f"--port={address.partition(':')[2]}", "--include-dashboard=false", f"--temp-dir={folder}"]
        first = marked.start(*node, *head, f"--ray-client-server-port={client_port}")
        wait_for(lambda: "runtime started" in (tmp_path / "0.log").read_text(), first)
        second = marked.start(*node, f"--address={address}")
        wait_for(lambda: "runtime started" in (tmp_path / "1.log").read_text(), second)
        yield first, second, [f"executor.address={address}", "executor.cpus_per_worker=1", "executor.num_workers=2"]
        first.terminate()
        marked.wait_until_gone()


@pytest.mark.slow
def test_two_nodes_and_one_of_them_is_lost(cli, marked, tmp_path, monkeypatch):
    """When one is killed in the middle, the other one trains everybody."""
    ours, theirs, log = tmp_path / "ray", tmp_path / "sequential", tmp_path / "2.log"
    run = [*RUN, "num_rounds=60", "algorithm.local_epochs=200"]
    with two_nodes(marked, tmp_path, monkeypatch) as (_, second, settings):
        process = marked.start(
            sys.executable, "-m", "fedgh.cli.train", *run, "executor=ray", *settings, f"hydra.run.dir={ours}"
        )
        wait_for(lambda: len(nodes_of(log)) == 2 and len(recorded(ours)) > 2, process)
        second.terminate()
        assert process.wait(300) == 0, log.read_text()
    assert len(nodes_of(log)) == 2
    assert "a worker of Ray is lost and replaced" in log.read_text()
    assert cli(*run, f"hydra.run.dir={theirs}").code == 0
    assert metrics(ours) == metrics(theirs)
    assert torch.equal(bits(ours), bits(theirs))


@pytest.mark.slow
def test_when_the_head_is_lost_the_run_ends_with_the_command_to_go_on(cli, marked, tmp_path, monkeypatch):
    run_dir, log = tmp_path / "ray", tmp_path / "2.log"
    run = [*RUN, "num_rounds=100000", "algorithm.local_epochs=20"]
    with two_nodes(marked, tmp_path, monkeypatch) as (first, _, settings):
        process = marked.start(
            sys.executable, "-m", "fedgh.cli.train", *run, "executor=ray", *settings, f"hydra.run.dir={run_dir}"
        )
        wait_for(lambda: len(recorded(run_dir)) > 2, process)
        first.kill()
        for pid in marked.alive():
            if b"gcs_server" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        assert process.wait(120) != 0
    assert re.search(
        rf"\nerror: (the head of Ray|this process was ended).*fedgh-train resume={run_dir}", log.read_text()
    )
    finished = checkpoints.load_newest(run_dir / "checkpoints")[0].server.round_index
    assert finished >= 2
    alone = ["executor=sequential", f"num_rounds={finished + 1}"]
    assert cli(f"resume={run_dir}", *alone).code == 0
