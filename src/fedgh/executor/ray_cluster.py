"""Ray, for whoever wants it: connect to a cluster or start one here, and ask what it can hold.

Ray itself is imported only when one is wanted.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from tempfile import TemporaryFile
from typing import Any

from fedgh.core.errors import ConfigurationError, LostError

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that a cluster has to answer."""
LEAST_STORE_MIB = 75
"""Shared memory without which Ray does not start."""
HEAD_PATIENCE = 9.0
"""Seconds of silence after which a head counts as gone; Ray itself ends the process after 60, and its calls hang
until then."""
head_is_gone = False
"""Whether the cluster's head has been found to be gone; nothing is to be asked of Ray any more."""


def load(setting: str) -> Any:
    """Return the package.

    Args:
        setting: What wants it, in the config's words.

    Raises:
        ConfigurationError: If it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return import_module("ray")
    except ModuleNotFoundError as error:
        raise ConfigurationError(f'{setting} needs Ray ({error}); type: pip install "fedgh[ray]"') from error


def start(address: str | None, setting: str, **local: Any) -> bool:
    """Connect this process to a cluster, or start one here; what is connected already stays as it is.

    Args:
        address: Of a cluster, ``auto`` for the one that this machine is part of, None to start Ray here and now.
        setting: The setting that gives the address.
        **local: Arguments of ``ray.init`` for a start.

    Returns:
        Whether this call connected; who did so may end it with ``ray.shutdown``.

    Raises:
        ConfigurationError: If Ray is not installed or the cluster does not answer.
    """
    check_address(address, setting)
    ray = load(setting.rpartition(".")[0])
    if ray.is_initialized():
        return False
    local = {} if address else {"include_dashboard": False, **local}
    said = ""
    try:
        with _same_handler(signal.SIGTERM), _stderr() as told:
            if address not in (None, "auto", "local"):
                host, port = host_and_port(address)
                socket.create_connection((host, port), timeout=PATIENCE).close()  # Ray itself tries for ten minutes
            try:
                ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **local)
            finally:
                said = told()
    except (RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        if "AuthToken" in said or isinstance(error, getattr(ray.exceptions, "AuthenticationError", ())):
            raise ConfigurationError(
                f"Ray at {address or 'this machine'} answers, but asks for a token that this process lacks, as heads "
                f"do since Ray 2.60; type RAY_AUTH_MODE=token before this command as before `ray start` on every node, "
                "with one token on all of them in ~/.ray/auth_token or RAY_AUTH_TOKEN_PATH"
            ) from error
        raise ConfigurationError(
            f"Ray at {address or 'this machine'} does not answer: {str(error).strip().splitlines()[0]}; check "
            f"{setting}=<host:port>, or leave it out to start Ray here"
        ) from error
    return True


def check_address(address: str | None, setting: str) -> None:
    """Refuse what cannot be the address of a cluster.

    Raises:
        ConfigurationError: With what is expected.
    """
    if address in (None, "auto", "local"):
        return
    try:
        if not isinstance(address, str):
            raise ValueError
        host_and_port(address)
    except ValueError:
        raise ConfigurationError(
            f"{setting} must be <host:port>, such as 127.0.0.1:6379, auto for the cluster of this machine, or null to "
            f"start Ray here; got {address!r}"
        ) from None


def host_and_port(address: str) -> tuple[str, int]:
    """Take an address apart, also one with ``ray://`` before it.

    Raises:
        ValueError: If it is none.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    good = bare and not set(bare) & set("/ \t\n@[]") and (bare == host or ":" in bare)
    if (
        not good
        or (":" in bare and bare == host)
        or not port.isascii()
        or not port.isdigit()
        or not 0 < int(port) < 65536
    ):
        raise ValueError(address)
    return bare, int(port)


def await_head(doing: str) -> None:
    """Wait for the cluster's head to answer; to be done before calls of Ray that hang where it does not.

    Those are what starts or ends an actor, or asks what the machines have.

    Args:
        doing: What cannot go on, for the message.

    Raises:
        LostError: See :func:`check_head`.
    """
    while not check_head(doing):
        time.sleep(HEAD_PATIENCE / 3)


def check_head(doing: str) -> bool:
    """Notice that the cluster's head is gone, before Ray ends this process without a word, a minute after.

    Args:
        doing: What cannot go on, for the message.

    Returns:
        Whether it answers.

    Raises:
        LostError: If it has not answered for a while.
    """
    global _silent_since, head_is_gone
    head = load("executor=ray").get_runtime_context().gcs_address
    try:
        socket.create_connection(host_and_port(head), timeout=PATIENCE).close()
        _silent_since = None
        return True
    except OSError as error:
        now = time.monotonic()
        _silent_since = _silent_since or now
        if now - _silent_since < HEAD_PATIENCE:
            log.warning("the head of Ray at %s does not answer (%s)", head, error)
            return False
        _silent_since, head_is_gone = None, True
        raise LostError(
            f"the head of Ray at {head} does not answer any more ({error}), so {doing} cannot go on; what is finished "
            "is kept: start the head again, then go on"
        ) from error


_silent_since: float | None = None


@contextmanager
def _stderr() -> Iterator[Callable[[], str]]:
    """Hold back what Ray's native code writes to standard error; yields what gives it."""
    with TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)

        def told() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield told
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def _same_handler(number: int) -> Iterator[None]:
    """Keep a signal's handler: Ray puts its own in place of it."""
    before = signal.getsignal(number)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, before)


class Session:
    """A connection to Ray, which ends with its last holder if it began with the first; see :func:`start`."""

    def __init__(self, address: str | None, setting: str, **local: Any) -> None:
        if start(address, setting, **local):
            weakref.finalize(self, _shut_down)


def _shut_down() -> None:
    if not head_is_gone:
        import_module("ray").shutdown()


_sessions: weakref.WeakValueDictionary[str, Session] = weakref.WeakValueDictionary()


def session(address: str | None, setting: str, **local: Any) -> Session:
    """Return this process's session: a process has one connection to Ray, whoever asks; arguments as of `start`."""
    shared = _sessions.get("the only one")
    if shared is None:
        shared = _sessions["the only one"] = Session(address, setting, **local)
    return shared


def room(num_cpus: float, num_gpus: float) -> int:
    """Return how many workers of this size Ray's machines hold, busy ones included."""
    needed = {"CPU": num_cpus, "GPU": num_gpus}
    nodes = [node["Resources"] for node in load("executor=ray").nodes() if node["Alive"]]
    return sum(
        min((int(node.get(kind, 0) / amount + 1e-6) for kind, amount in needed.items() if amount > 0), default=1)
        for node in nodes
    )


def size() -> str:
    """Return what the machines have in all, for messages."""
    there = load("executor=ray").cluster_resources()
    return f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs"
