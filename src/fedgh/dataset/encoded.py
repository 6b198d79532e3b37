"""Any image set, passed once through a frozen encoder and kept as features."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgh.core.errors import ConfigurationError, DataError
from fedgh.dataset.base import Dataset, ImageDataset, TensorDataset, take_fraction
from fedgh.dataset.encoder import open_encoder
from fedgh.dataset.parquet_columns import standardized
from fedgh.task.base import Task
from fedgh.task.classification import Classification
from fedgh.task.multi_task import MultiTask

NATURAL = ("client_ids", "test_client_ids", "domains", "test_domains")


def load(
    images: Callable[..., Dataset],
    encoder: str | Path | None,
    cache: str | Path,
    standardize: bool,
    train_fraction: float,
) -> TensorDataset:
    """Load a set as features; encode it if its features are not kept yet.

    The file of the features is named by the hash of the set and of the encoder: by the settings of the set and the
    names and contents of the files below its root, without looking into them. Splits, clients and domains stay.

    Args:
        images: The set, a ``load`` of another module with its settings; its augmentation is left out.
        encoder: File of ``fedgh-encode``, or ``timm:<model>``.
        cache: Folder where features are kept.
        standardize: Whether to bring every feature to mean 0 and standard deviation 1 of the train split.
        train_fraction: Stratified share of the train split to keep, of features that are kept already; see
            :func:`fedgh.dataset.base.take_fraction`.

    Returns:
        A data set of float32 vectors, ``(width,)``, for instance for ``model=mlp``.

    Raises:
        ConfigurationError: If no encoder is named, or the set is none of images with one or several labels.
        DataError: If the encoder, the images or the kept features cannot be read.
    """
    if encoder is None:
        raise ConfigurationError(
            "dataset.encoder is not set; train one by fedgh-encode dataset=cifar100 dataset.root=<folder>, then type "
            "dataset.encoder=<the file it wrote>, or dataset.encoder=timm:<model>"
        )
    opened = open_encoder(str(encoder))
    path = Path(cache).expanduser() / f"{_hash_of(images)}-{opened.hash}.safetensors"
    if not path.is_file():
        settings = _keywords(images)
        whole = images(**({"augmentation": None} if "augmentation" in settings else {}))
        if not isinstance(whole, ImageDataset) or not isinstance(whole.task, Classification | MultiTask):
            raise ConfigurationError(
                f"dataset=encoded needs images with labels, and dataset {whole.name} has none; type for instance "
                "dataset@dataset.images=cifar10"
            )
        if isinstance(whole.task, MultiTask) and whole.task.points:
            raise ConfigurationError("dataset=encoded keeps labels and no points; type dataset.images.points=null")
        _keep(path, whole, opened(whole.train_images), opened(whole.test_images), opened.hash)
    whole = _read(path)
    if standardize:
        train, test = standardized(whole.train_inputs.double().numpy(), whole.test_inputs.double().numpy())
        whole = replace(whole, train_inputs=train, test_inputs=test)
    return take_fraction(whole, train_fraction)


def _keywords(images: Callable[..., Any]) -> Mapping[str, Any]:
    return images.keywords if isinstance(images, partial) else {}


def _hash_of(images: Callable[..., Any]) -> str:
    """Return the hash of a set: of its loader, its settings, and what lies below its roots."""
    settings = dict(_keywords(images))
    settings.pop("augmentation", None)
    roots = {key: Path(str(settings.pop(key))).expanduser() for key in sorted(settings) if key.endswith("root")}
    settings.pop("download", None)
    target: Any = images.func if isinstance(images, partial) else images
    digest = hashlib.sha256(f"{target.__module__}.{target.__qualname__} {sorted(settings.items())!r}".encode())
    for key, root in roots.items():
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            digest.update(f"{key} {file.relative_to(root)}".encode())
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


def _keep(path: Path, whole: ImageDataset, train: Tensor, test: Tensor, encoder: str) -> None:
    from safetensors.torch import save_file

    task = whole.task
    names: Any = task.class_names if isinstance(task, Classification | MultiTask) else None
    tensors = {"train_inputs": train, "train_targets": whole.train_targets, "test_inputs": test}
    tensors |= {"test_targets": whole.test_targets}
    tensors |= {name: tensor for name in NATURAL if (tensor := getattr(whole, name)) is not None}
    about = {"name": whole.name, "class_names": json.dumps(names), "encoder": encoder, "images": whole.fingerprint}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # jobs of a sweep may encode at once
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside, about)
    aside.replace(path)


def _read(path: Path) -> TensorDataset:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        names = json.loads(about["class_names"])
        task: Task = (
            MultiTask({name: tuple(classes) for name, classes in names.items()})
            if isinstance(names, dict)
            else Classification(tuple(names))
        )
        inputs = {name: tensors.pop(name).to(torch.float32) for name in ("train_inputs", "test_inputs")}
        return TensorDataset(name=f"{about['name']}_encoded", task=task, **inputs, **tensors)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}); remove it to have the images encoded again") from error
