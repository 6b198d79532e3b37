"""Are ways to train told apart? Every pair by a paired test with Holm's correction, all of them by their ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isnan, nan, sqrt

import numpy as np

from fedgh.report.compare import CONFIDENCE, Gain, Score, paired_gain


@dataclass(frozen=True)
class Pair:
    """Two ways compared seed by seed.

    Attributes:
        first: Index of one.
        second: Of the other.
        gain: Of the first over the second.
        effect: The mean gain in standard deviations of the gains over seeds (Cohen's d of pairs); NaN below two.
        p_holm: The p-value of the paired t-test after Holm's correction for all pairs; NaN where there is none.
    """

    first: int
    second: int
    gain: Gain
    effect: float
    p_holm: float

    @property
    def apart(self) -> bool:
        """Whether the two are told apart at 5 %, with all pairs of the table allowed for."""
        return self.p_holm < 1 - CONFIDENCE


def pairs(scores: Sequence[Mapping[int, float]]) -> list[Pair]:
    """Compare every two of some ways, each given as a number by seed."""
    places = list(combinations(range(len(scores)), 2))
    gains = [paired_gain(scores[first], scores[second]) for first, second in places]
    corrected = holm([gain.p_value for gain in gains])
    return [
        Pair(*place, gain, _effect(scores[place[0]], scores[place[1]]), p)
        for place, gain, p in zip(places, gains, corrected, strict=True)
    ]


def _effect(ours: Mapping[int, float], theirs: Mapping[int, float]) -> float:
    of = Score.of(ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys())
    return of.mean / of.sd if of.sd > 0 else nan


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct m p-values for their number: the k-th smallest times m - k + 1, never falling, at most 1.

    Args:
        p_values: NaN where nothing was tested; these do not count.

    Reference:
        Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if not isnan(p))
    corrected, least = [nan] * len(p_values), 0.0
    for step, (p, place) in enumerate(known):
        least = min(1.0, max(least, (len(known) - step) * p))
        corrected[place] = least
    return corrected


@dataclass(frozen=True)
class Ranks:
    """Ways ranked within every seed that all of them have.

    Attributes:
        mean: Mean rank of each, 1 the best; those alike share theirs.
        difference: Mean ranks further apart than this differ at 5 % (Nemenyi's test).
        p_value: Of Friedman's test that all are alike; NaN below three ways.
        seeds: How many, N.
    """

    mean: Sequence[float]
    difference: float
    p_value: float
    seeds: int

    @classmethod
    def of(cls, scores: Sequence[Mapping[int, float]]) -> Ranks | None:
        """Rank some ways, each given as a number by seed; None below two ways or two seeds that all have.

        Reference:
            Demsar, JMLR 7, 2006, section 3.2.2.
        Departures:
            The blocks are the seeds of one setting, not data sets: what is told apart is told for that setting.
        """
        from scipy import stats

        seeds = sorted(set.intersection(*(set(of) for of in scores))) if scores else []
        if len(scores) < 2 or len(seeds) < 2:
            return None
        table = np.array([[of[seed] for of in scores] for seed in seeds])  # (seeds, ways)
        mean = stats.rankdata(-table, axis=1).mean(0)
        count = len(scores)
        quantile = float(stats.studentized_range.ppf(CONFIDENCE, count, np.inf)) / sqrt(2)
        difference = quantile * sqrt(count * (count + 1) / (6 * len(seeds)))
        p_value = float(stats.friedmanchisquare(*table.T).pvalue) if count > 2 else nan
        return cls(mean.tolist(), difference, p_value, len(seeds))

    def bars(self) -> list[tuple[int, int]]:
        """Return the longest groups that are not told apart, as first and last place in the order of mean rank."""
        ranks = sorted(self.mean)
        found: list[tuple[int, int]] = []
        for first, low in enumerate(ranks):
            last = max(place for place, rank in enumerate(ranks) if rank - low <= self.difference)
            if last > first and (not found or last > found[-1][1]):
                found.append((first, last))
        return found
