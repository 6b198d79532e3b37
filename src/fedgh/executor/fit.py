"""One ``fit`` of a reused Trainer, as cheap as Lightning allows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CUDAAccelerator


def fit(trainer: pl.Trainer, module: pl.LightningModule, work: Iterable[Any]) -> None:
    """Let a module train every item of ``work`` in one step each, and let go of it afterwards.

    ``max_epochs`` moves on by one each time; otherwise a reused Trainer would silently skip every fit after the first.
    """
    trainer.fit_loop.max_epochs = trainer.current_epoch + 1
    loader = _Loader(work)
    on_gpu = isinstance(trainer.strategy.accelerator, CUDAAccelerator)
    with _device_kept(trainer) if on_gpu else nullcontext():
        trainer.fit(module, train_dataloaders=loader)
    loader.work = loader.items = ()  # the Trainer keeps the loader until the next fit, and with it a round's memory


@dataclass(slots=True)
class _Loader:
    """What Lightning asks of a loader, and nothing more."""

    work: Iterable[Any]
    items: Sequence[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        if self.items is None:  # inside the fit, where a signal finds Lightning ready
            self.items = list(self.work)  # a loader is asked for its first item twice
        return iter(self.items)


@contextmanager
def _device_kept(trainer: Any) -> Iterator[None]:
    """Keep Lightning from emptying the memory cache of a GPU, thrice a fit: the next round needs it again.

    It would also ask for the old setting of TF32, which fails where somebody has used the new one.
    """
    accelerator = trainer.strategy.accelerator
    instead = [
        (accelerator, "setup", lambda trainer: None),  # noqa: ARG005
        (accelerator, "setup_device", torch.cuda.set_device),
        (accelerator, "teardown", lambda: None),
        (trainer._checkpoint_connector, "resume_end", lambda: None),  # nothing was loaded
    ]
    for part, name, function in instead:
        setattr(part, name, function)
    try:
        yield
    finally:
        for part, name, _ in instead:
            delattr(part, name)
