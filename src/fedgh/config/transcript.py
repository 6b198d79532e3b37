"""What a command prints, kept in its log file beside what it logs."""

from __future__ import annotations

import logging
import sys
from io import TextIOWrapper
from typing import Any, TextIO

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fedgh.storage.portable import homeless


class Transcript(Callback):
    """Hydra calls this around every job, see ``configs/hydra/default.yaml``.

    Logging goes to screen and file by Hydra's own handlers; this adds standard output, and the error a job ended with.
    """

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Begin to write standard output into the job's log files, too."""
        for handler, stream in _log_files():
            stream.reconfigure(errors="backslashreplace")  # whatever the locale can write
            handler.setFormatter(_Homeless(handler.formatter))
        sys.stdout = _Tee(sys.stdout)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:  # noqa: ARG002
        """End it; the error that the screen is about to show goes into the file."""
        if job_return.status is JobStatus.FAILED:
            keep(f"\nerror: {job_return._return_value}\n")  # the public property would raise it
        if isinstance(sys.stdout, _Tee):
            sys.stdout = sys.stdout.screen


class _Homeless(logging.Formatter):
    """Another formatter's text without the user's home: a run's log may be shared."""

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        self.inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        return homeless(self.inner.format(record))


class _Tee:
    """Standard output that is written to log files as well; all else is the screen's."""

    screen: TextIO

    def __init__(self, screen: TextIO) -> None:
        self.screen = screen.screen if isinstance(screen, _Tee) else screen  # of a job that ended by SystemExit

    def write(self, text: str) -> int:
        keep(text)
        return self.screen.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.screen, name)


def keep(text: str) -> None:
    """Write a text as it is into the log files that are open, in step with what is logged."""
    for handler, stream in _log_files():
        with handler.lock:  # type: ignore[union-attr]
            stream.write(homeless(text))
            handler.flush()


def _log_files() -> list[tuple[logging.FileHandler, TextIOWrapper]]:
    return [
        (handler, handler.stream)
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.FileHandler) and handler.stream is not None and not handler.stream.closed
    ]
