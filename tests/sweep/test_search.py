"""Searches with the real Optuna: repeated, pruned, interrupted, resumed, refused."""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser

from fedgh import config
from fedgh.core.errors import ConfigurationError
from fedgh.storage import checkpoint as checkpoints
from fedgh.sweep import multirun as sweep
from fedgh.sweep import search
from fedgh.tracking import offline

optuna = pytest.importorskip("optuna", reason="Optuna is not installed: pip install 'fedgh[search]'")

TINY = [
    *("num_rounds=3", "partition=iid", "partition.num_clients=3", "algorithm.local_epochs=1", "trainer=cpu"),
    *("dataset.train_fraction=0.1", "model.hidden=[4]", "executor=sequential", "callback=none"),
]
SEARCH = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", *TINY]
SPACE = [
    "algorithm.optimizer.lr=tag(log,interval(0.01,1))",
    "aggregator=mean,fedgh",
    "algorithm.batch_size=range(8,33,8)",
]
CHOICES = sorted((path.parent.name, path.stem) for path in Path(config.CONFIG_DIR, "hydra", "sweeper").glob("*/*.yaml"))


def folder_of(answer):
    (folder,) = (answer.log_dir / "train" / "multiruns").iterdir()
    return folder


def lines_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


FINISHED = {}


@pytest.fixture
def finished(cli, tmp_path, tmp_path_factory):
    """The directory of a finished search; run once for all tests, copied for each."""
    if not FINISHED:
        answer = cli(*SEARCH, *SPACE, "logger=csv")
        assert answer.code == 0, answer.out
        FINISHED.update(out=answer.out, folder=folder_of(answer).rename(tmp_path_factory.mktemp("search") / "sweep"))
    folder = tmp_path / "straight"
    shutil.copytree(FINISHED["folder"], folder)
    return folder


def test_trials_are_jobs_and_the_best_one_is_told(finished, cli):
    trials, jobs, out = lines_of(finished / "trials.csv"), lines_of(finished / "jobs.csv"), FINISHED["out"]
    assert [line["state"] for line in trials] == ["complete"] * 4
    assert [line["rounds"] for line in trials] == ["3"] * 4
    assert [line["accuracy"] for line in trials] == [line["accuracy"] for line in jobs]
    assert all(0.01 <= float(line["algorithm.optimizer.lr"]) <= 1 for line in trials)
    assert {line["aggregator"] for line in trials} <= {"mean", "fedgh"}
    assert {line["algorithm.batch_size"] for line in trials} <= {"8", "16", "24", "32"}
    best = max(trials, key=lambda line: float(line["accuracy"]))
    assert f"best trial      {best['trial']} of 4: {float(best['accuracy']):.2%} with algorithm.optimizer.lr=" in out
    (again,) = [line.partition("fedgh-train ")[2] for line in out.splitlines() if line.startswith("run it again")]
    answer = cli(*shlex.split(again))
    assert answer.code == 0, answer.out
    assert json.loads((answer.run_dir / "summary.json").read_text())["final/acc"] == float(best["accuracy"])


def test_the_same_seed_tries_the_same_trials(finished, cli):
    answer = cli(*SEARCH, *SPACE, "logger=csv")
    assert (folder_of(answer) / "trials.csv").read_text() == (finished / "trials.csv").read_text()


def test_an_interrupted_search_goes_on_as_if_nothing_had_happened(finished, cli, monkeypatch, in_round):
    """Ctrl-C in round 2 of trial 1; then a kill between the end of job 2 and the study's knowing of it."""
    with monkeypatch.context() as patch:
        in_round(patch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        answer = cli(*SEARCH, *SPACE, "logger=csv")
    folder = folder_of(answer)
    assert answer.code == 128 + signal.SIGINT
    assert "1 finished, 1 stopped, 2 not begun" in answer.out, answer.out
    *_, again = [line.partition("fedgh-train ")[2] for line in answer.out.splitlines() if line.startswith("go on")]
    record = folder / ".jobs" / "00001.json"
    record.write_text(record.read_text().replace('"stopped"', '"running"'))  # as SIGKILL leaves it
    real, calls = search.settle, iter(range(100))

    def killed(*arguments):
        if next(calls) == 2:  # at the start, after trial 1, after trial 2
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(search, "settle", killed)
        answer = cli(*shlex.split(again))
    assert (answer.code, "3 finished, 1 not begun" in answer.out) == (130, True), answer.out
    begun = (folder / "2" / "config.yaml").stat().st_mtime_ns
    answer = cli(*shlex.split(again))
    assert (answer.code, "4 finished" in answer.out) == (0, True), answer.err
    assert folder_of(answer) == folder
    assert (folder / "2" / "config.yaml").stat().st_mtime_ns == begun, "a finished trial was run again"
    assert (folder / "trials.csv").read_text() == (finished / "trials.csv").read_text()
    for number in range(4):
        ours, theirs = (checkpoints.load_newest(f / str(number) / "checkpoints")[0] for f in (folder, finished))
        assert torch.equal(ours.server.params, theirs.server.params)


def test_more_trials_later(finished, cli):
    arguments = [*SEARCH[:2], "hydra.sweeper.n_trials=5", *TINY, *SPACE, "logger=csv"]
    answer = cli(*arguments, f"sweep.resume={finished}")
    assert (answer.code, "5 finished" in answer.out) == (0, True), answer.err
    assert (finished / "trials.csv").read_text().startswith((FINISHED["folder"] / "trials.csv").read_text())


def wandb_record(job):
    """The exit codes and the logged rounds in W&B's record of a job."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # its service writes the last block when it ends
    (path,) = job.glob("wandb/offline-run-*/run-*.wandb")
    codes = []
    for payload in offline._records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        if record.WhichOneof("record_type") == "exit":
            codes.append(record.exit.exit_code)
    return codes, [row["round"] for row in offline.history(path)]


def test_a_pruned_trial_ends_early_and_properly(cli):
    """The first trial learns, the other does not; the pruner compares them after every round."""
    learns = ["algorithm.batch_size=8", "algorithm.local_epochs=5", "model.hidden=[32]"]
    median = ["hydra.sweeper.pruner.n_startup_trials=1", "hydra.sweeper.pruner.n_warmup_steps=2"]
    answer = cli(
        *(*SEARCH[:2], "hydra.sweeper.n_trials=3", *median, *TINY, *learns, "algorithm.optimizer.lr=1e-9,0.3"),
        *("logger=wandb", "logger.mode=offline"),
    )
    assert answer.code == 0, answer.out
    folder = folder_of(answer)
    trials = lines_of(folder / "trials.csv")
    assert [(line["algorithm.optimizer.lr"], line["state"], line["rounds"]) for line in trials] == [
        ("0.3", "complete", "3"),
        ("1e-09", "pruned", "2"),
        ("1e-09", "pruned", "2"),
    ]
    assert "1 finished, 2 pruned" in answer.out
    assert [line["status"] for line in lines_of(folder / "jobs.csv")] == ["finished", "pruned", "pruned"]
    assert json.loads((folder / "1" / "summary.json").read_text())["rounds"] == 2
    assert checkpoints.load_newest(folder / "1" / "checkpoints")[0].server.round_index == 2
    assert wandb_record(folder / "1") == ([0], [1, 2])
    assert "go on  " not in answer.out.partition("best trial")[2], "there is nothing to go on with"


def test_reporting_does_not_change_a_run(finished, cli):
    overrides = json.loads((finished / ".jobs" / "00000.json").read_text())["overrides"]
    answer = cli(*overrides)
    ours, theirs = (checkpoints.load_newest(f / "checkpoints")[0] for f in (answer.run_dir, finished / "0"))
    assert torch.equal(ours.server.params, theirs.server.params)


def test_a_failed_trial_is_told_and_not_tried_again(cli):
    arguments = [*SEARCH, "on_nonfinite=raise", "algorithm.optimizer.lr=0.1,1e30", "logger=csv", "hydra.sweeper.seed=3"]
    answer = cli(*arguments)
    folder = folder_of(answer)
    states = [(line["algorithm.optimizer.lr"], line["state"]) for line in lines_of(folder / "trials.csv")]
    assert set(states) == {("0.1", "complete"), ("1e+30", "fail")}, states
    assert answer.code == 1
    assert "failed: round 1: the server's step" in answer.out
    assert "sweep.resume=true" not in answer.out
    begun = {path: path.stat().st_mtime_ns for path in folder.glob("*/config.yaml")}
    assert cli(*arguments, "sweep.resume=true").code == 1
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/config.yaml")} == begun


def test_a_missing_package(cli, monkeypatch):
    monkeypatch.setattr(sweep, "installed", lambda module: module != "optuna")
    answer = cli(*SEARCH, *SPACE, "logger=csv")
    assert answer.code == 2
    assert 'hydra/sweeper=optuna needs optuna, which is not installed; type pip install "fedgh[search]"' in answer.err
    assert not answer.log_dir.exists()


def test_an_interval_without_optuna(cli):
    answer = cli("-m", *TINY, "logger=csv", SPACE[0])
    assert answer.code == 2
    assert f"{SPACE[0]} can be searched, not listed; type hydra/sweeper=optuna" in answer.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hydra.sweeper.n_trials=0", SPACE[0]], "hydra.sweeper.n_trials must be a positive integer, got 0"),
        (["hydra.sweeper.n_trials=many", SPACE[0]], "hydra.sweeper.n_trials must be a positive integer, got 'many'"),
        (["algorithm.optimizer.rl=interval(0.1,1)"], "there is no key algorithm.optimizer.rl (did you mean"),
        (["hydra/sweeper/pruner=medain", SPACE[0]], "there is no hydra/sweeper/pruner=medain (did you mean median?)"),
        (
            ["hydra.sweeper.sampler._target_=optuna.samplers.TPE", SPACE[0]],
            "optuna.samplers.TPE cannot be built: ",
        ),
        ([], "there is nothing to search; type for instance algorithm.optimizer.lr='tag(log,interval(0.001,0.1))'"),
    ],
)
def test_bad_settings(cli, arguments, message):
    answer = cli(*SEARCH, "logger=csv", *arguments)
    assert answer.code == 2, answer.out
    assert message in answer.err


def space_of(*overrides):
    return search.space_of(OverridesParser.create().parse_overrides(list(overrides)))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr=interval(1,0.1)", r"lr=interval\(1,0.1\) is empty; expected interval\(<low>,<high>\)"),
        ("lr=tag(log,interval(0,1))", "has no logarithm at its lower end; begin above 0"),
        ("lr=tag(lgo,interval(0.1,1))", r"has an unknown tag, lgo \(did you mean log\?\); there are: log, int"),
        ("lr=tag(log,choice(0.1,1))", r"takes no tag; log go with interval\(<low>,<high>\)"),
        ("lr=range(3,1)", r"lr=range\(3,1\) is empty; expected range\(<start>,<stop>,<step>\)"),
        ("seed=1,2,3", "a search over seed= would find the luckiest one; give one seed"),
        ("lr=0.1", "there is nothing to search"),
    ],
)
def test_a_bad_space(override, message):
    with pytest.raises(ConfigurationError, match=message):
        space_of(override)


def test_the_space_is_what_hydra_would_list():
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    fixed, space = space_of(
        *("a=interval(1,8)", "b=int(interval(1,8))", "c=tag(int,log,interval(1,8))", "d=tag(log,interval(0.1,1))"),
        *("e=range(0,1,0.1)", "f=range(4)", "g=range(9,0,-3)", "h=x,'y z'", "i=choice([4],[8,8])"),
        *("j=1", "k=a,b", "k=c", "l=d", "l=e,f"),
    )
    assert fixed == ["j=1", "k=c"]
    assert space == {
        "a": FloatDistribution(1, 8),
        "b": IntDistribution(1, 8),
        "c": IntDistribution(1, 8, log=True),
        "d": FloatDistribution(0.1, 1, log=True),
        "e": FloatDistribution(0, 0.9, step=0.1),
        "f": IntDistribution(0, 3),
        "g": IntDistribution(3, 9, step=3),
        "h": CategoricalDistribution(["x", "'y z'"]),
        "i": CategoricalDistribution(["[4]", "[8,8]"]),
        "l": CategoricalDistribution(["e", "f"]),
    }


def test_a_resumed_search_in_another_space_is_refused(tmp_path):
    """As after a change of ``hydra.sweeper.params``, which no command line shows."""
    space = space_of("lr=interval(0.1,1)", "aggregator=mean,fedgh")[1]
    search.begin(tmp_path, space)
    search.begin(tmp_path, space)
    with pytest.raises(
        ConfigurationError, match=r"holds another search: started with lr=\S.*high=1.0.*, now lr=.*high=2"
    ):
        search.begin(tmp_path, space_of("lr=interval(0.1,2)", "aggregator=mean,fedgh")[1])


def test_a_trial_that_was_killed_while_it_was_drawn(tmp_path):
    space = space_of("lr=interval(0.1,1)", "aggregator=mean,fedgh")[1]
    study = search.begin(tmp_path, space)
    study.ask({"lr": space["lr"]})
    study.ask(space)
    assert [trial.state.name for trial in search.begin(tmp_path, space).trials] == ["FAIL", "RUNNING"]


def test_unfinished_trials_are_launched_together_where_they_follow_each_other(tmp_path):
    from hydra_plugins.fedgh_optuna import unfinished

    space = space_of("lr=interval(0.1,1)")[1]
    study = search.begin(tmp_path, space)
    for _ in range(6):
        study.ask(space)
    for number in (0, 3):
        study.tell(number, 0.5)
    assert unfinished(study) == [[1, 2], [4, 5]]


@pytest.mark.parametrize(("part", "name"), CHOICES)
def test_every_sampler_and_pruner_is_built_and_works(root_config, tmp_path, part, name):
    root_config("hydra/sweeper=optuna", f"hydra/sweeper/{part}={name}", "num_rounds=30")
    node = HydraConfig.get().sweeper[part]
    space = space_of("lr=tag(log,interval(0.1,1))", "aggregator=mean,fedgh")[1]
    study = search.begin(tmp_path, space)
    study.sampler = search.build_sampler(node, 1, 0) if part == "sampler" else study.sampler
    trial = study.ask(space)
    if part == "pruner":
        pruner = search._build(node)
        search.open_study(tmp_path)[1].set_trial_intermediate_value(trial._trial_id, 30, 0.1)
        assert pruner.prune(study, study.trials[0]) is (name == "threshold")
    study.tell(trial, 0.5)


def test_optuna_is_not_imported_without_a_search():
    plugins = "from hydra.core.plugins import Plugins; Plugins.instance()"
    code = f"import sys, fedgh.cli.train; {plugins}; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "hydra_plugins.fedgh_optuna" in modules
    assert not {"optuna", "ray"} & set(modules)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_trials_side_by_side(cli, request, launcher):
    """Two at a time, in other processes; a third batch is one trial only."""
    package = pytest.importorskip(sweep.NEEDED[launcher][0])
    if launcher == "ray":
        request.addfinalizer(package.shutdown)
    settings = {
        "joblib": ["hydra.launcher.n_jobs=2"],
        "submitit_local": [],
        "ray": ["hydra.launcher.cpus_per_job=1", "hydra.launcher.gpus_per_job=0"],
    }[launcher]
    answer = cli(
        *SEARCH,
        "hydra.sweeper.n_jobs=2",
        "hydra.sweeper.n_trials=5",
        *SPACE,
        "logger=csv",
        *settings,
        f"hydra/launcher={launcher}",
        "hydra/sweeper/pruner=threshold",
        "hydra.sweeper.pruner.lower=1.1",
        "hydra.sweeper.pruner.n_warmup_steps=2",
    )
    assert answer.code == 0, answer.out
    trials = lines_of(folder_of(answer) / "trials.csv")
    assert [(line["state"], line["rounds"]) for line in trials] == [("pruned", "2")] * 5
    assert "best trial      none has finished" in answer.out
