"""Replay: the run's own rule gives the run's own parameters to the bit; files that are wrong say so."""

import csv
import re
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from fedgh import config
from fedgh.cli import replay, train
from fedgh.config.rules import build_aggregators
from fedgh.core.errors import CheckpointError, DataError
from fedgh.core.updates import UpdateMatrix
from fedgh.federation.evaluation import Evaluation
from fedgh.recording.family import family_table, gram_from_csv, updates_of
from fedgh.recording.updates import find, read
from fedgh.storage import checkpoint

# Lightning against a newer PyTorch; our loaders need no workers
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*does not have many workers")
SMALL = ["debug=default", "trainer=cpu", "model.hidden=[8]", "num_rounds=3", "checkpoint.keep=9"]
RECORD = ["callback=record_updates", "callback.record_updates.every=1"]


def cfg(name, *overrides):
    with initialize_config_dir(config.CONFIG_DIR, version_base="1.3"):
        return compose(name, overrides=list(overrides))


def recorded(folder, *overrides):
    train.run(cfg("train", *SMALL, *RECORD, *overrides, f"paths.output_dir={folder}"))
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("run"), "server_optimizer=momentum")


@pytest.fixture
def copy(run_dir, tmp_path):
    """A recorded round that a test may damage."""
    return shutil.copy(run_dir / "recording" / "round_000002.safetensors", tmp_path / "round_000002.safetensors")


@pytest.fixture
def command(monkeypatch):
    """Call the entry point in process; forget Hydra's singletons afterwards."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedgh-replay", *arguments])
        replay.main()

    GlobalHydra.instance().clear()
    yield call
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


def replayed(source, out, *overrides):
    out.mkdir(exist_ok=True)
    replay.run(cfg("replay", f"recording={source}", *overrides, f"paths.output_dir={out}"))
    with (out / "replay.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_rule_of_the_run_gives_the_run_to_the_bit(run_dir, tmp_path, capsys):
    rows = replayed(run_dir, tmp_path)
    assert [(row["round"], row["rule"], row["same_as_run"]) for row in rows] == [
        (str(number), "fedgh", "yes") for number in (1, 2, 3)
    ]
    with (run_dir / "metrics.csv").open() as file:
        metrics = list(csv.DictReader(file))
    assert [row["acc"] for row in rows] == [row["global/test/acc"] for row in metrics]
    assert [row["loss"] for row in rows] == [row["global/test/loss"] for row in metrics]
    printed = capsys.readouterr().out
    assert "same_as_run" in printed
    assert f"written to {tmp_path / 'replay.csv'}" in printed


def test_the_next_parameters_are_those_of_the_checkpoint(run_dir):
    recording = read(run_dir / "recording" / "round_000002.safetensors")
    stored = replay.stored_config(recording, run_dir, [])
    federation, batch_size = config.build_federation(stored), stored.evaluation.batch_size
    rule = federation.aggregator
    aggregate = rule(recording.updates, recording.gram, recording.cohort, {})
    params, _ = federation.server_optimizer.step(recording.before.params, aggregate.update, recording.before.optimizer)
    saved = checkpoint.load(run_dir / "checkpoints" / "round_000002.ckpt").server
    assert torch.equal(params, saved.params)
    line, _ = replay.replay(federation, rule, recording, {}, batch_size)
    assert line["same_as_run"] == "yes"


def test_another_rule_gives_another_model(run_dir, tmp_path):
    rows = replayed(run_dir, tmp_path, "aggregator=mean")
    assert {row["same_as_run"] for row in rows} == {"no"}
    assert {row["rule"] for row in rows} == {"mean"}
    assert [float(row["norm_ratio"]) for row in rows] == pytest.approx([1, 1, 1])
    assert [float(row["coefficient_sum"]) for row in rows] == pytest.approx([1, 1, 1])


def test_the_gram_matrix_is_written_as_text_and_stands_for_the_round(run_dir, tmp_path, monkeypatch):
    rows = replayed(run_dir, tmp_path)
    recording = read(find(run_dir)[1])
    gram, cohort = gram_from_csv(tmp_path / "gram_round_000002.csv")
    assert torch.equal(gram, recording.gram)
    assert (cohort.client_ids, cohort.seed, cohort.round_index) == (recording.cohort.client_ids, 1, 1)
    assert torch.equal(cohort.weights, recording.cohort.weights)
    assert torch.equal(cohort.losses, recording.cohort.losses)
    (line,) = family_table(updates_of(gram), cohort, build_aggregators(["fedgh"]), gram)
    assert float(rows[1]["cosine_min"]) == pytest.approx(line["cosine_min"])
    monkeypatch.setattr(replay, "MOST_CLIENTS", 3)
    replayed(run_dir, tmp_path / "many")
    assert not list((tmp_path / "many").glob("gram*"))
    assert not list(tmp_path.rglob("*.png"))  # one rule is no family


@pytest.mark.parametrize("text", ["", "seed,round,client,weight,loss,0\n1,2,0,1.0,0.5\n", "a,b\n1,2\n"])
def test_a_gram_matrix_that_is_none_is_told(tmp_path, text):
    (tmp_path / "gram.csv").write_text(text)
    with pytest.raises(DataError, match=r"gram\.csv is no Gram matrix as fedgh-replay writes it .*; replay the round"):
        gram_from_csv(tmp_path / "gram.csv")


def test_a_rule_of_coordinates_has_no_coefficients(run_dir, tmp_path, capsys):
    (row,) = replayed(run_dir / "recording" / "round_000003.safetensors", tmp_path, "aggregator=median")
    assert (row["round"], row["coefficient_sum"]) == ("3", "nan")
    assert " - " in capsys.readouterr().out


def test_memory_is_the_run_s_too(tmp_path):
    source = recorded(tmp_path / "run", "aggregator=gradvac", "num_rounds=2", "server_optimizer=adam")
    assert read(find(source)[1]).before.aggregator.keys() == {"client_ids", "targets"}
    assert [row["same_as_run"] for row in replayed(source, tmp_path, "aggregator=gradvac")] == ["yes", "yes"]
    # the second round alone goes on with what the run remembered
    assert [row["same_as_run"] for row in replayed(find(source)[1], tmp_path, "aggregator=gradvac")] == ["yes"]


def test_bfloat16_rows_are_recorded_as_they_are_and_replay_to_the_bit(tmp_path):
    source = recorded(tmp_path / "run", "executor.row_dtype=bfloat16", "num_rounds=2")
    assert read(find(source)[0]).updates.rows.dtype == torch.bfloat16
    assert [row["same_as_run"] for row in replayed(source, tmp_path)] == ["yes", "yes"]


def test_running_statistics_are_those_after_the_round(run_dir, monkeypatch):
    recording = read(find(run_dir)[0])
    federation = config.build_federation(replay.stored_config(recording, run_dir, []))
    recording = replace(recording, buffers=torch.tensor([3.0]), counters=torch.tensor([7]))
    evaluated = []
    monkeypatch.setattr(
        replay,
        "evaluate",
        lambda model, server, *rest: (
            evaluated.append(server) or Evaluation({name: torch.zeros(1) for name in ("acc", "loss")})
        ),
    )
    replay.replay(federation, federation.aggregator, recording, {}, 1000)
    assert (evaluated[0].buffers.tolist(), evaluated[0].counters.tolist()) == ([3.0], [7])


def test_a_sweep_makes_one_table(run_dir, tmp_path, command, capsys):
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
    command(f"recording={run_dir}", "-m", "aggregator=mean,fedgh", f"hydra.sweep.dir={tmp_path}", *quiet)
    with (tmp_path / "replay.csv").open() as file:
        rows = [(row["round"], row["rule"], row["same_as_run"]) for row in csv.DictReader(file)]
    assert rows == [
        (str(number), rule, same) for number in (1, 2, 3) for rule, same in (("mean", "no"), ("fedgh", "yes"))
    ]
    pictures = [tmp_path / f"family_round_{number:06d}.png" for number in (1, 2, 3)]
    printed = "".join(f"drawn to {path}\n" for path in pictures)
    assert capsys.readouterr().out.endswith(f"written to {tmp_path / 'replay.csv'}\n{printed}")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert not list(tmp_path.rglob("*.tmp"))


def test_tables_of_jobs_that_finish_meanwhile_are_not_lost(tmp_path, monkeypatch):
    def job(number, rule):
        replay.write_table([{"round": 1, "rule": rule, "acc": 0.5}], tmp_path / str(number) / "replay.csv")

    job(10, "late")
    job(9, "early")
    write = replay.write_table

    def slow(lines, path):
        if path == tmp_path / "replay.csv" and not (tmp_path / "11").exists():
            job(11, "meanwhile")
        write(lines, path)

    monkeypatch.setattr(replay, "write_table", slow)
    assert [line["rule"] for line in replay.gather(tmp_path)] == ["early", "late", "meanwhile"]
    assert [line["rule"] for line in replay.read_table(tmp_path / "replay.csv")] == ["early", "late", "meanwhile"]


def test_no_recording_there(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"holds no file round_<t>\.safetensors; record a run first: fedgh-train callback=record"
    ):
        replayed(tmp_path, tmp_path)
    with pytest.raises(CheckpointError, match=r"recording=.*nowhere holds no file"):
        replayed(tmp_path / "nowhere", tmp_path)


def test_a_file_cut_short_is_named(copy, tmp_path):
    copy.write_bytes(copy.read_bytes()[:-100])
    with pytest.raises(
        CheckpointError, match=r"recording .*round_000002\.safetensors is damaged or cut short \(.*copy"
    ):
        replayed(copy, tmp_path)
    copy.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"round_000002\.safetensors is damaged or cut short"):
        replayed(tmp_path, tmp_path)


def test_a_changed_byte_is_found(copy, tmp_path):
    content = bytearray(copy.read_bytes())
    content[-1000] ^= 1
    copy.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"round_000002\.safetensors is damaged: wrong checksum of .*; copy it again"
    ):
        replayed(copy, tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "round_000001.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(
        CheckpointError, match=r"is not a recording that this program reads \(format None.*record the run"
    ):
        replayed(path, tmp_path)


def test_recordings_of_two_models_are_told_apart(run_dir, copy, tmp_path):
    other = recorded(tmp_path / "other", "model.hidden=[6]", "num_rounds=1")
    shutil.copy(other / "recording" / "round_000001.safetensors", tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"round_000002\.safetensors is of another model: parameter \S+ has shape \[.*8.*\] there and \[.*6.*\] "
        r"here; replay the recordings of one run at a time",
    ):
        replayed(tmp_path, tmp_path)


def test_another_data_set_is_told(run_dir, monkeypatch):
    recording = read(find(run_dir)[0])
    federation = config.build_federation(replay.stored_config(recording, run_dir, []))
    with pytest.raises(
        CheckpointError, match=r"is of another data set: fingerprint \w{12} there and 0123 here; the files"
    ):
        replay.check_fits(recording, find(run_dir)[0], federation.model, "0123")


def test_an_unknown_rule_lists_the_known_ones(run_dir, command, capsys):
    with pytest.raises(SystemExit, match="2"):
        command(f"recording={run_dir}", "aggregator=fedhg")
    message = capsys.readouterr().err
    assert "there is no aggregator=fedhg (did you mean fedgh?)" in message
    assert "Traceback" not in message


def test_a_recording_without_a_config_is_told(copy, tmp_path):
    from safetensors import safe_open

    with safe_open(copy, framework="pt") as file:
        metadata = {**file.metadata(), "config": ""}
    save_file(load_file(copy), copy, metadata)
    with pytest.raises(CheckpointError, match=r"round_000002\.safetensors holds no config; record the run again"):
        replayed(copy, tmp_path)


def test_a_rule_built_from_code_is_named_after_its_module(monkeypatch):
    monkeypatch.setattr(replay.HydraConfig, "initialized", lambda: False)
    for target, name in (("fedgh.aggregator.fedgh.FedGH", "fedgh"), ("theirs.rules.sharp.Sharp", "sharp")):
        assert replay.rule_name(OmegaConf.create({"aggregator": {"_target_": target}})) == name


def test_a_rule_is_named_as_it_was_chosen_with_its_own_settings(monkeypatch):
    """Another package's rule has a config of any name; settings of other parts are not its own."""
    typed = ["recording=x", "aggregator=sharp", "aggregator.power=2", "aggregator._target_=theirs.rules.blunt.Blunt"]
    hydra = SimpleNamespace(
        runtime=SimpleNamespace(choices={"aggregator": "sharp"}),
        overrides=SimpleNamespace(task=OmegaConf.create([*typed, "trainer=cpu"])),
    )
    monkeypatch.setattr(replay.HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(replay.HydraConfig, "get", lambda: hydra)
    cfg = OmegaConf.create({"aggregator": {"_target_": "theirs.rules.blunt.Blunt", "power": 2}})
    assert replay.rule_name(cfg) == "sharp power=2 _target_=theirs.rules.blunt.Blunt"


def test_of_several_parameters_that_differ_the_first_is_named(run_dir):
    recording = read(find(run_dir)[0])
    federation = config.build_federation(replay.stored_config(recording, run_dir, []))
    blocks = list(recording.updates.blocks)
    wrong = [replace(b, shape=torch.Size([*b.shape, 1])) if b is not blocks[0] else b for b in blocks]
    broken = replace(recording, updates=UpdateMatrix(recording.updates.rows, tuple(wrong)))
    first = min(b.name for b in wrong[1:])
    shape = next(list(b.shape) for b in blocks if b.name == first)
    message = f"parameter {first} has shape {[*shape, 1]} there and {shape} here"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        replay.check_fits(broken, run_dir, federation.model, federation.dataset.fingerprint)
