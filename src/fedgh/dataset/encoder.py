"""Frozen encoders: a network that was trained elsewhere maps every image to a vector, once.

A file of ours (safetensors) holds the weights in half precision and, as text, the name and settings of the model of
``fedgh.model`` that they belong to, how pixels are normalized, and how they came about. Nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgh.core.errors import ConfigurationError, DataError
from fedgh.core.seeding import torch_generator, torch_seed
from fedgh.dataset.augmentation import Augmentation
from fedgh.dataset.base import ImageDataset
from fedgh.model.base import Model

FORMAT = "fedgh-encoder-1"
TIMM = "timm:"
BATCH = 250


@dataclass(frozen=True)
class Encoder:
    """A frozen network.

    Attributes:
        features: Maps normalized float32 images ``(B, C, size, size)`` to ``(B, width)``.
        channels: C; grey images repeat their channel where it is 3.
        size: Height and width that images are brought to (bilinear).
        mean: Per channel on the [0, 1] scale.
        std: Likewise.
        hash: First 16 hexadecimal digits of the SHA-256 of the weights and of all that is above.
    """

    features: Callable[[Tensor], Tensor]
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    hash: str

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of uint8 images (N, C, H, W), float16 ``(N, width)``, computed in float32.

        Bits depend on the processor, the library and the number of threads, as those of any network; rounding to half
        precision hides most of the differences (of 1e-6) and not all.
        """
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        found = []
        for batch in torch.split(images, BATCH):
            pixels = batch.float() / 255
            if pixels.shape[1] != self.channels:
                pixels = pixels.mean(1, keepdim=True).expand(-1, self.channels, -1, -1)
            if pixels.shape[2:] != (self.size, self.size):
                pixels = F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
            pixels = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
            found.append(self.features(pixels).flatten(1).half())
        return torch.cat(found)


def open_encoder(name: str) -> Encoder:
    """Open a file of :func:`save_encoder`, or a pretrained model of timm.

    Args:
        name: A path, or ``timm:<model>``; timm's weights must be on this machine already, or come from its hub.

    Raises:
        DataError: If there is no such file, or it is not one of ours.
        ConfigurationError: If timm is not installed, or has no such model.
    """
    return _of_timm(name.removeprefix(TIMM)) if name.startswith(TIMM) else _of_file(Path(name).expanduser())


def _of_file(path: Path) -> Encoder:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about, weights = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if about.get("format") != FORMAT:
            raise DataError(f"{path} is no encoder of fedgh-encode; type dataset.encoder=<its file> or timm:<model>")
        shape, settings = json.loads(about["input_shape"]), json.loads(about["settings"])
        model = _model_class(about["model"])(shape, int(about["num_outputs"]), **settings).eval()
        model.load_state_dict({key: tensor.float() for key, tensor in weights.items()})
        mean, std = (tuple(json.loads(about[key])) for key in ("mean", "std"))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f"dataset.encoder={path} cannot be read as an encoder ({' '.join(str(error).split())[:200]}); type the "
            "file that fedgh-encode wrote, or timm:<model>"
        ) from error
    network = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Encoder(network.features, shape[0], shape[1], mean, std, about["hash"])


def _model_class(name: str) -> type[Model]:
    if not name.isidentifier():
        raise ValueError(f"no model is called {name!r}")
    module = import_module(f"fedgh.model.{name}")
    own = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    return next(kind for kind in own if issubclass(kind, Model))


def _of_timm(name: str) -> Encoder:
    try:
        import timm
    except ImportError as error:
        raise ConfigurationError(
            f"dataset.encoder={TIMM}{name} needs timm: pip install 'fedgh[timm]', or type the file of an encoder that "
            "fedgh-encode trained"
        ) from error
    if not re.fullmatch(r"[\w.]+", name):  # hf-hub:<anybody's model> would fetch what a stored config names
        raise ConfigurationError(f"dataset.encoder={TIMM}{name} must be the plain name of a model of timm.")
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0).eval()
    except Exception as error:  # whatever its hub and its registry raise
        reason = " ".join(str(error).split())[:200]
        raise ConfigurationError(f"dataset.encoder={TIMM}{name}: timm cannot give it here: {reason}") from error
    about: dict[str, Any] = timm.data.resolve_data_config({}, model=model)  # type: ignore[no-untyped-call, attr-defined]
    channels, size, _ = about["input_size"]
    digest = hashlib.sha256(repr((name, about["mean"], about["std"], about["input_size"])).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return Encoder(model, channels, size, tuple(about["mean"]), tuple(about["std"]), digest.hexdigest()[:16])


def save_encoder(path: Path, model: nn.Module, settings: Mapping[str, Any], dataset: ImageDataset, **about: str) -> str:
    """Write a trained model as an encoder; weights in half precision.

    Args:
        path: Ending in ``.safetensors``.
        model: Of ``fedgh.model``.
        settings: What it was built with, beside ``input_shape`` and ``num_outputs``.
        dataset: What it was trained on.
        about: Further notes for readers, such as ``command`` and ``accuracy``.

    Returns:
        Its hash, which notes do not change.
    """
    from safetensors.torch import save_file

    weights = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    fixed = {
        "format": FORMAT,
        "model": type(model).__module__.rpartition(".")[2],
        "settings": json.dumps(dict(settings)),
        "input_shape": json.dumps(list(dataset.input_shape)),
        "num_outputs": str(dataset.task.num_outputs),
        "mean": json.dumps(dataset.mean),
        "std": json.dumps(dataset.std),
    }
    digest = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path, {**fixed, **about, "hash": digest.hexdigest()[:16]})
    return digest.hexdigest()[:16]


def bf16_is_fast() -> bool:
    """Tell whether this processor has instructions for bfloat16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def train_encoder(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    bf16: bool,
    seed: int,
    report: Callable[[int, float, float], None],
) -> None:
    """Train a classifier as it is usually done: crops and flips, Nesterov momentum, one cycle of the learning rate.

    The same seed on the same machine, library and number of threads draws the same batches in the same order.

    Args:
        model: Trained in place; left in evaluation mode.
        dataset: Its train split is used; nothing else is looked at.
        epochs: Passes.
        batch_size: Images a step.
        lr: The largest rate, reached after a fifth of the steps.
        weight_decay: Of all parameters.
        bf16: Whether to compute in bfloat16 (autocast); weights stay in float32.
        seed: Of order and augmentation.
        report: Told after each epoch its number, the mean loss and the share of right answers, augmented.
    """
    augment = Augmentation(crop_padding=dataset.input_shape[1] // 8, flip=True, auto_augment=False)
    steps = -(-len(dataset.train_images) // batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=weight_decay, nesterov=True)
    total_steps = epochs * steps
    warm = 0.2 if total_steps > 5 else 0.5  # PyTorch divides by the steps of a part, less one
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(3, total_steps), pct_start=warm)
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    for epoch in range(epochs):
        generator = torch_generator(seed, "encoder", epoch)
        total, right = 0.0, 0
        for rows in torch.split(torch.randperm(len(dataset.train_images), generator=generator), batch_size):
            images = dataset.normalize(augment(dataset.train_images[rows], generator))
            targets = dataset.train_labels[rows]
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                outputs = model(images.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(outputs.float(), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
            right += int((outputs.argmax(1) == targets).sum())
        report(epoch, total / len(dataset.train_images), right / len(dataset.train_images))
    model.eval()


def initial(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a new model whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch_seed(seed, "init"))
        return factory()
