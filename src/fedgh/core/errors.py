"""The exceptions a caller may want to catch.

Every message says what was found, what was expected and what to type instead. The entry points print the message
without a traceback and exit with status 2.
"""

import difflib
from collections.abc import Iterable


class FedGHError(Exception):
    """Base of everything that a user's input can cause."""


class ConfigurationError(FedGHError):
    """A setting is outside its range, unknown, or does not fit the other settings."""


class InUseError(ConfigurationError):
    """Another process is writing to this directory."""


class DataError(FedGHError):
    """A data set is missing, half copied, of the wrong layout, or holds a corrupt record."""


class PartitionError(FedGHError):
    """A partition cannot be drawn as asked, for instance because a client would stay empty."""


class CheckpointError(FedGHError):
    """A checkpoint or recording is missing, damaged, or belongs to another model or data set."""


class StorageError(FedGHError):
    """A run's directory cannot be written to, for instance because the disk is full."""


class LostError(FedGHError):
    """What trains the clients is gone; the run can go on when it is back."""


class TrainingError(FedGHError):
    """Training produced something that must stop the run, for instance a non-finite update."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``" (did you mean X?)"`` for the closest choice, or an empty string."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
