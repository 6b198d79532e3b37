"""What is exported gives the run's outputs in plain PyTorch, and elsewhere."""

import json
import re
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf

import fedgh
from fedgh.cli import export
from fedgh.core.errors import ConfigurationError
from fedgh.export import files


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    words = ["logger=csv", "callback=none", "trainer=cpu", "num_rounds=1", "partition.num_clients=4", "model=cnn2"]
    return fedgh.run([*words, f"paths.output_dir={folder / 'a'}"])


@pytest.fixture
def images():
    return torch.randint(0, 17, (5, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def write(run, folder, form, **more):
    cfg = {"run": str(run.path), "format": form, "client": None, "index": 0, "trust": [], **more}
    export.run(OmegaConf.create({**cfg, "paths": {"output_dir": str(folder)}}))
    return json.loads((folder / "model.json").read_text())


def code_of(folder):
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]


def test_weights_by_name_with_their_normalization(run, images, tmp_path):
    from safetensors.torch import load_file

    about = write(run, tmp_path, "safetensors")
    network = run.model().network
    network.load_state_dict({name: torch.zeros_like(t) for name, t in network.state_dict().items()})
    network.load_state_dict(load_file(tmp_path / about["file"]))
    mean, std = (torch.tensor(about[key]).view(-1, 1, 1) for key in ("mean", "std"))
    assert torch.allclose(network((images - mean) / std), run.model()(images), atol=1e-6)
    assert about["class_names"] == [str(digit) for digit in range(10)]
    assert about["input_shape"] == [1, 8, 8]
    assert "final acc" in (tmp_path / "README.md").read_text()


def test_a_program_needs_nothing_of_ours(run, images, tmp_path):
    write(run, tmp_path, "torch")
    torch.save(images, tmp_path / "images.pt")
    lines = code_of(tmp_path).strip().splitlines()
    assert len(lines) == 3
    code = "\n".join(["import sys, torch", "inputs = torch.load('images.pt')", *lines])
    code += "\ntorch.save(outputs, 'outputs.pt'); assert 'fedgh' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert torch.allclose(torch.load(tmp_path / "outputs.pt"), run.model()(images), atol=1e-6)


@pytest.mark.slow
def test_onnx_gives_the_same(run, images, tmp_path):
    pytest.importorskip("onnxruntime")
    write(run, tmp_path, "onnx")
    names = {"inputs": images}
    code = code_of(tmp_path).replace('"model.onnx"', repr(str(tmp_path / "model.onnx")))
    exec(code, names)
    assert torch.allclose(torch.from_numpy(names["outputs"]), run.model()(images), atol=1e-5)


def test_mistakes_are_told(run, tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match="format must be one of safetensors, torch, onnx"):
        write(run, tmp_path, "pickle")
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'fedgh\[onnx\]'"):
        write(run, tmp_path, "onnx")
