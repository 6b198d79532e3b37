"""FedDisco: weights by hand, for every measure."""

import math
from types import SimpleNamespace

import pytest
import torch

from fedgh.algorithm.feddisco import FedDisco, discrepancy
from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import first_state

COUNTS = torch.tensor([[2.0, 2.0], [4.0, 0.0], [1.0, 3.0]], dtype=torch.float64)


def weights_of(make, shares, counts=COUNTS, **settings):
    algorithm = make.algorithm(FedDisco, **{"a": 0.5, "b": 0.1, "measure": "l2", **settings})
    shares = torch.tensor(shares, dtype=torch.float64)
    return algorithm.client_weights(shares, SimpleNamespace(messages={"label_counts": counts.long()})).tolist()


def test_discrepancies_by_hand():
    """Of (1/2, 1/2), (1, 0), (1/4, 3/4) from (1/2, 1/2)."""
    assert discrepancy(COUNTS, "l1").tolist() == pytest.approx([0, 1, 0.5])
    assert discrepancy(COUNTS, "l2").tolist() == pytest.approx([0, 0.5**0.5, 0.125**0.5])
    cosines = [1, 0.5**0.5, 0.5 / (0.5**0.5 * 0.625**0.5)]
    assert discrepancy(COUNTS, "cosine").tolist() == pytest.approx([1 - c for c in cosines], abs=1e-12)
    kl = [0, math.log(2), 0.25 * math.log(0.5) + 0.75 * math.log(1.5)]
    assert discrepancy(COUNTS, "kl").tolist() == pytest.approx([d / sum(kl) for d in kl])
    assert discrepancy(COUNTS[:1], "kl").tolist() == [0]  # no sum to divide by


def test_weights_by_hand(make):
    """l1, p = (.3, .4, .3): p - d/2 + .1 = (.4, 0, .15), so (8/11, 0, 3/11)."""
    assert weights_of(make, [0.3, 0.4, 0.3], measure="l1") == pytest.approx([8 / 11, 0, 3 / 11])
    assert sum(weights_of(make, [0.3, 0.4, 0.3], measure="kl")) == pytest.approx(1)


def test_if_nobody_is_left_all_count_by_their_examples(make):
    assert weights_of(make, [0.25, 0.75], COUNTS[1:], a=9.0, measure="l1") == [0.25, 0.75]


def test_zero_and_zero_is_fedavg(make):
    assert weights_of(make, [0.1, 0.2, 0.7], a=0.0, b=0.0) == [0.1, 0.2, 0.7]


def test_clients_report_what_they_hold(make):
    algorithm = make.algorithm(FedDisco, a=0.5, b=0.1, measure="kl")
    federation = make.federation(algorithm=algorithm)
    result = federation.executor([0, 2], first_state(federation))
    counts = torch.from_numpy(federation.partition.class_counts)[[0, 2]]
    assert torch.equal(result.messages["label_counts"], counts)


@pytest.mark.parametrize("settings", [{"a": -1.0}, {"b": -0.1}, {"measure": "emd"}])
def test_bad_settings_are_refused(make, settings):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{next(iter(settings))} must be "):
        weights_of(make, [1.0], **settings)
