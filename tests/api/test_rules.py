"""The door for other people's loops: same numbers as a federation's, any form of updates, PyTorch alone."""

import math
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import fedgh
from fedgh.aggregator.median import Median
from fedgh.config.rules import aggregator_names, build_aggregators
from fedgh.core.errors import ConfigurationError, DataError
from fedgh.core.types import Cohort
from fedgh.core.updates import UpdateMatrix


@pytest.fixture
def updates():
    return torch.randn(6, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def weights():
    return [1.0, 2, 3, 4, 5, 6]


def test_names_and_settings_are_those_of_the_command_line():
    assert fedgh.rule_names() == aggregator_names()
    for name, rule in build_aggregators(aggregator_names()).items():
        ours = fedgh.make_rule(name)
        assert type(ours) is type(rule)
        assert re.sub(r" at 0x\w+", "", repr(ours)) == re.sub(r" at 0x\w+", "", repr(rule))


@pytest.mark.parametrize("name", ["fedgh", "mean", "median", "clipped", "gradvac"])
def test_a_rule_gives_what_it_gives_in_a_federation(name, updates, weights):
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    rule, matrix = build_aggregators([name])[name], UpdateMatrix.of(updates)
    expected = rule(matrix, matrix.gram(), Cohort.of(share, seed=3, round_index=5), {}).update
    assert torch.equal(fedgh.aggregate(updates, weights, name, seed=3, round_index=5), expected)


def test_a_rule_that_measures_against_the_model_is_given_it():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    memory = {}
    fedgh.aggregate(rows, [0.5, 0.3, 0.2], "fedawa", params=torch.tensor([3.0, 4.0]), memory=memory)
    torch.testing.assert_close(memory["logits"], torch.tensor([0.499, 0.299, 0.201]).double(), rtol=0, atol=1e-6)
    with pytest.raises(DataError, match="as many numbers as an update has: 2, got 3"):
        fedgh.aggregate(rows, rule="fedawa", params=torch.ones(3))
    with pytest.raises(ConfigurationError, match="only updates are known"):
        fedgh.aggregate(rows, rule="fedawa")


def test_weights_are_divided_by_their_sum():
    rows = torch.tensor([[4.0, 0.0], [0.0, 8.0]])
    assert fedgh.aggregate(rows, [1, 3], rule="mean").tolist() == [1.0, 6.0]
    assert fedgh.aggregate(rows, rule="mean").tolist() == [2.0, 4.0]


def test_mappings_come_back_as_a_mapping(weights):
    network = nn.Linear(3, 2)
    given = [{n: torch.randn_like(p) for n, p in network.named_parameters()} for _ in range(6)]
    flat = torch.stack([torch.cat([t.reshape(-1) for t in update.values()]) for update in given])
    made = fedgh.aggregate(given, weights)
    assert {name: tensor.shape for name, tensor in made.items()} == {"weight": (2, 3), "bias": (2,)}
    assert torch.equal(torch.cat([made["weight"].reshape(-1), made["bias"]]), fedgh.aggregate(flat, weights))
    network.load_state_dict(made)  # the same names


def test_settings_and_a_built_rule(updates):
    assert not torch.equal(fedgh.aggregate(updates, sweeps=5), fedgh.aggregate(updates))
    assert torch.equal(fedgh.aggregate(updates, rule=Median()), updates.sort(0).values[2:4].mean(0))
    inner = fedgh.make_rule("clipped", rule="median", max_norm=1e9, unit="absolute")
    assert torch.equal(fedgh.aggregate(updates, rule=inner), fedgh.aggregate(updates, rule="median"))


def test_memory_lives_in_the_callers_dictionary(updates):
    memory = {}
    first = fedgh.aggregate(updates, rule="gradvac", memory=memory)
    assert memory
    second = fedgh.aggregate(updates, rule="gradvac", memory=memory, round_index=1)
    assert not torch.equal(second, fedgh.aggregate(updates, rule="gradvac", round_index=1))
    assert torch.equal(first, fedgh.aggregate(updates, rule="gradvac"))


def test_conflicts_by_hand():
    # clients 0 and 1 oppose each other in `a`, all agree in `b`; client 2 is orthogonal to the others in `a`
    given = [
        {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0])},
        {"a": torch.tensor([-1.0, 0.0]), "b": torch.tensor([0.0])},
        {"a": torch.tensor([0.0, 2.0]), "b": torch.tensor([0.0])},
    ]
    found = fedgh.conflicts(given, rules=["mean"])
    assert found.cosines.tolist() == [[1, -1, 0], [-1, 1, 0], [0, 0, 1]]
    assert found.share == pytest.approx(1 / 3)
    assert found.layers["a"] == pytest.approx(1 / 3)
    assert math.isnan(found.layers["b"])  # nobody moved there
    assert found.progress["mean"].tolist() == [0, 0, 1]  # the mean is (0, 2/3)
    assert found.metrics()["conflict/ratio"] == pytest.approx(1 / 3)
    assert found.metrics()["progress/mean/min"] == 0
    assert str(found).startswith("3 clients: 33% of 3 pairs in conflict")


def test_conflicts_tell_what_rules_do_to_clients():
    rows = torch.tensor([[1.0, 0.0], [-0.5, 0.1], [1.0, 0.2]])
    found = fedgh.conflicts(rows, rules=["mean", "mgda"])
    assert found.metrics()["progress/mean/against"] == pytest.approx(1 / 3)
    assert found.metrics()["progress/mgda/against"] == 0
    assert "moves against 1 of 3 clients (client 1)" in str(found)
    assert "conflict/layer/all" not in found.metrics()
    assert len(found.figure().axes) >= 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda u: fedgh.aggregate(u, rule="fedhg"), "no rule 'fedhg' (did you mean fedgh?)"),
        (lambda u: fedgh.aggregate(u, sweep=2), "no setting 'sweep' (did you mean sweeps?)"),
        (lambda u: fedgh.aggregate(u, rule=Median(), alpha=1), "settings go with the name"),
        (lambda u: fedgh.aggregate(u, rule="cagrad", c=-1.0), "aggregator.c must be"),
        (lambda u: fedgh.aggregate(u, [1, 2]), "weights must be one number per client: 6, got 2"),
        (lambda u: fedgh.aggregate(u, [0.0] * 6), "not all zero"),
        (lambda u: fedgh.aggregate(u, [-1.0, 1, 1, 1, 1, 1]), "non-negative"),
        (lambda u: fedgh.aggregate(u, client_ids=[3, 1, 2, 4, 5, 6]), "must ascend"),
        (lambda u: fedgh.aggregate(u[0]), "shape (clients, params)"),
        (lambda u: fedgh.aggregate(u.long()), "floating"),
        (lambda u: fedgh.aggregate(u / 0), "not finite"),
        (lambda u: fedgh.aggregate([]), "there are no updates"),
        (lambda u: fedgh.aggregate([nn.BatchNorm1d(2).state_dict()]), "no parameter but a buffer"),
        (lambda u: fedgh.aggregate([{"a": u[0]}, {"a": u[0], "b": u[0]}]), "another b than the first"),
        (lambda u: fedgh.aggregate([{"a": u[0]}, {"a": u[0][:3]}]), "(3,), not (40,)"),
    ],
)
def test_mistakes_are_told_in_one_line(call, says, updates):
    with pytest.raises((ConfigurationError, DataError)) as error:
        call(updates)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_but_pytorch_is_loaded():
    code = (
        "import sys, torch, fedgh; u = torch.randn(4, 9); fedgh.aggregate(u); fedgh.aggregate(u, rule='upgrad'); "
        "fedgh.conflicts(u).metrics(); "
        "print([m for m in ('hydra', 'omegaconf', 'pytorch_lightning', 'wandb', 'torchvision', 'pandas', 'matplotlib', "
        "'torchmetrics') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
