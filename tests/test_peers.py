"""The bookkeeping of the comparison with other simulators; the peers themselves are not installed here."""

import importlib
from pathlib import Path

import pytest

PLAYED = 2 * 4  # examples of two clients


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "benchmarks"))
    return importlib.import_module("peers")


@pytest.fixture
def match(peers):
    workload = peers.Workload("tiny", num_clients=3, num_examples=4, clients_per_round=2, batch_size=3, model=None)
    order = []

    def play():
        order.append("ours")
        return {"global/test/loss": 1.0}

    match = peers.Match(workload, {"sequential": play}, pairs=2, times=2)
    match.order = order
    return match


def peer(match, losses, steps=4):
    match.evaluated(3.0)
    for loss in losses:
        match.order.append("theirs")
        match.evaluated(loss)
        match.trained(PLAYED, steps)


def test_rounds_alternate_and_the_first_of_the_peer_is_not_counted(match):
    peer(match, [2.5] * match.num_rounds)
    match.check()
    assert match.order == ["theirs", *["ours"] * 3, *(["theirs"] * 2 + ["ours"] * 2) * 2]
    assert len(match.theirs) == len(match.ratios["sequential"]) == len(match.seconds["sequential"]) == 2


def test_a_peer_that_does_less_work_is_found_out(match):
    with pytest.raises(AssertionError, match="3 steps in a round, expected 4"):
        peer(match, [2.5], steps=3)
    with pytest.raises(AssertionError, match="7 examples in a round, expected 8"):
        match.trained(7, 4)


def test_a_peer_that_does_not_learn_is_found_out(match):
    peer(match, [3.5] * match.num_rounds)
    with pytest.raises(AssertionError, match=r"the peer's loss went from 3\.0 to 3\.5"):
        match.check()


def test_a_peer_that_is_not_installed_is_skipped_with_a_reason(peers, tmp_path, monkeypatch):
    (tmp_path / "peer_of_nobody.py").write_text("import a_package_of_nobody\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match="a_package_of_nobody is not installed: pip install nobody"):
        peers.Peer("peer_of_nobody", "pip install nobody").load()
