"""Files of a trained model: weights or a whole program, what one must know to use them, and a model card."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fedgh.core.errors import ConfigurationError
from fedgh.export.model import TrainedModel


def write_model(model: TrainedModel, folder: Path, form: str, scores: dict[str, float]) -> list[Path]:
    """Write a model in one form, with ``model.json`` and ``README.md``, its card.

    Args:
        model: What :func:`~fedgh.export.model.trained_model` returned.
        folder: Made where it is missing.
        form: A key of :data:`FORMS`.
        scores: Closing numbers of the run, for the card.

    Returns:
        The files.

    Raises:
        ConfigurationError: If the form is unknown, needs a package that is missing, or the network does not fit it.
    """
    if form not in FORMS:
        raise ConfigurationError(f"format must be one of {', '.join(FORMS)}, got {form!r}")
    write, name, use = FORMS[form]
    folder.mkdir(parents=True, exist_ok=True)
    write(model, folder / name)
    about = {
        "file": name,
        "dataset": model.dataset,
        "class_names": list(model.class_names),
        "input_shape": list(model.example.shape[1:]),
        "input_dtype": str(model.example.dtype).removeprefix("torch."),
        "mean": list(model.mean),
        "std": list(model.std),
        "network": {key: value for key, value in model.settings["model"].items() if key != "_partial_"},
        "rounds": model.round,
        "scores": scores,
    }
    (folder / "model.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(model, name, use, scores), encoding="utf-8")
    return [folder / name, folder / "model.json", folder / "README.md"]


def _write_safetensors(model: TrainedModel, path: Path) -> None:
    """Write the network's state_dict; the normalization stands in model.json."""
    state = {name: tensor.contiguous() for name, tensor in model.module.network.state_dict().items()}
    save_file(state, path)


def _write_torch(model: TrainedModel, path: Path) -> None:
    """Write the whole program, normalization included."""
    torch.export.save(_program(model), path)


def _write_onnx(model: TrainedModel, path: Path) -> None:
    if missing := [package for package in ("onnx", "onnxscript") if find_spec(package) is None]:
        raise ConfigurationError(f"format=onnx needs {' and '.join(missing)}: pip install 'fedgh[onnx]'")
    exported = torch.onnx.export(
        _program(model), input_names=["inputs"], output_names=["outputs"], dynamo=True, verbose=False
    )
    assert exported is not None  # noqa: S101 - only where dynamo=False
    exported.save(str(path))


FORMS: dict[str, tuple[Callable[[TrainedModel, Path], None], str, str]] = {
    "safetensors": (
        _write_safetensors,
        "model.safetensors",
        "from safetensors.torch import load_file\n"
        "network = {network}\n"
        'network.load_state_dict(load_file("model.safetensors"))',
    ),
    "torch": (
        _write_torch,
        "model.pt2",
        'import torch\nmodel = torch.export.load("model.pt2").module()\noutputs = model(inputs)',
    ),
    "onnx": (
        _write_onnx,
        "model.onnx",
        'import onnxruntime\nsession = onnxruntime.InferenceSession("model.onnx")\n'
        'outputs = session.run(None, {"inputs": inputs.numpy()})[0]',
    ),
}
"""By name: how to write it, the file's name, and how to load it in three lines."""


def _program(model: TrainedModel) -> torch.export.ExportedProgram:
    """Return the model as a program for any number of inputs.

    Raises:
        ConfigurationError: If PyTorch cannot trace the network.
    """
    two = model.example.expand(2, *model.example.shape[1:]).contiguous()  # one would be taken for a constant
    try:
        return torch.export.export(model.module, (two,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # whatever tracing meets in a user's network
        reason = str(error).strip().splitlines()[0]
        raise ConfigurationError(
            f"PyTorch cannot export {type(model.module.network).__name__} as a program ({type(error).__name__}: "
            f"{reason}); format=safetensors writes its weights"
        ) from error


def _card(model: TrainedModel, name: str, use: str, scores: dict[str, float]) -> str:
    """Return a model card in Markdown."""
    settings, network = model.settings, model.settings["model"]
    kind = str(network["_target_"]).rpartition(".")[2]
    values = {key: value for key, value in network.items() if not key.startswith("_")}
    arguments = ", ".join(f"{key}={value!r}" for key, value in values.items())
    made = {key: str(settings[key]["_target_"]).rpartition(".")[2] for key in ("algorithm", "aggregator")}
    shape = " x ".join(map(str, model.example.shape[1:])) or "single numbers"
    inputs = f"`{str(model.example.dtype).removeprefix('torch.')}`, {shape}"
    if model.mean:
        where = "outside the file: (inputs - mean) / std" if name.endswith(".safetensors") else "in the file"
        inputs += f"; the normalization is {where}, mean {_short(model.mean)}, std {_short(model.std)} per channel"
    rows: dict[str, Any] = {
        "network": f"{kind}({arguments})",
        "data set": model.dataset,
        "trained by": f"{made['algorithm']} + {made['aggregator']}, {model.round} rounds, seed {settings['seed']}",
        "inputs": inputs,
        "outputs": ", ".join(model.class_names) if model.class_names else "numbers",
        **{key: f"{value:.4f}" for key, value in scores.items()},
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    code = use.replace("{network}", f"...  # a {network['_target_']}, or any module with the same parameter names")
    return (
        f"# {kind} on {model.dataset}\n\nTrained with FedGH, a federated learning template.\n\n| | |\n| --- | --- |\n"
        f"{table}\n\n## Use\n\n```python\n{code}\n```\n"
    )


def _short(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"
