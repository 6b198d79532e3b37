"""What every partitioner returns, the checks it must pass, and the steps that partitioners share.

A partitioner is a callable ``(labels, num_classes, rng) -> Partition``; see :class:`Partitioner`. It sees the labels of
the official training split only, never a file, never the test split. Every partition of this package is exact, disjoint
and covering, and leaves no client empty: :func:`check` says so before a partition is handed out.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedgh.core.errors import CheckpointError, ConfigurationError, DataError, PartitionError

IntArray = NDArray[np.int64]

WAYS_OUT = (
    "try another seed, a larger partition.alpha, fewer partition.num_clients, "
    "a smaller partition.min_size or partition=dirichlet_guarded."
)


@dataclass(frozen=True, eq=False)
class Partition:
    """Which client holds which training sample.

    Attributes:
        client_indices: One sorted int64 array of sample indices per client.
        class_counts: Samples of each class at each client, int64 ``(clients, classes)``.
        parameters: What it was drawn with, plain numbers and strings; goes into the saved file as JSON.
        test_indices: Where clients own test samples, the sorted indices of each one's, possibly none; else ``None``.
    """

    client_indices: tuple[IntArray, ...]
    class_counts: IntArray
    parameters: Mapping[str, Any]
    test_indices: tuple[IntArray, ...] | None = None

    @classmethod
    def from_owners(
        cls, labels: IntArray, num_classes: int, owners: IntArray, num_clients: int, parameters: Mapping[str, Any]
    ) -> Partition:
        """Build and check a partition from the client that owns each sample.

        Args:
            labels: Class of each sample, ``(samples,)``, in ``0 .. num_classes - 1``.
            num_classes: Number of classes C.
            owners: Client of each sample, ``(samples,)``, in ``0 .. num_clients - 1``.
            num_clients: Number of clients K.
            parameters: See :class:`Partition`.

        Raises:
            PartitionError: If a client owns nothing, or a sample has no owner.
        """
        if owners.shape != labels.shape or (len(owners) and not 0 <= owners.min() <= owners.max() < num_clients):
            raise PartitionError(
                f"a partition names an owner between 0 and {num_clients - 1} for each of {len(labels)} samples; this "
                f"one has owners of shape {owners.shape}, from {owners.min()} to {owners.max()}"
            )
        flat = np.argsort(owners, kind="stable").astype(np.int64)  # ascending inside each client
        ends = np.cumsum(np.bincount(owners, minlength=num_clients))
        counts = np.bincount(owners * num_classes + labels, minlength=num_clients * num_classes)
        partition = cls(
            client_indices=tuple(np.split(flat, ends[:-1])),
            class_counts=counts.reshape(num_clients, num_classes).astype(np.int64),
            parameters=dict(parameters),
        )
        check(partition.client_indices, len(labels))
        return partition

    @property
    def num_clients(self) -> int:
        """Number of clients K."""
        return len(self.client_indices)

    @property
    def sizes(self) -> IntArray:
        """Samples per client n_k, ``(clients,)``."""
        return np.array([len(indices) for indices in self.client_indices], dtype=np.int64)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the sizes and the indices (little-endian int64), client by client, in hexadecimal digits."""
        digest = hashlib.sha256(self.sizes.astype("<i8").tobytes())
        for indices in self.client_indices:
            digest.update(indices.astype("<i8").tobytes())
        return digest.hexdigest()

    def card(self) -> str:
        """Describe the partition in a few lines of text, ready to print.

        Label entropy is that of one client's label distribution p_k, in bits, ``-sum_c p_kc log2 p_kc``; distance is
        total variation ``0.5 sum_c |p_kc - p_c|`` to the distribution p of all samples, 0 (IID) to 1. Both are plain
        means over clients.
        """
        shares = self.class_counts / np.maximum(self.class_counts.sum(axis=1, keepdims=True), 1)
        overall = self.class_counts.sum(axis=0) / max(int(self.class_counts.sum()), 1)
        entropy = -(shares * np.log2(np.where(shares > 0, shares, 1.0))).sum(axis=1)
        distance = 0.5 * np.abs(shares - overall).sum(axis=1)
        classes = (self.class_counts > 0).sum(axis=1)
        drawn_with = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        lines = [
            ("partition", drawn_with or "(parameters unknown)"),
            ("clients", f"{self.num_clients}, together {self.sizes.sum():,} samples of {len(overall)} classes"),
            ("samples per client", _spread(self.sizes)),
            ("classes per client", f"{_spread(classes)}, mean {classes.mean():.1f}"),
            ("label entropy", f"{entropy.mean():.2f} bits on average (at most {np.log2(len(overall)):.2f})"),
            ("distance to global", f"{distance.mean():.2f} on average (total variation, 0 to 1)"),
            ("hash", self.hash),
        ]
        return "\n".join(f"{name:<19} {text}" for name, text in lines)

    def save(self, path: str | Path) -> None:
        """Write the partition to one ``.npz`` file, replacing the file only once it is complete."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            test: dict[str, Any] = {} if self.test_indices is None else _packed(self.test_indices)
            np.savez_compressed(
                file,
                indices=np.concatenate(self.client_indices),
                offsets=np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64),
                class_counts=self.class_counts,
                parameters=np.array(json.dumps(dict(self.parameters))),
                hash=np.array(self.hash),
                **test,
            )
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Partition:
        """Read a partition back and verify its hash.

        Raises:
            CheckpointError: If the file is missing or damaged, or its indices do not give the hash stored beside them.
        """
        try:
            with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                client_indices = tuple(np.split(file["indices"], file["offsets"][1:-1]))
                own = np.split(file["test_indices"], file["test_offsets"][1:-1]) if "test_indices" in file else None
                parameters, test = json.loads(str(file["parameters"])), None if own is None else tuple(own)
                partition = cls(client_indices, file["class_counts"], parameters, test)
                stored = str(file["hash"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise CheckpointError(
                f"{path} cannot be read as a partition ({error}); delete it to have the partition drawn again."
            ) from error
        if partition.hash != stored:
            raise CheckpointError(
                f"{path} is damaged: its indices have hash {partition.hash[:12]}..., the file says {stored[:12]}...; "
                "delete it to have the partition drawn again."
            )
        return partition


class Partitioner(Protocol):
    """Contract of a partitioner: labels in, indices per client out.

    One with parameters ``client_ids``, ``test_client_ids``, ``domains`` or ``test_domains`` is given the data set's,
    ``(samples,)`` int64 or ``None``.
    """

    @property
    def num_clients(self) -> int:
        """Number of clients K."""

    def __call__(self, labels: IntArray, num_classes: int, rng: np.random.Generator) -> Partition:
        """Deal every sample to one client.

        Args:
            labels: Class of each training sample, int64 ``(samples,)``, in ``0 .. num_classes - 1``.
            num_classes: Number of classes C.
            rng: The only source of chance; same state, same partition.

        Raises:
            PartitionError: If no admissible partition can be drawn.
            DataError: If a label is outside its range.
        """


def check(client_indices: Sequence[IntArray], num_samples: int) -> None:
    """Check that a partition is exact, disjoint, covering and leaves no client empty.

    Args:
        client_indices: One index array per client.
        num_samples: Number of samples N; valid indices are ``0 .. N - 1``.

    Raises:
        PartitionError: Naming the empty clients, the foreign, the repeated or the missing samples.
    """
    empty = [client_id for client_id, indices in enumerate(client_indices) if len(indices) == 0]
    if empty or not client_indices:
        raise PartitionError(f"the partition leaves {_names(empty)} without samples; {WAYS_OUT}")
    flat = np.concatenate(client_indices)
    foreign = flat[(flat < 0) | (flat >= num_samples)]
    if len(foreign):
        raise PartitionError(
            f"the partition holds {_names(foreign, 'sample')}, but the data has {num_samples} samples."
        )
    held = np.bincount(flat, minlength=num_samples)
    if (held > 1).any():
        raise PartitionError(
            f"the partition gives {_names(np.flatnonzero(held > 1), 'sample')} to more than one place."
        )
    if (held == 0).any():
        raise PartitionError(f"the partition gives {_names(np.flatnonzero(held == 0), 'sample')} to nobody.")


def require(condition: bool, message: str) -> None:
    """Raise a :class:`ConfigurationError` with this message unless the condition holds."""
    if not condition:
        raise ConfigurationError(message)


def require_num_clients(num_clients: int) -> None:
    """Check ``partition.num_clients``."""
    require(
        isinstance(num_clients, int) and num_clients >= 1,
        f"partition.num_clients must be a whole number of at least 1, got {num_clients}; try 20.",
    )


def require_samples(labels: IntArray, num_classes: int, num_clients: int, min_size: int) -> IntArray:
    """Check the labels against the number of clients and return them as an int64 array ``(samples,)``."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or (len(labels) and not np.issubdtype(labels.dtype, np.integer)):
        raise DataError(f"labels must be whole numbers of shape (samples,), got {labels.dtype} {labels.shape}.")
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise DataError(f"labels must lie in 0 .. {num_classes - 1}, got {labels.min()} .. {labels.max()}.")
    if len(labels) < num_clients * min_size:
        raise PartitionError(
            f"{len(labels)} samples cannot give {num_clients} clients {min_size} each; "
            "use fewer partition.num_clients, a smaller partition.min_size or more data."
        )
    return labels.astype(np.int64)


def equal_owners(num_samples: int, num_clients: int, rng: np.random.Generator) -> IntArray:
    """Deal samples at random so that client sizes differ by at most one; returns owners, ``(samples,)``."""
    return rng.permutation(np.arange(num_samples, dtype=np.int64) % num_clients)


def owners_from_counts(labels: IntArray, counts: IntArray, rng: np.random.Generator) -> IntArray:
    """Shuffle each class and cut it into the given numbers; ``counts`` is ``(clients, classes)``."""
    owners = np.empty(len(labels), dtype=np.int64)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts.sum(axis=0))[:-1])
    for class_index, members in enumerate(by_class):
        owners[rng.permutation(members)] = np.repeat(np.arange(len(counts)), counts[:, class_index])
    return owners


def cut(shares: NDArray[np.float64], num_samples: int) -> IntArray:
    """Cut ``num_samples`` at ``floor(cumsum(shares) * num_samples)``; returns the piece sizes, ``(clients,)``.

    Shares are normalised by their sum as it was accumulated, so that it ends at 1 exactly: a last client of share 0 is
    not handed the sample that rounding would leave over. As the formula has it, cuts round down, so the last client of
    a share however small above 0 receives what the others' rounding leaves: at least one sample.
    """
    cumulative = np.cumsum(shares)
    cuts = np.floor(cumulative / cumulative[-1] * num_samples).astype(np.int64)
    pieces: IntArray = np.diff(cuts, prepend=0)
    return pieces


def redraw(draw: Callable[[], IntArray | None], min_size: int, max_redraws: int) -> tuple[IntArray, int]:
    """Draw counts ``(clients, classes)`` until every client has ``min_size`` samples.

    Args:
        draw: Draws once; ``None`` for a draw that came to nothing.
        min_size: Fewest samples per client.
        max_redraws: Further draws after the first before giving up.

    Returns:
        The accepted counts and the number of redraws they took.

    Raises:
        PartitionError: Naming the clients short of ``min_size`` in the last draw.
    """
    found = "all probability fell on clients that were already full"
    for redraws in range(max_redraws + 1):
        counts = draw()
        if counts is None:
            continue
        sizes = counts.sum(axis=1)
        if sizes.min() >= min_size:
            return counts, redraws
        short = np.flatnonzero(sizes < min_size)
        found = f"{_names(short)} had fewer than partition.min_size={min_size} samples"
    raise PartitionError(f"no partition found in {max_redraws + 1} draws; in the last, {found}; {WAYS_OUT}")


def _names(numbers: Sequence[int] | IntArray, noun: str = "client") -> str:
    """Name at most ten: ``clients 3, 7 and 12 more``."""
    shown = ", ".join(str(number) for number in numbers[:10])
    more = f" and {len(numbers) - 10} more" if len(numbers) > 10 else ""
    return f"{noun}{'' if len(numbers) == 1 else 's'} {shown}{more}"


def _packed(test_indices: Sequence[IntArray]) -> dict[str, IntArray]:
    offsets = np.cumsum([0, *(len(indices) for indices in test_indices)], dtype=np.int64)
    return {"test_indices": np.concatenate(test_indices), "test_offsets": offsets}


def _spread(values: IntArray) -> str:
    return f"min {values.min():,}, median {np.median(values):,.0f}, max {values.max():,}"
