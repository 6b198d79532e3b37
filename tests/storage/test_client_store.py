"""Client states in memory and on disk: the same values, no file too many, and every damage named."""

import logging
import os
import random
import shutil
import tracemalloc
from dataclasses import dataclass, replace

import pytest
import torch

from fedgh.algorithm.fedavg import FedAvg
from fedgh.core.errors import CheckpointError, StorageError
from fedgh.core.types import Report, ServerState, Start
from fedgh.federation.round import initial_state, run_round
from fedgh.storage import durable
from fedgh.storage.checkpoint import Checkpoint, client_folder, load, load_newest, remove_leftovers, save
from fedgh.storage.client_store import ClientStore, Version, update_clients


def state_of(client_id, round_index, size=100):
    generator = torch.Generator().manual_seed(1000 * client_id + round_index)
    return {
        "control": torch.randn(size, generator=generator),
        "a/double": torch.randn(2, 3, generator=generator, dtype=torch.float64),
        "half": torch.randn(3, generator=generator).bfloat16(),
        "rounds": torch.tensor(round_index),
        "seen": torch.tensor([True, False]),
    }


def equal(left, right):
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def assert_holds(store, rounds, size=100):
    """``rounds``: for every client the round that wrote its state."""
    assert dict.fromkeys(store) == dict.fromkeys(rounds)
    assert len(store) == len(rounds)
    for client_id, round_index in rounds.items():
        assert equal(store[client_id], state_of(client_id, round_index, size)), client_id


def files(folder):
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def run(folder, store, rounds, keep=2, cohort=3, num_clients=8, size=100):
    """Run these rounds, a checkpoint each; return the store and who was written when."""
    written = {client_id: int(store[client_id]["rounds"]) for client_id in store}
    for t in rounds:
        ids = random.Random(t).sample(range(num_clients), cohort)
        store = store.updated({k: state_of(k, t, size) for k in ids}, t)
        written |= dict.fromkeys(ids, t)
        save(checkpoint(store, t), folder, keep)
    return store, written


def checkpoint(clients, round_index):
    server = ServerState(round_index, torch.ones(4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), clients=clients)
    return Checkpoint(server, "seed: 1\n", "", {}, "", "")


@pytest.mark.parametrize("memory_limit", [0, 2000, 1 << 20])
def test_whatever_the_limit_the_states_are_the_same(tmp_path, memory_limit):
    """0: a file each from the first round on; 2,000 bytes: from some round on; 1 MiB: never."""
    store, written = run(tmp_path / "checkpoints", ClientStore(tmp_path / "clients", memory_limit), range(1, 10))
    assert_holds(store, written)
    assert bool(files(tmp_path / "clients")) == (memory_limit < 1 << 20)
    assert bool(store.resident) == (memory_limit == 1 << 20)
    again = load(tmp_path / "checkpoints" / "round_000009.ckpt").server.clients
    assert_holds(again, written)
    assert list(again[next(iter(again))]) == sorted(state_of(0, 0))  # names in one order, wherever a state was


def test_a_store_is_a_value(tmp_path):
    """What came of a round does not change what was before it, also when two rounds start from the same store."""
    for limit in (0, 1 << 20):
        before = ClientStore(tmp_path / str(limit), limit).updated({0: state_of(0, 1), 1: state_of(1, 1)}, 1)
        one = before.updated({1: state_of(1, 2)}, 2)
        other = before.updated({1: state_of(1, 3), 2: state_of(2, 3)}, 2)
        assert_holds(before, {0: 1, 1: 1})
        assert_holds(one, {0: 1, 1: 2})
        assert_holds(other, {0: 1, 1: 3, 2: 3})


def test_it_goes_to_files_for_good_once_all_states_take_more_than_the_limit(tmp_path):
    one = {"x": torch.zeros(250)}  # 1,000 bytes
    store = ClientStore(tmp_path, memory_limit=2000)
    store = store.updated({0: one}, 1).updated({1: one}, 2)
    assert (len(store.resident), files(tmp_path)) == (2, [])
    store = store.updated({2: one}, 3)
    assert (len(store.resident), len(files(tmp_path))) == (0, 3)
    small = {"x": torch.zeros(1)}
    store = store.updated({0: small, 1: small, 2: small}, 4)
    assert not store.resident
    assert equal(store[1], small)


def test_states_are_on_the_cpu_and_keep_no_cohort_alive(tmp_path):
    stacked = torch.randn(50, 100, requires_grad=True)
    shared = torch.randn(4)
    for limit in (0, 1 << 20):
        store = ClientStore(tmp_path / str(limit), limit)
        store = store.updated(
            {k: {"row": stacked[k], "column": stacked[:, k], "b": shared, "c": shared} for k in (3, 4)}, 1
        )
        assert torch.equal(store[3]["row"], stacked[3])
        assert torch.equal(store[4]["column"], stacked[:, 4])
        assert torch.equal(store[4]["c"], shared)
        for tensor in store[3].values():
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
            assert not tensor.requires_grad
            assert tensor.device.type == "cpu"


def test_empty_states_and_no_states(tmp_path):
    store = ClientStore(tmp_path / "clients", 0)
    assert (dict(store), 3 in store) == ({}, False)
    with pytest.raises(KeyError):
        store[3]
    assert not store.updated({}, 1)
    store = store.updated({3: {}, 4: {"none": torch.zeros(0, 2)}}, 2)
    assert (store[3], store[4]["none"].shape) == ({}, (0, 2))
    assert 3 in store
    assert update_clients({1: {}}, {2: {}}, 5) == {1: {}, 2: {}}


def test_only_the_files_that_kept_checkpoints_name_are_there(tmp_path):
    folder, clients = tmp_path / "checkpoints", tmp_path / "clients"
    store = ClientStore(clients, 0)
    for t in range(1, 15):
        store, _ = run(folder, store, [t])
        kept = [load(path).server.clients for path in folder.iterdir()]
        assert files(clients) == sorted(set().union(*(one.names() for one in kept)))
        assert len(kept) == min(t, 2)


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "notes.txt").write_text("mine")
    run(tmp_path / "checkpoints", ClientStore(tmp_path / "clients", 0), range(1, 6))
    assert "notes.txt" in files(tmp_path / "clients")


def test_the_checkpoint_holds_sixteen_bytes_a_client(tmp_path):
    folder = tmp_path / "checkpoints"
    few, many = (ClientStore(tmp_path / "clients", 0) for _ in range(2))
    few = few.updated({k: {"x": torch.tensor(1.0)} for k in range(10)}, 1)
    many = many.updated({k: {"x": torch.tensor(1.0)} for k in range(1010)}, 1)
    sizes = [save(checkpoint(store, 1), folder).stat().st_size for store in (few, many)]
    assert abs(sizes[1] - sizes[0] - 16 * 1000) < 500


def test_many_clients(tmp_path, monkeypatch):
    """2,000 clients, 20 a round: what a round writes and holds does not grow with their number."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    folder, clients = tmp_path / "checkpoints", tmp_path / "clients"
    store = ClientStore(clients, memory_limit=100_000)
    control = torch.arange(2500.0)
    store = store.updated({k: {"control": control + k} for k in range(2000)}, 1)
    save(checkpoint(store, 1), folder)
    assert len(files(clients)) == 2000
    changed = set()
    tracemalloc.start()
    for t in range(2, 5):
        ids = [(997 * (20 * t + k)) % 2000 for k in range(20)]
        store = store.updated({k: {"control": store[k]["control"] + 1} for k in ids}, t)
        save(checkpoint(store, t), folder)
        assert len(files(clients)) == 2020, "one checkpoint back, no more"
        changed.update(ids)
    resumed = load_newest(folder)[0].server.clients
    for k in [*random.Random(0).sample(range(2000), 200), *changed]:
        assert torch.equal(resumed[k]["control"], control + k + (k in changed)), k
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(resumed) == 2000
    assert peak < 10_000_000  # the states are 20 MB


def test_the_index_of_ten_thousand_clients(tmp_path):
    store = ClientStore(tmp_path / "clients", 0)
    store.versions = {k: Version(k % 500, (k * 2654435761) % 2**32) for k in range(10_000)}
    path = save(checkpoint(store, 500), tmp_path / "checkpoints")
    assert path.stat().st_size < 170_000
    content = torch.load(path, weights_only=True)["server"]["clients"]
    assert ClientStore.from_checkpoint(content, tmp_path / "clients").versions == store.versions


def test_a_state_is_read_once_and_few_are_held(tmp_path):
    store = ClientStore(tmp_path, memory_limit=3000)
    store = store.updated({k: {"x": torch.full((250,), float(k))} for k in range(10)}, 1)
    shutil.copytree(tmp_path, tmp_path.parent / "copy")
    for k in range(10):
        store[k]
    shutil.rmtree(tmp_path)
    assert [int(store[k]["x"][0]) for k in (7, 8, 9)] == [7, 8, 9]  # 3,000 bytes
    with pytest.raises(CheckpointError, match=r"the state of client 6 cannot be read .*No such file"):
        store[6]


def test_files_are_synced_before_the_checkpoint_that_names_them_gets_its_name(tmp_path, monkeypatch):
    folder, clients, synced = tmp_path / "checkpoints", tmp_path / "clients", []
    real = os.fsync

    def fsync(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}").removeprefix(f"{tmp_path}/"))
        assert not (folder / "round_000002.ckpt").exists() or "checkpoints" in synced[-1], "too late"
        real(handle)

    store, _ = run(folder, ClientStore(clients, 0), [1])
    monkeypatch.setattr(os, "fsync", fsync)
    _, _ = run(folder, store, [2])
    new = sorted(f"clients/{name}" for name in files(clients) if "@000002" in name)
    assert len(new) == 3
    assert sorted(synced[:3]) == new, "not only those of this round"
    assert synced[3:5] == ["clients", ""] or synced[3:5] == ["clients", str(tmp_path)]
    assert synced[5:7] == ["checkpoints/round_000002.tmp", "checkpoints"]


def test_between_two_checkpoints_only_what_the_next_one_names_is_synced(tmp_path, monkeypatch):
    store = ClientStore(tmp_path / "clients", 0)
    for t in range(1, 6):
        store = store.updated({0: state_of(0, t), t: state_of(t, t)}, t)
    count = []
    monkeypatch.setattr("fedgh.storage.client_store.sync_all", lambda paths: count.append(len(list(paths))))
    save(checkpoint(store, 5), tmp_path / "checkpoints")
    save(checkpoint(store, 6), tmp_path / "checkpoints")
    assert count == [6]
    assert len(files(tmp_path / "clients")) == 6


@pytest.mark.parametrize("how", ["flip", "truncate", "empty", "remove"])
def test_a_client_file_that_is_not_what_it_was_costs_one_checkpoint(tmp_path, caplog, how):
    folder = tmp_path / "checkpoints"
    _, written = run(folder, ClientStore(tmp_path / "clients", 0), range(1, 6))
    before = dict(load(folder / "round_000004.ckpt").server.clients)
    (k, *_) = [k for k, t in written.items() if t == 5]
    (path,) = (tmp_path / "clients").glob(f"{k:06d}@000005-*")
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[-5] ^= 1
    path.write_bytes({"flip": content, "truncate": content[:-8], "empty": b"", "remove": b""}[how])
    if how == "remove":
        path.unlink()
    message = rf"checkpoint .*round_000005.ckpt cannot be used: the state of client {k} .*{path.name}"
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder / "round_000005.ckpt")
    assert "\n" not in str(caught.value)
    with caplog.at_level(logging.WARNING, "fedgh"):
        restored, path = load_newest(folder)
    assert path.name == "round_000004.ckpt"
    assert len(caplog.records) == 1
    assert all(equal(restored.server.clients[k], state) for k, state in before.items())


def test_a_damaged_state_is_noticed_when_it_is_read_too(tmp_path):
    store = ClientStore(tmp_path, 0).updated({5: state_of(5, 1)}, 1)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"the state of client 5 in .*000005@000001-.* is damaged"):
        store[5]


def test_a_run_directory_takes_its_clients_along(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    _, written = run(folder, ClientStore(tmp_path / "run" / "clients", 0), range(1, 6))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "run").rename(tmp_path / "moved")
    for name in ("copy", "moved"):
        restored = load_newest(tmp_path / name / "checkpoints")[0].server.clients
        assert_holds(restored, written)
        assert restored.folder == tmp_path / name / "clients"
    shutil.rmtree(tmp_path / "copy" / "clients")
    message = (
        r"cannot be used: .*copy/clients/.*No such file or directory; a run directory .* takes its folder clients/"
    )
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "copy" / "checkpoints" / "round_000005.ckpt")


def test_what_a_store_holds_after_a_resume_with_another_limit(tmp_path):
    folder = tmp_path / "checkpoints"
    store, written = run(folder, ClientStore(tmp_path / "clients", 1 << 20), range(1, 4))
    assert not files(tmp_path / "clients")
    store = ClientStore.of(load_newest(folder)[0].server.clients, tmp_path / "clients", memory_limit=0)
    assert_holds(store, written)
    store, written = run(folder, store, range(4, 6))
    assert len(files(tmp_path / "clients")) >= len(written)
    store = ClientStore.of(load_newest(folder)[0].server.clients, tmp_path / "clients", memory_limit=1 << 30)
    store, written = run(folder, store, range(6, 8))
    assert_holds(store, written)
    assert_holds(ClientStore.of({3: state_of(3, 1)}, tmp_path / "clients"), {3: 1})


class KilledError(BaseException):
    """What SIGKILL would do, at the n-th call of the system."""


@pytest.mark.parametrize("keep", [1, 2])
def test_killed_at_any_moment_and_resumed_no_state_is_lost_and_no_file_left(tmp_path, monkeypatch, keep):
    """Killed before every single write, rename, sync and removal of three rounds, once each."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    straight, folder = tmp_path / "straight", tmp_path / "killed" / "checkpoints"
    _, written = run(straight / "checkpoints", ClientStore(straight / "clients", 0), range(1, 7), keep)
    at = 0
    while True:
        at += 1
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        store, _ = run(folder, ClientStore(tmp_path / "killed" / "clients", 0), range(1, 3), keep)
        with monkeypatch.context() as patch:
            steps = iter(range(1, 10_000))
            patch.setattr(os, "fsync", dying(lambda handle: None, steps, at))
            for name in ("replace", "unlink", "write_bytes"):
                patch.setattr(f"pathlib.Path.{name}", dying(getattr(type(folder), name), steps, at))
            patch.setattr(torch, "save", dying(torch.save, steps, at))
            patch.setattr("fedgh.storage.client_store.sync_all", lambda paths: [durable.sync(p) for p in paths])
            try:
                run(folder, store, range(3, 6), keep)
            except KilledError:
                pass
            else:
                break
        resumed, _ = load_newest(folder)
        clients = ClientStore.of(resumed.server.clients, client_folder(folder), 0)
        remove_leftovers(folder, clients)
        named = set().union(*(load(path).server.clients.names() for path in folder.glob("*.ckpt")))
        assert set(files(tmp_path / "killed" / "clients")) == named, at
        store, _ = run(folder, clients, range(resumed.server.round_index + 1, 7), keep)
        assert_holds(store, written)
        assert files(tmp_path / "killed" / "clients") == files(straight / "clients"), at
        assert sorted(os.listdir(folder)) == sorted(os.listdir(straight / "checkpoints"))
    assert at > 50


def dying(function, steps, at):
    def call(*arguments, **settings):
        if next(steps) == at:
            raise KilledError
        return function(*arguments, **settings)

    return call


def test_orphans_of_an_abandoned_round_go_on_resume(tmp_path):
    folder, clients = tmp_path / "checkpoints", tmp_path / "clients"
    store, _ = run(folder, ClientStore(clients, 0), range(1, 4))
    named = files(clients)
    store.updated({k: state_of(k, 4) for k in range(8)}, 4)
    (clients / f".{named[0]}.tmp").write_bytes(b"half")
    assert len(files(clients)) == len(named) + 9
    remove_leftovers(folder, load_newest(folder)[0].server.clients)
    assert files(clients) == named


def test_nothing_is_removed_while_a_kept_checkpoint_cannot_be_read(tmp_path):
    folder = tmp_path / "checkpoints"
    run(folder, ClientStore(tmp_path / "clients", 0), range(1, 4))
    path = folder / "round_000003.ckpt"
    content = path.read_bytes()
    path.write_bytes(content[:100])
    remove_leftovers(folder, load_newest(folder)[0].server.clients)
    path.write_bytes(content)
    assert load_newest(folder)[1] == path


def test_checkpoints_of_version_1_have_their_states_inside(tmp_path):
    folder = tmp_path / "checkpoints"
    states = {7: state_of(7, 1), 11: {}}
    path = save(checkpoint(states, 3), folder)
    content = torch.load(path, weights_only=True)
    content["version"] = 1
    torch.save(content, path)
    restored = load(path)
    assert_holds({7: restored.server.clients[7]}, {7: 1})
    store = ClientStore.of(restored.server.clients, client_folder(folder), 0)
    store = store.updated({11: state_of(11, 4)}, 4)
    save(replace(restored, server=replace(restored.server, round_index=4, clients=store)), folder)
    assert_holds(load_newest(folder)[0].server.clients, {7: 1, 11: 4})
    assert len(files(tmp_path / "clients")) == 2


@dataclass(frozen=True, kw_only=True)
class Remembering(FedAvg):
    """Trains on the sum of its own updates."""

    def prepare(self, client):
        first = {"sum": torch.zeros(15), "rounds": torch.zeros((), dtype=torch.int64)}
        return Start(client.received.params, client.received.buffers, {**first, **client.state})

    def local_loss(self, batch, forward, params, global_params, state):
        return super().local_loss(batch, forward, params, global_params, state) + 0.1 * (params @ state["sum"])

    def report(self, client, trained):
        state = trained.state
        return Report({"sum": state["sum"] + trained.update, "rounds": state["rounds"] + 1})


def test_a_federation_has_the_same_bits_in_memory_on_disk_and_resumed(make, tmp_path):
    def begin(name, memory_limit):
        federation = make.federation(num_clients=5, fraction=0.5, algorithm=make.algorithm(Remembering), seed=2)
        clients = ClientStore(tmp_path / name / "clients", memory_limit)
        return federation, replace(initial_state(federation.model), clients=clients)

    def go_on(name, federation, server, num_rounds):
        while server.round_index < num_rounds:
            server = run_round(federation, server).server
            save(replace(checkpoint({}, 0), server=server), tmp_path / name / "checkpoints")
        return server

    memory = go_on("memory", *begin("memory", 1 << 20), 6)
    disk = go_on("disk", *begin("disk", 0), 6)
    federation, server = begin("resumed", 0)
    server = go_on("resumed", federation, server, 4)
    run_round(federation, server)  # killed before the checkpoint of round 5
    (tmp_path / "resumed" / "checkpoints" / "round_000004.ckpt").write_bytes(b"damaged")
    server = load_newest(tmp_path / "resumed" / "checkpoints")[0].server
    assert server.round_index == 3
    resumed = go_on("resumed", federation, server, 6)
    assert (len(memory.clients.resident), len(disk.clients.resident)) == (len(disk.clients), 0)
    assert max(int(state["rounds"]) for state in memory.clients.values()) > 1
    for other in (disk, resumed):
        assert torch.equal(other.params, memory.params)
        assert set(other.clients) == set(memory.clients)
        assert all(equal(other.clients[k], state) for k, state in memory.clients.items())
    assert files(tmp_path / "resumed" / "clients") == files(tmp_path / "disk" / "clients")


@pytest.mark.parametrize("value", [0.5, None, [torch.ones(1)], torch.ones(2).to_sparse(), torch.ones(2) + 1j])
@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_a_state_of_something_else_is_refused(tmp_path, value, limit):
    message = rf"the state of client 3 holds a {type(value).__name__} as mu; .* must be dense real tensors by name"
    with pytest.raises(CheckpointError, match=message):
        ClientStore(tmp_path, limit).updated({3: {"x": torch.ones(1), "mu": value}}, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bool, torch.int8, torch.uint8, torch.float16])
def test_every_usual_type_comes_back(tmp_path, dtype):
    value = torch.arange(5).to(dtype)
    store = ClientStore(tmp_path, 0).updated({3: {"x": value}}, 1)
    assert store[3]["x"].dtype == dtype
    assert torch.equal(store[3]["x"], value)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(StorageError, match=r"cannot write .*000001@000001-\w+.safetensors: No space left on device"):
        ClientStore(tmp_path, 0).updated({1: state_of(1, 1)}, 1)


def full(path, content):
    raise OSError(28, "No space left on device")
