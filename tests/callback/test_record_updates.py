"""The recorder: chosen rounds, a size stated in advance and capped, all or nothing on the disk."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir

from fedgh import config
from fedgh.callback.record_updates import RecordUpdates
from fedgh.core.errors import ConfigurationError
from fedgh.core.updates import RowMemory
from fedgh.federation.loop import Schedule, train
from fedgh.federation.round import initial_state, run_round
from fedgh.recording.updates import read, read_gram, recording_of, write

# Lightning against a newer PyTorch; our loaders need no workers
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*does not have many workers")
SMALL = ["debug=default", "trainer=cpu", "model.hidden=[8]", "paths.output_dir=unused"]


def cfg(*overrides):
    with initialize_config_dir(config.CONFIG_DIR, version_base="1.3"):
        return config.resolve(compose("train", overrides=[*SMALL, *overrides]))


def recorder(folder, **changes):
    settings = {"rounds": None, "every": 1, "dtype": "float32", "max_gigabytes": 1.0, "output_dir": str(folder)}
    return RecordUpdates(**{**settings, **changes})


def schedule(num_rounds):
    return Schedule(num_rounds, evaluate_every=100, evaluate_batch_size=1000, checkpoint_every=100)


@pytest.fixture(scope="module")
def federation():
    return config.build_federation(cfg("server_optimizer=adam"))


@pytest.fixture(scope="module")
def start(federation):
    """The state before round 1, taken before anything is trained."""
    return initial_state(federation.model)


def record(federation, server, folder, num_rounds, **changes):
    callback = recorder(folder, **changes)
    callback.prepare(federation, schedule(num_rounds), server)
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text("seed: 1\n")
    silent = SimpleNamespace(record=lambda row: None)
    train(federation, server, schedule(num_rounds), silent, lambda server: None, [callback])
    return sorted((folder / "recording").iterdir())


def test_a_round_is_kept_whole(federation, start, tmp_path):
    (path,) = record(federation, start, tmp_path, 2, every=None, rounds=[2])
    assert path.name == "round_000002.safetensors"
    before = run_round(federation, start).server
    outcome = run_round(federation, before)
    recording = read(path)
    assert torch.equal(recording.updates.rows, outcome.result.updates.rows)
    assert recording.updates.blocks == outcome.result.updates.blocks
    assert torch.equal(recording.gram, outcome.gram)
    assert torch.equal(recording.block_grams, outcome.block_grams)
    assert torch.equal(recording.cohort.weights, outcome.weights)
    assert torch.equal(recording.cohort.losses, outcome.result.train_loss)
    assert torch.equal(recording.local_steps, outcome.result.local_steps)
    assert torch.equal(recording.num_examples, outcome.result.num_examples)
    assert recording.cohort.client_ids == outcome.result.client_ids
    assert (recording.cohort.seed, recording.cohort.round_index, recording.round) == (1, 1, 2)
    assert torch.equal(recording.before.params, before.params)
    assert recording.before.optimizer.keys() == before.optimizer.keys() == {"m", "v"}
    assert torch.equal(recording.before.optimizer["v"], before.optimizer["v"])
    assert recording.dataset == federation.dataset.fingerprint
    assert recording.partition == federation.partition.hash
    assert recording.config == "seed: 1\n"
    gram, cohort = read_gram(path)
    assert torch.equal(gram, outcome.gram)
    assert cohort.client_ids == outcome.result.client_ids


def test_rounds_and_every_add_up(federation, start, tmp_path):
    paths = record(federation, start, tmp_path, 5, every=4, rounds=[1, 4])
    assert [path.stem for path in paths] == ["round_000001", "round_000004"]


@pytest.mark.parametrize("rows", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_size_is_known_in_advance(federation, start, tmp_path, caplog, monkeypatch, dtype, rows):
    executor = federation.executor
    monkeypatch.setattr(executor, "row_dtype", rows)
    memory = RowMemory(executor.model.params.numel(), rows, executor.model.device)
    monkeypatch.setattr(executor, "_memory", memory)
    caplog.set_level(logging.INFO, "fedgh")
    paths = record(federation, start, tmp_path, 2, dtype=dtype)
    written = sum(path.stat().st_size for path in paths)
    stated = sum(recorder(tmp_path, dtype=dtype).size(federation, start, number) for number in (1, 2))
    assert 0 < written - stated < 2 * 4096  # the headers
    assert f"recording 2 rounds, {stated / 1e9:.3g} GB in all ({dtype}), 2 still to come" in caplog.text


def test_bfloat16_halves_the_rows_and_keeps_the_gram_matrix(federation, start, tmp_path):
    whole, half = (
        read(record(federation, start, tmp_path / dtype, 1, dtype=dtype)[0]) for dtype in ("float32", "bfloat16")
    )
    assert half.updates.rows.dtype == torch.bfloat16
    assert torch.equal(half.updates.rows, whole.updates.rows.bfloat16())
    assert torch.equal(half.gram, whole.gram)


def test_too_much_is_refused_before_training(federation, start, tmp_path):
    callback = recorder(tmp_path, max_gigabytes=1e-4)
    with pytest.raises(
        ConfigurationError,
        match=r"recording 50 rounds takes 0\.00\d+ GB, more than callback\.record_updates\.max_gigabytes=0\.0001; "
        r"record fewer rounds \(every=\.\.\., rounds=\[\.\.\.\]\), halve it with dtype=bfloat16, or raise the limit",
    ):
        callback.prepare(federation, schedule(50), start)
    assert list(tmp_path.iterdir()) == []


def test_rounds_outside_the_run_are_refused(federation, start, tmp_path):
    with pytest.raises(ConfigurationError, match=r"rounds asks for round 50 of a run of 20; .* raise num_rounds"):
        recorder(tmp_path, rounds=[1, 50]).prepare(federation, schedule(20), start)
    with pytest.raises(ConfigurationError, match=r"every=10 records nothing in a run of 2 rounds; lower it"):
        recorder(tmp_path, every=10).prepare(federation, schedule(2), start)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dtype": "float16"}, r"dtype must be one of float32, bfloat16, got 'float16'"),
        ({"every": None}, r"needs rounds or every, for instance .*rounds=\[1,10,50\]"),
        ({"every": 0}, r"every must be 1 or more rounds, or null, got 0"),
        ({"rounds": [0]}, r"rounds counts from 1, got \[0\]"),
        ({"max_gigabytes": 0}, r"max_gigabytes must be positive, got 0"),
    ],
)
def test_settings_are_checked(tmp_path, changes, text):
    with pytest.raises(ConfigurationError, match=rf"callback\.record_updates\.?\s?{text}"):
        recorder(tmp_path, **changes)


def test_a_disk_that_refuses_costs_the_recording_only(federation, start, tmp_path, caplog):
    (tmp_path / "recording").write_text("in the way")
    callback = recorder(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    callback(federation, start, run_round(federation, start), SimpleNamespace(round=1))
    assert "round 1 was not recorded: " in caplog.text
    assert "the run goes on" in caplog.text


def test_a_failed_write_leaves_no_half_a_file(federation, start, tmp_path, caplog, monkeypatch):
    from safetensors import SafetensorError

    from fedgh.recording import updates as recording

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(recording, "save_file", full)
    assert record(federation, start, tmp_path, 1) == []
    assert "round 1 was not recorded: No space left on device" in caplog.text


def test_the_choice_adds_to_the_default_callbacks():
    chosen = cfg(
        "callback=record_updates", "callback.record_updates.rounds=[1,2]", "callback.record_updates.every=null"
    )
    config.validate(chosen)
    assert set(cfg().callback) == set(chosen.callback) - {"record_updates"}
    (callback,) = [c for c in config.build_callbacks(chosen) if isinstance(c, RecordUpdates)]
    assert (callback.rounds, callback.every, callback.output_dir) == ([1, 2], None, "unused")


def test_a_custom_rules_memory_may_be_strided_and_share_storage(federation, start, tmp_path):
    """A transposed matrix, every other entry, two views of one storage: what a rule keeps is its own affair."""
    whole = torch.arange(12.0).view(3, 4)
    memory = {"turned": whole.T, "every_other": whole[:, ::2], "row": whole[1], "whole": whole}
    outcome = run_round(federation, start)
    recording = recording_of(federation, replace(start, aggregator=memory), outcome, "seed: 1\n")
    found = read(write(recording, tmp_path / "new", torch.float32)).before.aggregator
    assert found.keys() == memory.keys()
    for name, tensor in memory.items():
        assert torch.equal(found[name], tensor), name
