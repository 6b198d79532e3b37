"""Requests to stop: noted first, so that none is lost, and acted upon where that is safe."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger(__name__)


class StopRequest(AbstractContextManager["StopRequest"]):
    """Turns SIGINT and SIGTERM into a request to stop between rounds.

    The first Ctrl-C lets the round finish, the second one abandons it. SIGTERM abandons it after the
    clients in training: who sends it seldom waits.

    Attributes:
        signal: Number of the signal received, 0 for none.
    """

    signal = 0

    def __enter__(self) -> StopRequest:
        self.signal = noted()  # of a sweep that was asked to stop before this run had begun
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        if number == signal.SIGINT:
            log.warning("stopping after this round; press Ctrl-C again to abandon it")


class HeldSignals(AbstractContextManager["HeldSignals"]):
    """Holds SIGINT, SIGTERM and SIGHUP over all that a leader of jobs does: each is noted, then acted upon.

    Python runs a handler between any two instructions. What it raises inside a destructor or the callback of a weak
    reference is printed and dropped, and so would be a Ctrl-C between two jobs. What was noted is not lost:
    :func:`check` raises it again before the next job, and a run that begins is stopped before its first round.

    Args:
        act: Takes a signal's number, and whether one came before it; None to raise ``KeyboardInterrupt``, or for others
            than SIGINT ``SystemExit``.

    Attributes:
        noted: The first signal received, 0 for none.
        acting: Whether a signal is acted upon.
    """

    def __init__(self, act: Callable[[int, bool], None] | None = None) -> None:
        self.noted, self.acting, self.act = 0, True, act or _raise
        self._before: dict[int, Any] = {}

    def __enter__(self) -> HeldSignals:
        _held.append(self)
        if threading.current_thread() is threading.main_thread():
            for number in stopping_signals():
                before = signal.getsignal(number)
                if before is not signal.SIG_IGN:  # as nohup leaves it
                    self._before[number] = before
                    signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        _held.remove(self)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        again, self.noted = bool(self.noted), self.noted or number
        if self.acting:
            self.act(number, again)


_held: list[HeldSignals] = []


@contextmanager
def last_words(text: str) -> Iterator[None]:
    """Have a text printed to standard error if this process ends inside the context, however it ends.

    Ray ends its driver on the spot, without an exception, when the head or the node of this machine is lost.
    A shell that waits for the end of a pipe outlives that, and SIGKILL.
    """
    if os.name != "posix":
        yield
        return
    script = 'read -r said || printf "\\n%s\\n" "$1" >&2'
    waiting = subprocess.Popen(["/bin/sh", "-c", script, "sh", text], stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        waiting.communicate(b"\n")


def stopping_signals() -> list[int]:
    """Return the signals by which a process is asked to end, as far as this system has them."""
    return [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def as_exception(number: int) -> BaseException:
    """Return what a signal is raised as; the exit status of a process that it ends is 128 more than its number."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def _raise(number: int, again: bool) -> None:  # noqa: ARG001
    raise as_exception(number)


def noted() -> int:
    """Return the signal that the sweep of this process has received, 0 for none."""
    return _held[-1].noted if _held else 0


def check() -> None:
    """Raise the signal that the sweep of this process has received; what it raised when it came may have been lost."""
    if noted():
        raise as_exception(noted())
