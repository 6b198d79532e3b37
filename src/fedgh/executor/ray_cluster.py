"""Ray, for whoever wants it: connect to a cluster or start one here, and ask what it can hold.

Ray itself is imported only when one is wanted.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from fedgh.core.errors import ConfigurationError

PATIENCE = 5.0
"""Seconds that a cluster has to answer."""


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
    ray = load(setting.rpartition(".")[0])
    if ray.is_initialized():
        return False
    try:
        if address not in (None, "auto", "local"):
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=PATIENCE).close()  # Ray itself tries for ten minutes
        local = {} if address else {"include_dashboard": False, **local}
        with _same_handler(signal.SIGTERM):
            ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **local)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"Ray at {address or 'this machine'} does not answer: {str(error).strip().splitlines()[0]}; check "
            f"{setting}=<host:port>, or leave it out to start Ray here"
        ) from error
    return True


@contextmanager
def _same_handler(number: int) -> Iterator[None]:
    """Keep a signal's handler: Ray puts its own in place of it."""
    before = signal.getsignal(number)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, before)


class Session:
    """A connection to Ray, which ends with its last holder if it began with the first; see :func:`start`."""

    def __init__(self, address: str | None, setting: str, **local: Any) -> None:
        if start(address, setting, **local):
            weakref.finalize(self, import_module("ray").shutdown)


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
