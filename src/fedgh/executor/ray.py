"""Clients on worker processes of Ray: the cores and GPUs of one machine, or of a cluster."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
import warnings
import weakref
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from types import FrameType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgh.algorithm.base import Algorithm
from fedgh.client.view import ClientView
from fedgh.core.allocator import keep_freed_memory
from fedgh.core.device import precisions, restore_precisions
from fedgh.core.errors import ConfigurationError, FedGHError, LostError, TrainingError
from fedgh.core.types import ClientResult, ClientState, GlobalModel, Message, Report
from fedgh.executor import ray_cluster
from fedgh.executor.base import Executor
from fedgh.executor.sequential import SequentialExecutor

log = logging.getLogger(__name__)

WORTHWHILE = 0.03
"""Seconds of training that a call of a worker should hold, about; it costs milliseconds by itself."""
STARTING = -1
"""Stands for a row where a worker died before it had one."""
PATIENCE = 30.0
"""Seconds without any worker at work before the log says so."""


class RayExecutor(Executor):
    """Trains clients on Ray actors, each of which holds a sequential executor: one reused Trainer, the data, the model.

    Equal to the sequential executor in every bit on the same kind of hardware and with as many threads, whichever
    worker trains which clients and whoever is done first. Clients are handed out largest first, a few small ones at a
    time. Data and model travel once, the server's parameters once a round and node, updates back as bare memory. A
    worker that dies is replaced and its clients are trained again. Callbacks of the Trainer run in the workers.

    Args:
        address: Of a cluster, ``auto`` for the one that this machine is part of, None to start Ray here. A process has
            one connection to Ray; one that is there already is used.
        num_workers: None for as many as Ray's machines hold, at most one a client.
        cpus_per_worker: Cores that a worker holds.
        gpus_per_worker: GPUs that a worker holds; None for 1 if the model is on a GPU, else 0.
        threads_per_worker: Threads of PyTorch in a worker; None for ``cpus_per_worker``, at least 1.
        max_attempts: Times that a client is tried whose worker dies.
        object_store_mib: Shared memory of a local start; None for Ray's own choice.
        row_dtype: See :class:`~fedgh.executor.base.Executor`.
        **parts: See there; the Trainer here is never fitted, the workers get copies.

    Raises:
        ConfigurationError: If a number is out of its range.
    """

    may_end_the_process = True  # Ray does, when it loses its head or the node of this machine

    def __init__(
        self,
        address: str | None,
        num_workers: int | None,
        cpus_per_worker: float,
        gpus_per_worker: float | None,
        threads_per_worker: int | None,
        max_attempts: int,
        object_store_mib: int | None,
        row_dtype: str,
        **parts: Any,
    ) -> None:
        super().__init__(row_dtype=row_dtype, **parts)
        for name, count in (
            ("num_workers", num_workers),
            ("threads_per_worker", threads_per_worker),
            ("max_attempts", max_attempts),
            ("object_store_mib", object_store_mib),
        ):
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
                raise ConfigurationError(f"executor.{name} must be a positive integer, got {count!r}")
        if object_store_mib is not None and object_store_mib < ray_cluster.LEAST_STORE_MIB:
            raise ConfigurationError(
                f"executor.object_store_mib must be {ray_cluster.LEAST_STORE_MIB} or more, which is Ray's least, got "
                f"{object_store_mib}; leave it out for Ray's own choice"
            )
        ray_cluster.check_address(address, "executor.address")
        if not isinstance(cpus_per_worker, int | float) or not cpus_per_worker > 0:
            raise ConfigurationError(f"executor.cpus_per_worker must be positive, got {cpus_per_worker!r}; try 1")
        if gpus_per_worker is not None and (not isinstance(gpus_per_worker, int | float) or not gpus_per_worker >= 0):
            raise ConfigurationError(f"executor.gpus_per_worker must be 0 or more, got {gpus_per_worker!r}; try 0.5")
        self.address, self.num_workers, self.max_attempts = address, num_workers, max_attempts
        on_gpu = self.model.device.type == "cuda"
        self.resources = {
            "num_cpus": cpus_per_worker,
            "num_gpus": float(on_gpu) if gpus_per_worker is None else gpus_per_worker,
        }
        self.threads = threads_per_worker or max(1, int(cpus_per_worker))
        self.local = {} if object_store_mib is None else {"object_store_memory": object_store_mib << 20}
        self._slots: list[_Slot] = []
        self._session: ray_cluster.Session | None = None
        self._setup: Any = None
        self._seconds_per_step = self._ask_head_at = 0.0

    def open(self) -> None:
        """Connect to Ray and start the workers.

        Raises:
            ConfigurationError: If Ray is missing or does not answer, or if its machines cannot hold the workers.
        """
        if self._slots:
            return
        ray = ray_cluster.load("executor=ray")
        if (self.model.device.type == "cuda") != (self.resources["num_gpus"] > 0):
            raise ConfigurationError(
                f"executor.gpus_per_worker={self.resources['num_gpus']:g}, but this run is on {self.model.device}; "
                "leave it out, or choose another device: trainer=cpu or trainer=gpu"
            )
        session = ray_cluster.session(self.address, "executor.address", **self.local)
        room = ray_cluster.room(**self.resources)
        wanted = self.num_workers or max(1, min(room, len(self.client_indices)))
        if wanted > room:
            raise ConfigurationError(
                f"executor.num_workers={wanted} with {self._describe()} would wait for ever: Ray has "
                f"{ray_cluster.size()}, room for {room}; lower executor.num_workers, cpus_per_worker or gpus_per_worker"
            )
        self._ray, self._session, self._setup = ray, session, ray.put(self._pack())
        self._slots = [self._start() for _ in range(wanted)]
        self._dismiss = weakref.finalize(self, _dismiss, ray, self._slots)

    def playing(self, algorithm: Algorithm, purpose: str) -> Self:
        """See :meth:`fedgh.executor.base.Executor.playing`; the workers are those of this executor."""
        self.open()
        return super().playing(algorithm, purpose)

    def close(self) -> None:
        """End the workers, and Ray if it was started for them."""
        if self._slots:
            self._dismiss()
        self._setup = None
        self._session = None

    def shares(self, clients: Sequence[ClientView]) -> Iterator[list[int]]:
        """Yield the places that a worker trains in one call: the largest clients first, ever fewer at a time."""
        steps = [self.num_steps(client.client_id) for client in clients]
        waiting = deque(sorted(range(len(clients)), key=lambda place: (-steps[place], place)))
        share = sum(steps) / len(self._slots)
        least = min(share, WORTHWHILE / self._seconds_per_step if self._seconds_per_step else 0)
        left = sum(steps)
        while waiting:
            goal = left - max(least, left / (2 * len(self._slots)))
            places: list[int] = []
            while waiting and (left > goal or not places):
                places.append(waiting.popleft())
                left -= steps[places[-1]]
            yield places

    def train(self, clients: Sequence[ClientView], rows: Tensor) -> list[ClientResult]:
        """See :meth:`fedgh.executor.base.Executor.train`."""
        self.open()
        try:
            with _abandoned_by_sigterm():
                return self._train(clients, rows)
        except BaseException:
            self.close()  # what the workers still do is for nobody
            raise

    def _train(self, clients: Sequence[ClientView], rows: Tensor) -> list[ClientResult]:
        """Hand out clients and gather answers, until everybody has been trained."""
        ray, ids, t = self._ray, [client.client_id for client in clients], clients[0].round_index
        errors = ray.exceptions
        lost = (errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError)
        common = _common_message(clients)
        played = (self.algorithm, self.purpose) if self.purpose else None
        for_all = ray.put((t, tuple(map(_raw_model, clients[0].models)), _raw(common), played))
        work, again = self.shares(clients), deque[list[int]]()
        deaths: Counter[int] = Counter()
        results: list[ClientResult] = []
        while len(results) < len(ids):
            for slot in self._slots:
                if slot.task is None and (places := again.popleft() if again else sorted(next(work, []))):
                    own = [_Errand.of(clients[place], common) for place in places]
                    slot.rows, slot.task = places, slot.actor.train.remote(for_all, own)
            tasks = {slot.task: slot for slot in self._slots if slot.task is not None}
            for task in self._wait(list(tasks)):
                slot = tasks[task]
                places, slot.rows, slot.task = slot.rows, [], None
                try:
                    answer = ray.get(task)
                except errors.RayTaskError as error:
                    raise (error.cause if isinstance(error.cause, FedGHError) else error) from None
                except lost as error:
                    if getattr(error, "actor_init_failed", False):
                        reason = str(error).strip().splitlines()[-1]
                        raise TrainingError(f"a worker of Ray cannot start: {reason}") from error
                    self._replace(slot, error)
                    again.extend([place] for place in places)  # one at a time: who kills its worker is found
                    deaths.update(places or [STARTING])
                    self._check_deaths(deaths, ids, t, error)
                    continue
                if places:
                    results += self._write(answer, places, rows)
                else:
                    deaths[STARTING] = 0
                    log.info("a worker of Ray has started: %s", answer)
        return results

    def _wait(self, tasks: list[Any]) -> list[Any]:
        """Return the tasks that have ended, after a while perhaps none."""
        deadline, ended = time.monotonic() + PATIENCE, list[Any]()
        while not ended and time.monotonic() < deadline:
            ended = self._ray.wait(tasks, timeout=ray_cluster.PATIENCE)[0]
            if not ended or time.monotonic() > self._ask_head_at:  # workers train on without a head, for a minute
                ray_cluster.check_head("the run")
                self._ask_head_at = time.monotonic() + ray_cluster.PATIENCE
        if not ended and not any(slot.rows for slot in self._slots):
            ray_cluster.await_head("the run")
            log.warning(
                "no worker of Ray has been placed yet: %s each; Ray has %s", self._describe(), ray_cluster.size()
            )
            if not ray_cluster.room(**self.resources):
                raise LostError(
                    f"Ray has {ray_cluster.size()} left, too little for a worker with {self._describe()}; go on "
                    "when its machines are back"
                )
        return ended

    def _write(self, answer: Any, places: list[int], rows: Tensor) -> list[ClientResult]:
        """Copy the updates that :meth:`Worker.train` returned into their rows, and bring the rest to our device."""
        updates, results, seconds = answer
        for place, update in zip(places, updates, strict=True):
            rows[place] = update
        self._seconds_per_step = seconds / sum(result.local_steps for result in results)
        return [_moved(result, self.model.device) for result in results]

    def _start(self) -> _Slot:
        """Start a worker, which is at work until it is ready."""
        worker = self._ray.remote(Worker).options(**self.resources, scheduling_strategy="SPREAD")
        actor = worker.remote(self._setup)
        return _Slot(actor, actor.ready.remote())

    def _replace(self, slot: _Slot, error: Exception) -> None:
        ray_cluster.await_head("the run")  # with which its workers went
        log.warning("a worker of Ray is lost and replaced: %s", _first_line(error))
        self._ray.kill(slot.actor)
        self._slots[self._slots.index(slot)] = self._start()

    def _check_deaths(
        self, deaths: Counter[int], client_ids: Sequence[int], round_index: int, error: Exception
    ) -> None:
        """Give up on clients that kill every worker, and on workers that do not even start."""
        guilty = [row for row, count in deaths.items() if count >= self.max_attempts]
        if guilty:
            names = ", ".join(str(client_ids[row]) for row in sorted(guilty) if row >= 0)
            doing = f"training client{'s' if ',' in names else ''} {names}" if names else "starting"
            raise TrainingError(
                f"round {round_index + 1}: workers of Ray died {self.max_attempts} times while {doing}, which is "
                f"executor.max_attempts; the last time: {_first_line(error)}. Is there enough memory for "
                f"{len(self._slots)} workers? Lower executor.num_workers or algorithm.batch_size"
            )

    def _describe(self) -> str:
        return "executor.cpus_per_worker={num_cpus:g} and gpus_per_worker={num_gpus:g}".format(**self.resources)

    def _pack(self) -> dict[str, Any]:
        """Return what a worker builds its executor from."""
        dataset = self.dataset.take_test(torch.tensor([0]))  # nobody evaluates there
        return {
            "threads": self.threads,
            "flags": {name: getattr(torch.backends.cudnn, name) for name in ("benchmark", "deterministic")},
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "default_dtype": torch.get_default_dtype(),
            "precisions": precisions(),
            "dataset": (type(dataset), _raw({f.name: getattr(dataset, f.name) for f in fields(dataset)})),
            "lr_schedule": self.lr_schedule,
            "clients": (Raw(torch.cat(list(self.client_indices))), [len(rows) for rows in self.client_indices]),
            "parts": {
                "trainer": self.trainer,
                "model": self.model,
                "algorithm": self.algorithm,
                "seed": self.seed,
                "row_dtype": "bfloat16" if self.row_dtype == torch.bfloat16 else "float32",
            },
        }


@dataclass(eq=False)
class _Slot:
    """A worker as the driver sees it.

    Attributes:
        actor: Its handle.
        task: What it is at; None if it is free.
        rows: Rows of the cohort that it trains; none while it starts.
    """

    actor: Any
    task: Any
    rows: list[int] = field(default_factory=list)


class Worker:
    """The actor: a sequential executor in a process of its own.

    Args:
        setup: What :meth:`RayExecutor._pack` made.
    """

    def __init__(self, setup: dict[str, Any]) -> None:
        keep_freed_memory()
        torch.set_num_threads(setup["threads"])
        torch.set_default_dtype(setup["default_dtype"])
        restore_precisions(setup["precisions"])
        torch.use_deterministic_algorithms(setup["deterministic"])
        for name, value in setup["flags"].items():
            setattr(torch.backends.cudnn, name, value)
        rows, sizes = setup["clients"]
        kind, values = setup["dataset"]
        dataset = kind(**values).to(setup["parts"]["model"].device)
        self.executor = SequentialExecutor(dataset=dataset, client_indices=rows.split(sizes), **setup["parts"])
        self.executor.lr_schedule = setup["lr_schedule"]

    def ready(self) -> str:
        """Tell where the process is, once it has started."""
        ray = ray_cluster.load("executor=ray")
        return f"process {os.getpid()} on {socket.gethostname()}, node {ray.get_runtime_context().get_node_id()}"

    def train(
        self,
        for_all: tuple[int, tuple[GlobalModel, ...], Message, tuple[Algorithm, str] | None],
        errands: Sequence[_Errand],
    ) -> tuple[Raw, list[ClientResult], float]:
        """Train clients.

        Args:
            for_all: Round, global models, the message that everybody is sent, and what to play instead of the
                algorithm of the run, see :meth:`~fedgh.executor.base.Executor.playing`.
            errands: What concerns one client, by ascending id.

        Returns:
            Updates ``(clients, params)``, the rest of what each client gave, and seconds that it took.
        """
        started = time.perf_counter()
        round_index, models, common, played = for_all
        executor = self.executor if played is None else self.executor.playing(*played)
        clients = [
            executor.view(
                errand.client_id,
                round_index,
                {**common, **errand.message},
                errand.state,
                tuple(_moved_model(model, executor.model.device) for model in models),
                None if errand.version is None else _moved_model(errand.version, executor.model.device),
            )
            for errand in errands
        ]
        rows = executor.rows(len(clients))
        results = executor.in_order(clients, executor.train(clients, rows))
        return Raw(rows), [_raw_result(result) for result in results], time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class _Errand:
    """What a worker is told about one client.

    Attributes:
        client_id: Its id.
        message: What it alone is sent.
        state: What it kept.
        version: The model that it was sent, if that is not global model 0.
    """

    client_id: int
    message: Message
    state: ClientState
    version: GlobalModel | None

    @classmethod
    def of(cls, client: ClientView, common: Message) -> _Errand:
        own = {name: tensor for name, tensor in client.message.items() if name not in common}
        version = None if client.received is client.models[0] else _raw_model(client.received)
        return cls(client.client_id, _raw(own), _raw(client.state), version)


def _common_message(clients: Sequence[ClientView]) -> Message:
    """Return what everybody is sent: the very same tensors."""
    return {n: t for n, t in clients[0].message.items() if all(client.message.get(n) is t for client in clients)}


def _raw(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: Raw(value) if isinstance(value, Tensor) else value for name, value in values.items()}


def _raw_model(model: GlobalModel) -> Any:
    return GlobalModel(*map(Raw, (model.params, model.buffers, model.counters)))  # type: ignore[arg-type]


def _raw_result(result: ClientResult) -> ClientResult:
    report = Report(_raw(result.report.state), _raw(result.report.message), result.report.update_bytes)
    tensors = {name: Raw(getattr(result, name)) for name in ("buffers", "counters", "train_loss")}
    return replace(result, report=report, **tensors)  # type: ignore[arg-type]


def _moved(result: ClientResult, device: torch.device) -> ClientResult:
    state, message = ({n: t.to(device) for n, t in d.items()} for d in (result.report.state, result.report.message))
    tensors = {name: getattr(result, name).to(device) for name in ("buffers", "counters", "train_loss")}
    return replace(result, report=Report(state, message, result.report.update_bytes), **tensors)


def _moved_model(model: GlobalModel, device: torch.device) -> GlobalModel:
    return GlobalModel(model.params.to(device), model.buffers.to(device), model.counters.to(device))


class Raw:
    """A tensor on its way to other processes, as bare memory that those of a node share.

    It arrives as a plain tensor on the CPU, which must not be written to.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> tuple[Any, ...]:
        memory = self.tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()
        return _arrived, (memory, self.tensor.dtype, self.tensor.shape)


def _arrived(memory: NDArray[np.uint8], dtype: torch.dtype, shape: torch.Size) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is read-only
        return torch.from_numpy(memory).view(dtype).view(shape)


def _dismiss(ray: Any, slots: list[_Slot]) -> None:
    """End the workers; at the end of the process Ray may have gone before them."""
    if ray.is_initialized() and not ray_cluster.head_is_gone:
        for slot in slots:
            ray.kill(slot.actor)
    slots.clear()


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


@contextmanager
def _abandoned_by_sigterm() -> Iterator[None]:
    """Stop waiting for workers at SIGTERM, as Lightning stops a fit; the handler that was there hears of it first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        if callable(before):
            before(number, frame)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
