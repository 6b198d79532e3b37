"""Federations small enough to work out by hand, and the command line inside this process."""

import gc
import logging
import os
import signal
import sys
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict
from torch import nn

from fedgh.aggregator.mean import Mean
from fedgh.algorithm.fedavg import FedAvg
from fedgh.cli import evaluate, report, train
from fedgh.config import entry
from fedgh.core.flat import FlatModel
from fedgh.core.seeding import numpy_generator
from fedgh.dataset.base import ImageDataset
from fedgh.executor.sequential import SequentialExecutor
from fedgh.federation import loop
from fedgh.federation.round import Federation
from fedgh.model.layers import Dropout
from fedgh.model.mlp import MLP
from fedgh.partition.base import Partition
from fedgh.sampler.uniform import Uniform
from fedgh.server_optimizer.sgd import SGD

THIRD_PARTY_WARNINGS = (
    "ignore:.*LeafSpec.*is deprecated:FutureWarning",  # Lightning's CombinedLoader, under PyTorch 2.9 and later
    "ignore:.*does not have many workers.*",  # Lightning, of a loader that yields clients
    "ignore:subprocess .* is still running:ResourceWarning",  # W&B's service, which ends when this process does
    "ignore:The `srun` command is available",  # Lightning, wherever SLURM is installed
)


def pytest_configure(config):
    for line in THIRD_PARTY_WARNINGS:
        config.addinivalue_line("filterwarnings", line)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a script; tests send it
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets its workers starve beside other tests
    torch.set_num_threads(1)  # threads that wait for each other cost tiny tensors ten times what they gain
    entry.quieten()  # a line per fit would drown what a failing test has to say


CONFIGS = Path(__file__).parents[1] / "configs"


class Normed(nn.Module):
    """Flattened pixels through a dense layer, BatchNorm and dropout: everything that has a state or draws a number."""

    def __init__(self, shape, num_classes, width=6):
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(shape.numel(), width), nn.BatchNorm1d(width), nn.ReLU(), Dropout(0.3)
        )
        self.plain_dropout = nn.Dropout(0.2)  # draws from PyTorch's own generator
        self.head = nn.Linear(width, num_classes)

    def features(self, x):
        return self.plain_dropout(self.body(x))

    def forward(self, x):
        return self.head(self.features(x))


def make_dataset(num_train=60, num_test=30, shape=(1, 2, 2), num_classes=3, seed=0, augmentation=None):
    generator = torch.Generator().manual_seed(seed)

    def split(count):
        labels = torch.arange(count) % num_classes
        images = torch.randint(0, 150, (count, *shape), generator=generator) + 40 * labels.view(-1, 1, 1, 1)
        return images.clamp(0, 255).to(torch.uint8), labels

    (train_images, train_labels), (test_images, test_labels) = split(num_train), split(num_test)
    names = tuple(str(c) for c in range(num_classes))
    statistics = (0.4,) * shape[0], (0.25,) * shape[0]
    return ImageDataset("toy", train_images, train_labels, test_images, test_labels, names, *statistics, augmentation)


def make_partition(dataset, owners, num_clients):
    labels = dataset.train_strata.numpy()
    return Partition.from_owners(labels, dataset.num_classes, owners, num_clients, {})


def make_trainer(**settings):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(**{"accelerator": "cpu", "devices": 1, "max_epochs": 1, **quiet, **settings})


def make_algorithm(kind=FedAvg, lr=0.1, momentum=0.0, local_epochs=1, batch_size=8, weight_decay=0.0, **settings):
    optimizer = partial(torch.optim.SGD, lr=lr, momentum=momentum, weight_decay=weight_decay)
    return kind(optimizer=optimizer, local_epochs=local_epochs, batch_size=batch_size, **settings)


@cache
def composed(*overrides):
    """Return one group's node as Hydra composes it, in plain containers."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return OmegaConf.to_container(compose(overrides=list(overrides)))


def choice(group, name, **settings):
    """Build ``configs/{group}/{name}.yaml``; ``settings`` replace keys that it has."""
    return instantiate({**composed(f"+{group}={name}")[group], **settings}, _convert_="all")


def make_federation(
    *,
    seed=1,
    num_clients=3,
    owners=None,
    dataset=None,
    module=None,
    algorithm=None,
    fraction=1.0,
    aggregator=None,
    server_optimizer=None,
    executor=SequentialExecutor,
    trainer=None,
    **settings,
):
    """Return a federation; by default three clients of logistic regression on 2 x 2 images."""
    dataset = dataset or make_dataset()
    if owners is None:
        owners = numpy_generator(seed, "owners").permutation(len(dataset.train_inputs)) % num_clients
    partition = make_partition(dataset, owners, num_clients)
    if module is None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = MLP(dataset.image_shape, dataset.num_classes, hidden=[])
    model, algorithm = FlatModel(module), algorithm or make_algorithm()
    indices = [torch.from_numpy(i) for i in partition.client_indices]
    return Federation(
        seed=seed,
        dataset=dataset,
        partition=partition,
        model=model,
        sampler=Uniform(fraction),
        algorithm=algorithm,
        executor=executor(
            trainer=trainer or make_trainer(),
            model=model,
            algorithm=algorithm,
            dataset=dataset,
            client_indices=indices,
            seed=seed,
        ),
        aggregator=aggregator or Mean(),
        server_optimizer=server_optimizer or SGD(lr=1.0),
        **settings,
    )


def make_normed(seed=1, shape=(1, 2, 2), num_classes=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Normed(torch.Size(shape), num_classes)


@pytest.fixture(scope="session")
def make():
    """Return the builders of small parts: ``make.federation(...)``, ``make.dataset(...)``, ..."""
    return SimpleNamespace(
        federation=make_federation,
        dataset=make_dataset,
        partition=make_partition,
        trainer=make_trainer,
        algorithm=make_algorithm,
        normed=make_normed,
        choice=choice,
        rule=partial(choice, "aggregator"),
    )


@dataclass
class Answer:
    """What a command left behind.

    Attributes:
        code: Exit status.
        out: Standard output.
        err: Standard error, warnings of the log included.
        log_dir: Where its runs are.
    """

    code: int
    out: str
    err: str
    log_dir: Path

    @property
    def run_dir(self):
        """The only run below ``log_dir``."""
        (run_dir,) = (self.log_dir / "train" / "runs").iterdir()
        return run_dir


def forget_hydra():
    """Leave no trace of a command: Hydra's singletons, and the log file that it opened."""
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    for handler in [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]:
        logging.getLogger().removeHandler(handler)
        handler.close()


@pytest.fixture
def in_round():
    """Return ``in_round(monkeypatch, number, action)``: act before that round, from 1, counted over a test's runs."""

    def patch(monkeypatch, number, action):
        real, count = loop.run_round, iter(range(1, 1000))

        def run_round(*arguments):
            if next(count) == number:
                action()
            return real(*arguments)

        monkeypatch.setattr(loop, "run_round", run_round)

    return patch


@pytest.fixture
def root_config():
    """Return ``root_config(*overrides, root="train")``: a root config as an entry point gets it, not yet resolved."""

    def composed(*overrides, root="train"):
        forget_hydra()
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = compose(root, overrides=["paths.output_dir=out", *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    yield composed
    forget_hydra()


@pytest.fixture
def cli(monkeypatch, tmp_path, capsys, caplog):
    """Return ``cli(*arguments, task="train")``: the real entry point, without the seconds that a new process takes."""
    monkeypatch.setenv("FEDGH_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def run(*arguments, task="train"):
        forget_hydra()
        monkeypatch.setattr(sys, "argv", [f"fedgh-{task}", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            {"train": train, "evaluate": evaluate, "report": report}[task].main()
        except SystemExit as end:
            code = end.code
        except KeyboardInterrupt:  # would end the tests; no command may end so
            code = -1
        finally:
            forget_hydra()
        out, err = capsys.readouterr()
        return Answer(code, out, err, tmp_path / "logs")

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)
    gc.collect()
