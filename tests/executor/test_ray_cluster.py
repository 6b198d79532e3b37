"""What is said where Ray cannot be reached, without a cluster."""

import os
import socket
from types import SimpleNamespace

import pytest

from fedgh.core.errors import ConfigurationError, LostError
from fedgh.executor import ray_cluster
from fedgh.executor.ray import RayExecutor


@pytest.mark.parametrize("address", [None, "auto", "local", "127.0.0.1:6379", "head:1", "ray://head:10001", "[::1]:80"])
def test_addresses(address):
    ray_cluster.check_address(address, "executor.address")


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "ray://",
            "ray://head",
            "head:",
            ":6379",
            "head:0",
            "head:65536",
            "head:x",
            "::1:80",
            "",
            "a b:1",
        ),
        *(6379, "http://head:80", "head:-1", "[head]:80", "head:6379/", "head:٣"),
    ],
)
def test_what_is_no_address_is_refused_at_once(address):
    with pytest.raises(ConfigurationError) as error:
        ray_cluster.check_address(address, "hydra.launcher.address")
    expected = (
        "hydra.launcher.address must be <host:port>, such as 127.0.0.1:6379, auto for the cluster of this machine"
    )
    assert str(error.value).startswith(expected)
    assert str(error.value).endswith(f"got {address!r}")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("executor.address=127.0.0.1", "executor.address must be <host:port>"),
        ("executor.object_store_mib=1", "executor.object_store_mib must be 75 or more, which is Ray's least, got 1"),
    ],
)
def test_refused_before_ray_is_asked(cli, monkeypatch, setting, message):
    monkeypatch.setattr(ray_cluster, "load", lambda setting: pytest.fail("Ray was wanted"))
    answer = cli("executor=ray", setting, "logger=csv", "callback=none", "trainer=cpu")
    assert answer.code == 2
    assert f"error: {message}" in answer.err


@pytest.fixture
def fake(monkeypatch):
    """Ray as a head on a port that listens, whose answer to ``init`` is an action."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        ray = SimpleNamespace(
            is_initialized=lambda: False,
            exceptions=SimpleNamespace(RayError=KeyError, AuthenticationError=PermissionError),
            get_runtime_context=lambda: SimpleNamespace(gcs_address=address),
        )
        monkeypatch.setattr(ray_cluster, "load", lambda setting: ray)
        yield ray, address, server


NATIVE = (
    b"gcs_client.cc:210: Unauthenticated: RPC error: InvalidAuthToken: Authentication token is missing or incorrect"
)


@pytest.mark.parametrize("says", [NATIVE, None], ids=["a head that refuses", "no token here"])
def test_a_head_that_asks_for_a_token_is_named_with_the_remedy(fake, capfd, says):
    ray, address, _ = fake

    def init(**settings):
        if says is None:
            raise PermissionError("RAY_AUTH_TOKEN_PATH is set but file cannot be opened")
        os.write(2, says)
        raise ConnectionError(f"Failed to connect to Ray cluster at {address}")

    ray.init = init
    with pytest.raises(ConfigurationError) as error:
        ray_cluster.start(address, "executor.address")
    assert str(error.value).startswith(f"Ray at {address} answers, but asks for a token that this process lacks")
    assert "type RAY_AUTH_MODE=token before this command as before `ray start` on every node" in str(error.value)
    assert "InvalidAuthToken" not in capfd.readouterr().err, "one line is enough"


def test_another_failure_of_ray_is_not_called_a_token(fake):
    ray, address, _ = fake

    def init(**settings):
        raise RuntimeError("version mismatch\nof all kinds")

    ray.init = init
    with pytest.raises(ConfigurationError, match=rf"Ray at {address} does not answer: version mismatch; check exec"):
        ray_cluster.start(address, "executor.address")


def test_a_head_that_is_gone_is_noticed_after_a_while(fake, monkeypatch, caplog):
    _ray, address, server = fake
    monkeypatch.setattr(ray_cluster, "head_is_gone", False)
    ray_cluster.check_head("the run")
    server.close()
    now = iter([100.0, 105.0, 100.0 + ray_cluster.HEAD_PATIENCE])
    monkeypatch.setattr(ray_cluster, "time", SimpleNamespace(monotonic=lambda: next(now)))
    for _ in range(2):
        ray_cluster.check_head("the run")
    assert caplog.text.count(f"the head of Ray at {address} does not answer") == 2
    with pytest.raises(LostError, match=rf"the head of Ray at {address} does not answer any more .*, so the run can"):
        ray_cluster.check_head("the run")


def test_who_needs_the_head_waits_until_it_answers_again_or_is_gone(fake, monkeypatch):
    """Hand-wound clock: three seconds a sleep."""
    _ray, address, server = fake
    monkeypatch.setattr(ray_cluster, "head_is_gone", False)
    now, back = [100.0], []

    def sleep(seconds):
        now[0] += seconds
        if len(back) < 1:
            back.append(socket.create_server(("127.0.0.1", int(address.partition(":")[2]))))

    monkeypatch.setattr(ray_cluster, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    ray_cluster.await_head("the run")
    assert now == [100.0], "it answers: nobody sleeps"
    server.close()
    ray_cluster.await_head("the run")
    assert now == [103.0]
    back[0].close()
    with pytest.raises(LostError, match="so the run cannot go on"):
        ray_cluster.await_head("the run")
    assert now == [112.0]
    assert ray_cluster.head_is_gone


def lost(doing):
    raise LostError(doing)


def test_no_worker_is_replaced_without_a_head(monkeypatch):
    """Ray would hang in it for a minute, and then end the process without a word."""
    monkeypatch.setattr(ray_cluster, "check_head", lost)
    ours = SimpleNamespace(_ray=SimpleNamespace(kill=lambda actor: pytest.fail("Ray was asked")))
    with pytest.raises(LostError):
        RayExecutor._replace(ours, SimpleNamespace(actor=None), RuntimeError("died"))


def test_the_head_is_asked_for_now_and_then_while_workers_train_on_without_it(monkeypatch):
    asked = []
    monkeypatch.setattr(ray_cluster, "check_head", asked.append)
    ours = SimpleNamespace(_ray=SimpleNamespace(wait=lambda tasks, timeout: (tasks, [])), _ask_head_at=0.0, _slots=[])
    for _ in range(3):
        assert RayExecutor._wait(ours, ["task"]) == ["task"]
    assert asked == ["the run"], "not at every task"
    ours._ask_head_at = 0.0
    monkeypatch.setattr(ray_cluster, "check_head", lost)
    with pytest.raises(LostError):
        RayExecutor._wait(ours, ["task"])


def test_the_documents_name_the_token():
    """In the yaml of the executor and of the launcher, and on the page of clusters."""
    from pathlib import Path

    from fedgh import config

    configs = Path(config.CONFIG_DIR)
    for path in ("executor/ray.yaml", "hydra/launcher/ray.yaml", "../docs/clusters.md"):
        assert "RAY_AUTH_MODE=token" in (configs / path).read_text()


@pytest.mark.parametrize(
    ("cpus", "gpus", "expected"),
    [
        (1, 0, 8 + 4),
        (1, 1, 2),  # the GPUs are scarce, and the second node has none
        (1, 0.5, 4),
        (1, 0.1, 8),  # now the cores of the first node are
        (5, 1, 1),  # what is left of two nodes is no worker
        (0, 1, 2),
        (0.1, 0, 80 + 40),
        (9, 0, 0),
        (0, 0, 2),
    ],
)
def test_workers_fit_by_what_is_scarcest_on_each_node(monkeypatch, cpus, gpus, expected):
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    monkeypatch.setattr(ray_cluster, "load", lambda setting: SimpleNamespace(nodes=lambda: nodes))
    assert ray_cluster.room(cpus, gpus) == expected
