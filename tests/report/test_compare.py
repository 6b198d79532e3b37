import math

import pytest

from fedgh.report.compare import Score, paired_gain


def test_a_score_has_the_spread_of_a_sample():
    assert Score.of([1.0, 3.0]) == Score(2.0, pytest.approx(math.sqrt(2)), 2)
    alone = Score.of([5.0])
    assert (alone.mean, alone.seeds, math.isnan(alone.sd)) == (5.0, 1, True)
    assert math.isnan(Score.of([]).mean)


def test_a_paired_gain_by_hand():
    """Gains 1, 2, 3: t = 2 / (1 / sqrt 3) = 3.4641 with two degrees of freedom; t(0.975) = 4.3027."""
    gain = paired_gain({1: 11.0, 2: 22.0, 3: 33.0}, {1: 10.0, 2: 20.0, 3: 30.0})
    assert (gain.mean, gain.pairs) == (2.0, 3)
    assert gain.p_value == pytest.approx(0.0742, abs=1e-4)
    assert (gain.low, gain.high) == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4)


def test_only_common_seeds_are_paired():
    gain = paired_gain({1: 3.0, 2: 9.0, 7: 100.0}, {1: 1.0, 2: 3.0, 8: -100.0})
    assert (gain.mean, gain.pairs) == (4.0, 2)
    unpaired = paired_gain({1: 3.0}, {2: 1.0})
    assert (unpaired.pairs, math.isnan(unpaired.mean)) == (0, True)


def test_one_pair_has_no_test_and_equal_gains_no_spread():
    alone = paired_gain({4: 3.0}, {4: 1.0})
    assert (alone.mean, alone.pairs, math.isnan(alone.p_value), math.isnan(alone.low)) == (2.0, 1, True, True)
    same = paired_gain({1: 0.3, 2: 0.4}, {1: 0.2, 2: 0.3})
    assert (same.mean, same.low, same.high) == pytest.approx((0.1, 0.1, 0.1))
    assert math.isnan(same.p_value)
