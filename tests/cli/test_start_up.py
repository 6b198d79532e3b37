"""What a command loads before it knows what it is asked for: a refusal needs neither PyTorch nor Lightning."""

import os
import subprocess
import sys

import pytest

HEAVY = (
    *("torch", "torchvision", "pytorch_lightning", "lightning_fabric", "torchmetrics", "wandb", "pandas", "pyarrow"),
    *("sklearn", "scipy", "matplotlib", "ray", "optuna", "joblib"),
)
CODE = f"""
import sys
from fedgh.cli import train
try:
    train.main()
finally:
    print("loaded:", *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--help"], 0, "fedgh-train"),
        (["--cfg", "job"], 0, "num_rounds: 50"),
        (["--info", "searchpath"], 0, "Config search path"),
        (["--shell-completion", "query=bash"], 0, "algorithm="),
        (["num_round=3"], 2, "did you mean num_rounds?"),
        (["algorithm=fedavgg"], 2, "did you mean fedavg?"),
        (["num_rounds=0"], 2, "num_rounds must be a positive integer"),
        (["logger=csv", "trainer.max_epochs=3"], 2, "trainer.max_epochs=3 is not read here"),
    ],
)
def test_help_and_refusals_load_nothing_heavy(words, status, says, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "COMP_LINE": "fedgh-train algor"},
    )
    assert done.returncode == status, done.stderr
    assert says in done.stdout + done.stderr
    (loaded,) = [line for line in done.stderr.splitlines() if line.startswith("loaded:")]
    assert loaded == "loaded:"
