"""Runs from code."""

import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

import fedgh
from fedgh.core.errors import ConfigurationError, DataError

SMALL = ["logger=csv", "callback=none", "trainer=cpu", "num_rounds=2", "partition.num_clients=4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return fedgh.run([*SMALL, f"paths.output_dir={folder / 'a'}"])


def test_a_run_tells_what_it_did(run):
    assert run.config.algorithm._target_ == "fedgh.algorithm.fedavg.FedAvg"
    assert run.metrics()["round"].tolist() == [1, 2]
    assert run.summary["final/acc"] == run.metrics()["global/test/acc"].iloc[-1]
    assert run.partition.num_clients == run.config.partition.num_clients


def test_its_model_is_plain_and_scores_what_the_run_said(run):
    model = run.model()
    assert isinstance(model, nn.Module)
    assert not model.training
    from fedgh.dataset.digits import load

    data = load(1.0, None)
    found = (model(data.test_images).argmax(1) == data.test_labels).double().mean()
    assert float(found) == pytest.approx(run.summary["final/acc"], abs=1e-9)


def test_a_run_goes_on(tmp_path):
    first = fedgh.run([*SMALL, f"paths.output_dir={tmp_path / 'a'}"])
    assert len(first.resume("num_rounds=3").metrics()) == 3
    whole = fedgh.run([*SMALL, "num_rounds=3", f"paths.output_dir={tmp_path / 'b'}"])
    assert np.array_equal(whole.metrics()["global/test/loss"], fedgh.load(tmp_path / "a").metrics()["global/test/loss"])


def test_without_a_directory_there_is_a_new_one_each_time(tmp_path):
    one, two = (fedgh.run([*SMALL, "num_rounds=1", f"paths.log_dir={tmp_path}"]) for _ in range(2))
    assert one.path != two.path
    assert one.path.is_relative_to(tmp_path)


def test_an_interrupted_run_keeps_what_it_did(tmp_path, monkeypatch):
    from fedgh.federation import loop

    original = loop.run_round

    def interrupted(*arguments, **settings):
        os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **settings)

    monkeypatch.setattr(loop, "run_round", interrupted)
    with pytest.raises(KeyboardInterrupt, match="resume"):
        fedgh.run([*SMALL, f"paths.output_dir={tmp_path / 'a'}"])
    monkeypatch.undo()
    assert len(fedgh.load(tmp_path / "a").resume().metrics()) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["aggregator=fedhg"], "did you mean fedgh?"),
        (["algoritm=fedavg"], "did you mean algorithm"),
        (["num_rounds=-1"], "num_rounds"),
        (["a b"], "a b"),
        (["aggregator=mean,fedgh"], "one value"),
    ],
)
def test_mistakes_are_told_in_one_line(words, says, tmp_path):
    with pytest.raises(ConfigurationError) as error:
        fedgh.run([*words, f"paths.output_dir={tmp_path / 'a'}"])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not a run"):
        fedgh.load(tmp_path)


def test_personal_models_and_what_is_not_there(run, tmp_path):
    with pytest.raises(ConfigurationError, match="no weights of their own"):
        run.model(client=0)
    with pytest.raises(ConfigurationError, match="1 global model"):
        run.model(index=1)
    ditto = fedgh.run([*SMALL, "algorithm=ditto", f"paths.output_dir={tmp_path / 'd'}"])
    images = torch.zeros(1, 1, 8, 8)
    assert not torch.equal(ditto.model(client=0)(images), ditto.model(client=1)(images))
    with pytest.raises(ConfigurationError, match="counted from 0"):
        ditto.model(client=99)


def test_the_models_weights_are_its_own(run):
    one, two = run.model(), run.model()
    with torch.no_grad():
        next(one.parameters()).zero_()
    assert next(two.parameters()).abs().sum() > 0
    assert all(p.untyped_storage().size() == p.numel() * 4 for p in one.parameters())
