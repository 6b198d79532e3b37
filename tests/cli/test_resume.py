"""Which run goes on, whatever its directory is called and wherever it lies; and what may be said anew about it."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fedgh import config
from fedgh.cli import train
from fedgh.config.where import ready
from fedgh.core.command import setting
from fedgh.storage import checkpoint as checkpoints
from fedgh.tracking.recorder import read_csv

TINY = [
    *("num_rounds=1", "partition=iid", "partition.num_clients=2", "algorithm.local_epochs=1", "trainer=cpu"),
    *("dataset.train_fraction=0.05", "model.hidden=[2]", "executor=sequential", "logger=csv", "callback=none"),
]
NAMES = [
    "a b",
    "it's",
    'say "so"',
    "a#1",
    "ümläut",
    "a=b",
    "0",
    "007",
    "1e3",
    "null",
    "[x]",
    "(1) b",
    "a,b",
    "$x",
    "100%",
    "a${b}",
    "-\\ \n\\",
    "🙂" * 50,
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of one round, which writes tables, too."""
    folder = tmp_path_factory.mktemp("made") / "run"
    train.federate(
        config.compose([*TINY, "callback=default", "callback.cosine_picture=null", setting("paths.output_dir", folder)])
    )
    return folder


@pytest.fixture
def copied(made, tmp_path):
    """Return ``copied(name)``: the run once more, under a name of its own."""

    def copy(name="copy"):
        return Path(shutil.copytree(made, tmp_path / name))

    return copy


def tables_of(run_dir):
    return sorted(str(path.relative_to(run_dir)) for path in run_dir.rglob("*.parquet"))


@pytest.mark.parametrize("name", [*NAMES[::2], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1::2])])
def test_a_run_goes_on_under_any_name(cli, copied, made, monkeypatch, tmp_path, name):
    run_dir, before = copied(name), tables_of(made)
    monkeypatch.chdir(tmp_path)
    answer = cli(f"resume={name}" if name != "null" else setting("resume", name), "num_rounds=2")
    assert answer.code == 0, answer.err
    assert len(read_csv(run_dir / "metrics.csv")) == 2
    assert len(tables_of(run_dir)) == 2 * len(before)
    assert tables_of(made) == before, "the run that it was copied from is left alone"
    assert not (answer.log_dir / "train" / "runs").exists(), "no new run"
    assert "2 of 2" in (run_dir / "train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["run", "./run", "../x/run", ".", "run/", "run/checkpoints", "run/checkpoints/round_000001.ckpt"]
)
def test_a_run_is_named_from_where_one_is(cli, made, monkeypatch, tmp_path, name):
    (tmp_path / "x").mkdir()
    run_dir = Path(shutil.copytree(made, tmp_path / "x" / "run"))
    monkeypatch.chdir(run_dir if name == "." else tmp_path / "x")
    answer = cli(f"resume={name}", "num_rounds=2")
    assert answer.code == 0, answer.err
    assert len(read_csv(run_dir / "metrics.csv")) == 2
    assert f"resume={run_dir} num_rounds=4" in answer.out, "what is printed can be typed anywhere"


def test_a_checkpoint_by_name_is_gone_on_from(cli, made, tmp_path):
    """What an abandoned continuation has left, checkpoints included, goes."""
    run_dir = Path(shutil.copytree(made, tmp_path / "run"))
    assert cli(f"resume={run_dir}", "num_rounds=4").code == 0
    answer = cli(f"resume={run_dir}/checkpoints/round_000003.ckpt", "num_rounds=6")
    assert answer.code == 0, answer.err
    assert "after round 3" in answer.out + answer.err
    rows = read_csv(run_dir / "metrics.csv")
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_saved_again_leaves_none_of_later_rounds(made, tmp_path):
    saved = checkpoints.load(made / "checkpoints" / "round_000001.ckpt")
    for number in (1, 2, 3, 4, 2):
        checkpoints.save(replace(saved, server=replace(saved.server, round_index=number)), tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round_000002.ckpt"]


@pytest.mark.parametrize("typed", ["resume=", "resume=''"])
def test_an_empty_resume_is_an_error_and_no_new_run(cli, typed):
    answer = cli(typed, *TINY)
    assert answer.code == 2
    assert "resume= has no value" in answer.err
    assert not any(answer.log_dir.rglob("*.yaml"))


def test_resume_null_is_a_new_run(cli):
    assert cli("resume=null", *TINY).code == 0


def test_a_folder_without_a_run_is_left_as_it_was(cli, tmp_path):
    (tmp_path / "empty").mkdir()
    answer = cli(f"resume={tmp_path / 'empty'}")
    assert answer.code == 2
    assert "holds no file round_<t>.ckpt" in answer.err
    assert not list((tmp_path / "empty").iterdir())
    assert not any(answer.log_dir.rglob("*.yaml"))


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_run_that_cannot_be_written_to_is_one_line(cli, copied, monkeypatch):
    run_dir = copied()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != run_dir and real(path, mode))  # root may all
    answer = cli(f"resume={run_dir}", "num_rounds=2")
    assert answer.code == 2
    assert (
        answer.err.strip() == f"error: cannot write to {run_dir}; copy the run to a folder of yours and resume the copy"
    )


def stored_otherwise(run_dir, **changes):
    """Make the run one that was started with other settings."""
    (path,) = (run_dir / "checkpoints").glob("round_000001.ckpt")
    saved = checkpoints.load(path)
    content = OmegaConf.create(saved.config)
    for key, value in changes.items():
        OmegaConf.update(content, key.replace("__", "."), value, force_add=True)
    checkpoints.save(replace(saved, config=OmegaConf.to_yaml(content)), run_dir / "checkpoints")
    return run_dir


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_where_it_runs_may_be_said_anew(cli, copied):
    run_dir = stored_otherwise(copied(), trainer__accelerator="gpu")
    answer = cli(f"resume={run_dir}", "num_rounds=2")
    assert (answer.code, "type trainer=cpu or trainer=auto" in answer.err) == (2, True)
    answer = cli(f"resume={run_dir}", "num_rounds=2", "trainer=cpu")
    assert answer.code == 0, answer.err
    answer = cli(f"resume={run_dir}", "num_rounds=3", "trainer.accelerator=cpu")
    assert answer.code == 0, answer.err
    assert len(read_csv(run_dir / "metrics.csv")) == 3


def test_settings_of_another_choice_are_those_of_the_stored_one(cli, copied):
    """``width`` is no setting of the default executor."""
    run_dir = copied()
    assert cli(f"resume={run_dir}", "num_rounds=2", "executor=cohort", "executor.width=1").code == 0
    answer = cli(f"resume={run_dir}", "num_rounds=3", "executor.width=2")
    assert answer.code == 0, answer.err
    stored, _, _ = config.reopen(run_dir)
    assert (stored.executor._target_.rpartition(".")[2], stored.executor.width) == ("VectorizedExecutor", 2)


def test_what_decides_about_numbers_stays_the_runs_own(cli, copied):
    run_dir = stored_otherwise(copied(), executor__row_dtype="bfloat16")
    assert cli(f"resume={run_dir}", "num_rounds=2", "executor=cohort").code == 0
    assert config.reopen(run_dir)[0].executor.row_dtype == "bfloat16"
    assert cli(f"resume={run_dir}", "num_rounds=3", "executor=cohort", "executor.row_dtype=float32").code == 0
    assert config.reopen(run_dir)[0].executor.row_dtype == "float32"


def test_data_that_were_moved_are_found_by_their_folder(made, root_config, tmp_path):
    text = config.to_text(config.resolve(root_config("dataset=cifar10", "paths.data_dir=here")))
    words = ["resume=x", "paths.data_dir=there"]
    stored = config.apply_where(config.parse(text), root_config(*words), words)
    assert stored.dataset.root == "there/cifar10"
    words = ["resume=x", "++dataset.root=elsewhere", "++dataset.source=parquet"]
    stored = config.apply_where(config.parse(text), root_config(*words), words)
    assert (stored.dataset.root, stored.dataset.source) == ("elsewhere", "parquet")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("algorithm.local_epochs=2", "a resumed run keeps its own config, but algorithm.local_epochs=2 was given too"),
        ("dataset=mnist", "a resumed run keeps its own config, but dataset=mnist was given too"),
        ("paths.output_dir=x", "paths.output_dir is where the resumed run is; leave it out"),
        ("paths.data_dri=x", r"the stored run has no paths.data_dri (did you mean data_dir?)"),
        (
            "trainer.accelerators=cpu",
            "trainer.accelerators=cpu is not read here, leave it out (did you mean accelerator?)",
        ),
        ("executor=nosuch", "nosuch"),
    ],
)
def test_everything_else_is_refused(cli, copied, typed, message):
    run_dir = copied()
    answer = cli(f"resume={run_dir}", "num_rounds=2", typed)
    assert answer.code == 2
    assert message in answer.err
    assert "Traceback" not in answer.err
    assert len(read_csv(run_dir / "metrics.csv")) == 1


def test_evaluate_takes_them_too(cli, copied, tmp_path):
    run_dir = copied("a (1) b")
    out = tmp_path / "new" / "folder"
    answer = cli(
        *(f"checkpoint={run_dir}", f"paths.output_dir={out}", "trainer=cpu", "executor=cohort", "logger=csv"),
        *("trainer.precision=32-true", "paths.data_dir=x"),
        task="evaluate",
    )
    assert answer.code == 0, answer.err
    assert json.loads((out / "evaluation.json").read_text())["checkpoint"].startswith(str(run_dir))
    assert not list(answer.log_dir.glob("evaluate/runs/*")), "nothing is there, so nothing is left there"
    answer = cli(f"checkpoint={run_dir}", "dataset.source=parquet", task="evaluate")
    assert answer.code == 2
    assert "dataset.source is not a parameter of fedgh.dataset.digits.load" in answer.err


def test_a_run_of_version_0_1_is_moved_by_its_keys_not_by_its_text(cli, copied, made):
    """Its paths are values; a data set whose folder has the run's as a prefix stays where it is."""
    run_dir = copied("moved")
    old = str(made)
    stored_otherwise(run_dir, paths__output_dir=old, callback__observatory__output_dir=old, dataset__name=None)
    saved, path = checkpoints.load_newest(run_dir / "checkpoints")
    text = saved.config.replace("${paths.output_dir}", old).replace("  name: null\n", "")
    assert text.count(old) == 2
    torch.save({**torch.load(path, weights_only=True), "config": text}, path)
    before = tables_of(made)
    answer = cli(f"resume={run_dir}", "num_rounds=2")
    assert answer.code == 0, answer.err
    assert tables_of(made) == before
    parsed = config.parse(
        "paths: {output_dir: /runs/a, data_dir: data}\ncallback: {x: {folder: /runs/a/x, other: /runs/ab}}\n"
        "dataset: {root: data/cifar10}\nmodel: {root: /runs/a_data}\n"
    )
    parsed.paths.output_dir, parsed.paths.data_dir = "/b", "there"
    assert (parsed.callback.x.folder, parsed.callback.x.other) == ("/b/x", "/runs/ab")
    assert (parsed.dataset.root, parsed.model.root) == ("there/cifar10", "/runs/a_data")


@pytest.mark.parametrize(
    ("arguments", "prepared"),
    [
        (["resume=0"], ['resume="0"']),
        (["resume=a b"], ["resume=a b"]),
        (["resume=a#b"], ['resume="a#b"']),
        (["resume=null"], ["resume=null"]),
        (["resume="], ["resume="]),
        (["resume=a,b"], ['resume="a,b"']),
        (["checkpoint=${paths.log_dir}/é"], ['checkpoint="${paths.log_dir}/é"']),
        (["-m", "recording=a,b"], ["-m", "recording=a,b"]),
        (["seed=1,2", "-m"], ["seed=1,2", "-m"]),
        (["sweep.resume=true", "sweep.resume=0"], ["sweep.resume=true", 'sweep.resume="0"']),
        (["executor.width=2"], ["executor.width=2"]),
        (["resume=x", "executor.width=2", "trainer=cpu"], ["resume=x", "++executor.width=2", "trainer=cpu"]),
        (["--help", "=", "x"], ["--help", "=", "x"]),
    ],
)
def test_what_is_typed_is_made_ready_for_hydra(arguments, prepared):
    assert ready(arguments, "train") == prepared


@pytest.mark.parametrize(
    "name", ["it's (1) $x", *(pytest.param(name, marks=pytest.mark.slow) for name in ("a (1) b", 'é "q" #1 [x]'))]
)
def test_the_printed_commands_do_what_they_say(tmp_path, name):
    """Each line, pasted into a shell, in another folder than the run was started from."""
    folder, shell = tmp_path / name, {**os.environ, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    tools = tmp_path / "bin"
    tools.mkdir()
    for task in ("train", "evaluate", "report"):
        script = tools / f"fedgh-{task}"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fedgh.cli.{task} "$@"\n')
        script.chmod(0o755)
    shell["PATH"] = f"{tools}{os.pathsep}{shell['PATH']}"
    (tmp_path / "elsewhere").mkdir()

    def paste(line, where="elsewhere"):
        answer = subprocess.run(["sh", "-c", line], capture_output=True, text=True, env=shell, cwd=tmp_path / where)
        assert answer.returncode == 0, (line, answer.stderr)
        lines = [line.partition("  fedgh-") for line in answer.stdout.splitlines()]
        return {title.strip(): f"fedgh-{rest}" for title, found, rest in lines if found}

    words = shlex.join([*TINY, setting("paths.log_dir", folder)])
    printed = paste(f"fedgh-train {words}", ".")
    assert {"evaluate", "go on"} <= printed.keys()
    printed = paste(printed["go on"])
    paste(printed["evaluate"])
    paste(printed["if it is stopped"].strip())
    (run_dir,) = (folder / "train" / "runs").iterdir()
    assert len(read_csv(run_dir / "metrics.csv")) == 2


def test_fewer_rounds_than_are_finished_are_refused_and_change_nothing(copied, cli):
    run_dir = copied("run")
    assert cli(f"resume={run_dir}", "num_rounds=3").code == 0
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.csv")}
    answer = cli(f"resume={run_dir}", "num_rounds=2")
    assert answer.code == 2
    assert f"error: num_rounds=2 is below the 3 rounds that {run_dir} has finished" in answer.err
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.csv")} == before
    assert cli(f"resume={run_dir}", "num_rounds=3").code == 0, "just as many are none too few"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("executor.address", "10.1.2.3:6379"),
        ("executor.address", "ray-head"),
        ("logger.tracker", {"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": "/tmp/elsewhere"}),
        ("logger.tracker", {"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": "../elsewhere"}),
        ("logger.tracker", {"_target_": "pytorch_lightning.loggers.MLFlowLogger", "x": ["http://a.b"]}),
        ("callback.observatory.output_dir", "sub/folder"),
        ("callback.observatory.output_dir", "${paths.output_dir}/../other"),
        ("callback.observatory.output_dir", "${paths.log_dir}"),
        ("trainer.default_root_dir", "~/x"),
    ],
)
def test_somebody_elses_run_leads_nowhere_else(cli, copied, key, value):
    run_dir = stored_otherwise(copied(), **{key.replace(".", "__"): value})
    answer = cli(f"resume={run_dir}", "num_rounds=2")
    assert answer.code == 2
    assert f"the stored config's {key}" in answer.err
    assert "outside the run's own directory, and somebody else may have written it" in answer.err
    assert len(read_csv(run_dir / "metrics.csv")) == 1


def test_where_a_run_leads_may_be_typed_again(cli, copied, tmp_path):
    run_dir, other = copied(), tmp_path / "other"
    stored_otherwise(run_dir, callback__observatory__output_dir=str(other))
    refused = cli(f"resume={run_dir}", "num_rounds=2")
    told = shlex.split(refused.err.partition("to go there type ")[2].partition(", or another")[0])
    answer = cli(f"resume={run_dir}", "num_rounds=2", *told)
    assert answer.code == 0, answer.err
    assert tables_of(other)
    (again,) = [line for line in answer.out.splitlines() if line.startswith("go on ")]
    assert told[0] in again, "the printed command can be pasted"


def test_what_names_a_run_may_look_like_an_address(cli, copied):
    run_dir = stored_otherwise(copied(), name="a:1", tags=["~x", "http://y"], executor__address=None, executor=None)
    assert not config.outside(OmegaConf.create({"logger": {"wandb": {"name": "../a:1", "tags": ["/x"]}}}))
    assert cli(f"resume={run_dir}", "num_rounds=2", "executor=sequential").code == 0


def test_nothing_is_fetched_because_a_stored_config_says_so(root_config):
    cfg = root_config("resume=x")
    stored = config.resolve(root_config("dataset=mnist", "dataset.download=true"))
    assert config.apply_where(stored, cfg, ["resume=x"]).dataset.download is False
    cfg = root_config("resume=x", "++dataset.download=true")
    assert config.apply_where(stored, cfg, ["resume=x", "++dataset.download=true"]).dataset.download is True
