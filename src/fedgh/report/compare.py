"""Numbers over seeds: mean and spread, and the gain of one way over another, paired by seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isnan, nan
from statistics import mean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Score:
    """A number over seeds.

    Attributes:
        mean: Over seeds; NaN without any.
        sd: Standard deviation over seeds, n - 1; NaN below two.
        seeds: How many, n.
    """

    mean: float
    sd: float
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Score:
        """Summarize one value per seed; NaN is not counted."""
        known = [value for value in values if not isnan(value)]
        return cls(mean(known) if known else nan, stdev(known) if len(known) > 1 else nan, len(known))


@dataclass(frozen=True)
class Gain:
    """The gain of one way over another, by the seeds that both have.

    Attributes:
        mean: Over pairs; NaN without any.
        low: Lower end of the 95 % interval of Student's t; NaN below two pairs.
        high: Its upper end.
        p_value: Of the two-sided paired t-test; NaN below two pairs, or when all gains are the same number.
        pairs: Seeds that both have, n.
    """

    mean: float
    low: float
    high: float
    p_value: float
    pairs: int


def paired_gain(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Gain:
    """Compare two ways seed by seed.

    Args:
        ours: A number per seed.
        baseline: The same without what is tested; seeds that only one side has are left out.
    """
    seeds = sorted(ours.keys() & baseline.keys())
    gains = [ours[seed] - baseline[seed] for seed in seeds]
    if not gains:
        return Gain(nan, nan, nan, nan, 0)
    if len(gains) == 1:
        return Gain(gains[0], nan, nan, nan, 1)
    if max(gains) - min(gains) < 1e-12:  # the same gain in every seed: nothing to test
        return Gain(gains[0], gains[0], gains[0], nan, len(gains))
    from scipy import stats

    test = stats.ttest_rel([ours[seed] for seed in seeds], [baseline[seed] for seed in seeds])
    interval = test.confidence_interval(CONFIDENCE)
    return Gain(mean(gains), float(interval.low), float(interval.high), float(test.pvalue), len(gains))
