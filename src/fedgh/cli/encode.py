"""Train a frozen encoder, ``fedgh-encode dataset=cifar100``, or encode a set, ``fedgh-encode dataset=encoded``."""

from __future__ import annotations

import sys
from pathlib import Path
from time import process_time

import torch
from omegaconf import DictConfig, OmegaConf

from fedgh import config
from fedgh.config.build import build_model
from fedgh.config.entry import launch
from fedgh.core.command import command, setting
from fedgh.core.errors import ConfigurationError
from fedgh.dataset.base import Dataset, ImageDataset
from fedgh.dataset.encoder import bf16_is_fast, initial, open_encoder, save_encoder, train_encoder

PRECISIONS = ("auto", "32", "bf16")


def main() -> None:
    """Entry point of ``fedgh-encode``."""
    launch(run, "encode")


def run(cfg: DictConfig) -> None:
    """Train an encoder on the chosen set and write it; or, with ``dataset=encoded``, encode that set and keep it.

    Raises:
        ConfigurationError: If a setting is out of its range, or the set has no images with one label each.
    """
    cfg = config.resolve(cfg)
    for key, low in (("epochs", 1), ("batch_size", 1), ("lr", 0), ("weight_decay", 0), ("seed", 0)):
        if isinstance(cfg[key], bool) or not isinstance(cfg[key], int | float) or cfg[key] < low:
            raise ConfigurationError(f"{key} must be a number of at least {low}, got {cfg[key]!r}")
    if str(cfg.precision) not in PRECISIONS:
        raise ConfigurationError(f"precision must be one of {', '.join(PRECISIONS)}, got {cfg.precision!r}")
    dataset: Dataset = config.build(cfg.dataset)
    if not isinstance(dataset, ImageDataset):
        sys.stdout.write(
            f"{dataset.name}: {len(dataset.train_inputs):,} training and {len(dataset.test_inputs):,} test examples, "
            f"{dataset.input_shape[0]:,} features\nhash            {dataset.fingerprint}\n"
        )
        return
    bf16 = cfg.precision == "bf16" or (cfg.precision == "auto" and bf16_is_fast())
    model = initial(lambda: build_model(config.build(cfg.model), dataset), cfg.seed)
    started = process_time()

    def report(epoch: int, loss: float, accuracy: float) -> None:
        sys.stdout.write(f"epoch {epoch + 1} of {cfg.epochs}: loss {loss:.3f}, training accuracy {accuracy:.1%}\n")
        sys.stdout.flush()

    settings = {key: OmegaConf.to_object(cfg.model)[key] for key in cfg.model if not str(key).startswith("_")}  # type: ignore[call-overload, index]
    train_encoder(
        model,
        dataset,
        epochs=cfg.epochs,
        batch_size=cfg.batch_size,
        lr=cfg.lr,
        weight_decay=cfg.weight_decay,
        bf16=bf16,
        seed=cfg.seed,
        report=report,
    )
    seconds, accuracy = process_time() - started, accuracy_of(model, dataset)
    path = Path(cfg.output or Path(cfg.paths.output_dir) / "encoder.safetensors")
    words = [word for word in config.typed_words() if config.key_of(word) not in ("dataset.root", "output")]
    about = {
        "command": command("fedgh-encode", *words),
        "trained_on": f"{dataset.name} {dataset.fingerprint}",
        "seed": str(cfg.seed),
        "accuracy": f"{accuracy:.4f}",
        "computed": f"{'bf16' if bf16 else 'float32'}, torch {torch.__version__}, threads {torch.get_num_threads()}",
    }
    digest = save_encoder(path, model, settings, dataset, **about)
    open_encoder(str(path))
    sys.stdout.write(
        f"accuracy        {accuracy:.2%} on the test split\ntime            {seconds:,.0f} processor seconds\n"
        f"hash            {digest}\nwritten to      {path}\n"
        f"use it          {command('fedgh-train', 'dataset=encoded', setting('dataset.encoder', path), 'model=mlp')}\n"
    )


@torch.no_grad()
def accuracy_of(model: torch.nn.Module, dataset: ImageDataset) -> float:
    """Return the share of right answers on the test split."""
    right = 0
    batches = (torch.split(tensor, 500) for tensor in (dataset.test_images, dataset.test_labels))
    for images, labels in zip(*batches, strict=True):
        outputs = model(dataset.normalize(images).contiguous(memory_format=torch.channels_last))
        right += int((outputs.argmax(1) == labels).sum())
    return right / len(dataset.test_labels)


if __name__ == "__main__":
    main()
