"""Rows, tests and pages of the leaderboard, from runs that never ran."""

import csv
import re

import numpy as np
import pytest
import yaml

from fedgh.cli import leaderboard as cli
from fedgh.core.configs import CONFIG_DIR
from fedgh.core.errors import ConfigurationError, DataError
from fedgh.report.leaderboard import choose_rates, label_of, labels, lines_of, merge, read_rows, rows_of, said
from fedgh.report.leaderboard_page import write_leaderboard
from fedgh.report.ranks import Ranks, holm, pairs
from fedgh.report.seeds import write_csv
from fedgh.storage.run import Run, flatten
from tests.report.made import KNOWN, write_run

TARGETS = {
    "mean": {"_target_": "fedgh.aggregator.mean.Mean"},
    "fedgh": yaml.safe_load((CONFIG_DIR / "aggregator" / "fedgh.yaml").read_text()),
}
DIRECTION = TARGETS["fedgh"] | {"rescale": "fedavg_norm"}
LENGTH = {"_target_": "fedgh.aggregator.matched.Matched", "by": "norm", "rule": TARGETS["fedgh"]}


def settings(rule, seed, name="rotated_mnist", **more):
    tree = yaml.safe_load((CONFIG_DIR / "experiment" / "leaderboard" / f"{name}.yaml").read_text())
    del tree["defaults"]
    tree["algorithm"] |= {"_target_": "fedgh.algorithm.fedavg.FedAvg", "weights": "examples"}
    tree["server_optimizer"]["_target_"] = "fedgh.server_optimizer.sgd.SGD"
    tree["aggregator"] = TARGETS.get(rule, rule) if isinstance(rule, str) else rule
    return flatten(tree) | {"seed": seed, "num_rounds": tree["num_rounds"]} | more


def made(tmp_path, rule, seed, accuracies, number=[0], validation=None, **more):  # noqa: B006
    """A finished run of as many rounds as there are accuracies."""
    number[0] += 1
    of = settings(rule, seed, **more)
    rows = [
        {"round": place, "global/test/acc": value, "client/test/acc_worst": value / 2, "client/test/acc_std": 0.1}
        | {"federation/bytes_up": 1e6, "federation/bytes_down": 2e6, "conflict/ratio": 0.5, "time/train_seconds": 1.0}
        for place, value in enumerate(accuracies, 1)
    ]
    summary = {"rounds": of["num_rounds"], "final/acc": accuracies[-1]}
    if validation is not None:
        summary["last10/val_acc_mean"] = validation
    command = "fedgh-train -m experiment=leaderboard/rotated_mnist dataset.root=a/b "
    command += (
        "aggregator=fedgh,mean model.hidden=[100,50] partition.alpha=0.3,1 algorithm.optimizer.lr=0.1,0.2 seed=1,2"
    )
    return Run(tmp_path / f"run{number[0]}", of, summary, KNOWN | {"command": command}, rows)


def board(tmp_path, seeds=(101, 102, 103), rules=("mean", "fedgh", DIRECTION, LENGTH), **more):
    """FedGH is two points ahead of the mean in every seed, its parts one each; a little noise."""
    ahead = (0.0, 0.02, 0.01, 0.012)
    noise = np.random.default_rng(0).normal(0, 0.001, (len(rules), len(seeds)))
    return [
        made(tmp_path, rule, seed, [0.3, *[0.5 + 0.01 * seed % 7 / 100 + ahead[i] + noise[i, j]] * 11], **more)
        for i, rule in enumerate(rules)
        for j, seed in enumerate(seeds)
    ]


def test_a_row_is_the_mean_of_the_last_ten_rounds_over_seeds(tmp_path):
    first = made(tmp_path, "mean", 101, [0.1, 0.9, *[0.5] * 9, 0.7])  # the last ten: nine times 0.5 and 0.7
    second = made(tmp_path, "mean", 102, [0.1, 0.9, *[0.6] * 10])
    (row,), problems = rows_of([first, second])
    assert not problems
    assert (row.setting, row.algorithm, row.rule, row.client_lr, row.server_lr) == (
        *("rotated_mnist", "fedavg", "mean"),
        *(0.3, 1.0),
    )
    assert row.scores == {101: pytest.approx(0.52), 102: pytest.approx(0.6)}
    assert row.final == pytest.approx(0.65)
    assert row.worst == pytest.approx((0.26 + 0.3) / 2)
    assert (row.bytes_per_round, row.conflict_before, row.seconds) == (3e6, 0.5, 12.0)
    assert np.isnan(row.conflict_after), "the mean bends nothing"
    assert row.curve == pytest.approx([0.1, 0.9, *[0.55] * 9, 0.65])


def test_a_setting_is_called_by_what_was_typed_beside_it(tmp_path):
    runs = [
        made(tmp_path, "mean", 1, [0.5]),
        made(tmp_path, "mean", 1, [0.5], **{"partition.alpha": 1.0}),
        made(tmp_path, "mean", 1, [0.5], **{"algorithm.optimizer.lr": 0.1}),
        made(tmp_path, "mean", 1, [0.5], tags=["mine"]),
        made(tmp_path, "mean", 1, [0.5], **{"dataset.validation_fraction": 0.1}),
    ]
    rows, problems = rows_of(runs)
    assert [row.setting for row in rows] == ["rotated_mnist", "rotated_mnist", "rotated_mnist partition.alpha=1.0"]
    assert labels(rows[:2]) == ["mean, lr 0.1, server 1", "mean, lr 0.3, server 1"]
    assert [re.search(r"is no run of|held training data out", text)[0] for text in problems] == [
        "is no run of",
        "held training data out",
    ]


def test_parts_are_named_as_they_are_typed(tmp_path):
    assert [label_of(row) for row in rows_of(board(tmp_path))[0]] == [
        "fedgh",
        "fedgh rescale=fedavg_norm",
        "matched by=norm rule=fedgh",
        "mean",
    ]
    fednova = {"algorithm._target_": "fedgh.algorithm.fednova.FedNova", "algorithm.weights": "uniform"}
    server = {"server_optimizer._target_": "fedgh.server_optimizer.adam.Adam", "server_optimizer.beta1": 0.5}
    (row,), _ = rows_of([made(tmp_path, "mean", 1, [0.5], **fednova, **server)])
    assert label_of(row) == "fednova weights=uniform + mean, server adam beta1=0.5"
    assert said({"x._target_": "mine.rules.sharp.Sharp", "x.edge": 2}, "x") == "sharp edge=2", "of another package"


def test_the_table_is_read_back_as_it_was(tmp_path):
    rows, _ = rows_of(board(tmp_path))
    write_csv(lines_of(rows), tmp_path / "leaderboard.csv")
    again = read_rows(tmp_path / "leaderboard.csv")
    assert [row.key for row in again] == [row.key for row in rows]
    for old, new in zip(rows, again, strict=True):
        assert new.scores == pytest.approx(old.scores, abs=1e-5)
        assert (new.rounds, new.federation, new.commits) == (list(old.rounds), old.federation, old.commits)
        assert np.isnan(new.conflict_after)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"add=.*other\.csv is no leaderboard\.csv"):
        read_rows(tmp_path / "other.csv")
    with pytest.raises(DataError, match=r"add=.* does not exist"):
        read_rows(tmp_path / "none.csv")


def test_own_rows_join_stored_ones(tmp_path):
    stored, _ = rows_of(board(tmp_path, rules=("mean", "fedgh")))
    own, _ = rows_of([*board(tmp_path, seeds=(101, 102), rules=("mean",)), made(tmp_path, DIRECTION, 101, [0.5])])
    rows, problems = merge(stored, own)
    assert [(row.rule, len(row.scores)) for row in rows] == [
        ("fedgh", 3),
        ("fedgh rescale=fedavg_norm", 1),
        ("mean", 2),
    ]
    assert problems == ["mean on rotated_mnist: the runs given take the place of the stored row."]
    elsewhere, _ = rows_of([made(tmp_path, DIRECTION, 101, [0.5], **{"dataset.source": "parquet"})])
    assert "the comparison is not fair" in merge(stored, elsewhere)[1][0]


def test_holm_by_hand():
    # ascending .01, .02, .03, .2 of 4: 4 x .01 = .04, 3 x .02 = .06, 2 x .03 = .06, 1 x .2 = .2
    assert holm([0.03, 0.2, float("nan"), 0.01, 0.02]) == pytest.approx([0.06, 0.2, np.nan, 0.04, 0.06], nan_ok=True)
    assert holm([0.04, 0.011]) == pytest.approx([0.04, 0.022])
    assert holm([0.021, 0.02]) == pytest.approx([0.04, 0.04]), "never falls"
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_pairs_are_those_of_scipy_with_an_effect_by_hand():
    ours, theirs = {1: 0.5, 2: 0.7, 3: 0.6}, {1: 0.4, 2: 0.5, 3: 0.3, 9: 0.9}
    (pair,) = pairs([ours, theirs])
    # gains .1, .2, .3: mean .2, standard deviation .1, so effect 2; t = 2 sqrt(3)
    assert (pair.gain.mean, pair.effect, pair.gain.pairs) == (pytest.approx(0.2), pytest.approx(2.0), 3)
    assert pair.p_holm == pytest.approx(pair.gain.p_value) == pytest.approx(0.0741799, abs=1e-6)
    assert not pair.apart


def test_ranks_and_critical_difference_of_demsar():
    """Demsar's table: q at 5 % of 2, 5 and 10 ways is 1.960, 2.728 and 3.164."""
    ways = [{seed: value + 0.001 * seed for seed in range(10)} for value in (0.3, 0.5, 0.4, 0.1, 0.2)]
    ranks = Ranks.of(ways)
    assert ranks.mean == [3, 1, 2, 5, 4]
    assert ranks.difference == pytest.approx(2.728 * np.sqrt(5 * 6 / (6 * 10)), rel=1e-3)
    assert ranks.p_value < 1e-6
    assert ranks.bars() == [(0, 1), (1, 2), (2, 3), (3, 4)], "1.93 apart: neighbours only"
    assert Ranks.of([{1: 0.5, 2: 0.5}, {1: 0.5, 2: 0.5}]).mean == [1.5, 1.5]
    assert Ranks.of([{1: 0.5}, {1: 0.4}]) is None


def test_the_page_says_what_the_tests_allow(tmp_path):
    rows, _ = rows_of(board(tmp_path, seeds=tuple(range(101, 109))))
    text = write_leaderboard(rows, tmp_path / "out", ["Mind this."])
    assert "6 of 6 pairs are told apart" in text
    assert re.search(r"Ahead of mean: fedgh; matched by=norm rule=fedgh; fedgh rescale=fedavg_norm\.", text)
    assert re.search(r"taken apart, in points: both together \+[12]\.\d\d \(.*direction.* \+[01]\.\d\d .*length", text)
    table = next(part for part in text.split("\n\n") if part.startswith("|  | seeds"))
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [
        *("fedgh", "matched by=norm rule=fedgh"),
        *("fedgh rescale=fedavg_norm", "mean"),
    ]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("leaderboard.csv", "pairs.csv", "report.md", "report.html"),
        *("ranks_rotated_mnist.png", "cost_rotated_mnist.png"),
    }
    lines = list(csv.DictReader((tmp_path / "out" / "pairs.csv").read_text().splitlines()))
    assert len(lines) == 6
    assert write_leaderboard(read_rows(tmp_path / "out" / "leaderboard.csv"), tmp_path / "again").count("\n|") > 4


def test_one_seed_or_no_mean_claims_nothing(tmp_path):
    rows, _ = rows_of(board(tmp_path, seeds=(101,)))
    text = write_leaderboard(rows, tmp_path / "one")
    assert "0 of 6 pairs are told apart" in text
    assert "Ahead of" not in text
    rows, _ = rows_of(board(tmp_path, rules=("fedgh", DIRECTION)))
    assert "FedAvg with the plain mean is missing" in write_leaderboard(rows, tmp_path / "two")


def test_rates_are_chosen_on_held_out_data(tmp_path):
    def tuned(rule, lr, server, seed, validation):
        rates = {"algorithm.optimizer.lr": lr, "server_optimizer.lr": server, "dataset.validation_fraction": 0.1}
        return made(tmp_path, rule, seed, [0.9], validation=validation, **rates)

    runs = [
        tuned("mean", lr, s, seed, 0.5 - (lr - 0.2) ** 2 + 0.01 * s)
        for lr in (0.1, 0.2, 0.3)
        for s in (1, 2)
        for seed in (1, 2)
    ]
    runs += [tuned("fedgh", 0.1, 1, seed, 0.4) for seed in (1, 2)]
    lines, commands, problems = choose_rates(runs)
    assert [(line["rule"], line["client_lr"], line["server_lr"], line["rates_tried"]) for line in lines] == [
        ("fedgh", 0.1, 1, 1),
        ("mean", 0.2, 2, 6),
    ]
    assert [line["at_the_edge_of"] for line in lines] == ["", "server"]
    assert commands[1] == (
        "fedgh-train -m experiment=leaderboard/rotated_mnist dataset.root=a/b aggregator=mean "
        "'model.hidden=[100,50]' partition.alpha=0.3 algorithm.optimizer.lr=0.2 "
        'server_optimizer.lr=2 seed="$SEEDS" "$@"'
    )
    assert problems == ["The rules were not tuned equally: the number of rates tried differs, see rates_tried."]
    with pytest.raises(DataError, match="none of these runs held training data out"):
        choose_rates([made(tmp_path, "mean", 1, [0.5])])


def test_the_command(tmp_path, root_config, capsys):
    def call(*overrides):
        cli.run(root_config(f"paths.output_dir={tmp_path / 'out'}", *overrides, root="leaderboard"))

    for run in board(tmp_path / "runs", seeds=(101, 102)):
        write_run(run)
    (tmp_path / "out").mkdir()
    call(f"runs={tmp_path / 'runs'}")
    assert "## rotated_mnist" in capsys.readouterr().out
    for run in board(tmp_path / "own", seeds=(101, 102), rules=(DIRECTION | {"sweeps": 3},)):
        write_run(run)
    (tmp_path / "out" / "leaderboard.csv").rename(tmp_path / "stored.csv")
    call(f"runs={tmp_path / 'own'}", f"add={tmp_path / 'stored.csv'}")
    assert "| fedgh rescale=fedavg_norm sweeps=3 |" in capsys.readouterr().out
    assert len(read_rows(tmp_path / "out" / "leaderboard.csv")) == 5
    with pytest.raises(ConfigurationError, match="needs runs="):
        call()
    with pytest.raises(ConfigurationError, match="rates must be true or false"):
        call(f"runs={tmp_path / 'runs'}", "rates=0.1")
