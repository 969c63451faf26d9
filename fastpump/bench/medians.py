"""What a few turns say: the median, and between which values that of all turns is.

No distribution is assumed: the interval is made of the k-th least and the k-th greatest value,
which hold the median with the probability of the sign test (W. J. Conover, Practical Nonparametric
Statistics, 3.2). Five turns give 93.75% from the least to the greatest; 95% need six.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Median:
    """Of some turns: the value, and the interval that holds it with the probability `confidence`,
    which is less than CONFIDENCE if there are too few."""

    value: float
    low: float
    high: float
    confidence: float

    @property
    def is_sure(self) -> bool:
        """Whether the interval may be relied on."""
        return self.confidence >= CONFIDENCE

    def excludes(self, value: float) -> bool:
        """Whether the median is surely another than that."""
        return self.is_sure and not self.low <= value <= self.high


def median_of(values: Sequence[float]) -> Median:
    """Of one value at least."""
    ordered = sorted(values)
    count = len(ordered)
    # The probability that fewer than k + 1 of `count` values lie below the median.
    below, chosen, confidence = 0.0, 0, 0.0
    for k in range((count + 1) // 2):
        below += math.comb(count, k) / 2 ** count
        if k and 1 - 2 * below < CONFIDENCE:
            break
        chosen, confidence = k, max(0.0, 1 - 2 * below)
    return Median(statistics.median(ordered), ordered[chosen], ordered[count - 1 - chosen],
                  confidence)


def ratio_in_turn(pairs: Sequence[tuple[float, float]]) -> Median | None:
    """Of two contenders that took turns: round by round, so that a machine whose speed drifts is
    fair to both. None if a value of the other is 0, or there is none."""
    if not pairs or any(other == 0 for _, other in pairs):
        return None
    return median_of([value / other for value, other in pairs])


def ratio_of_runs(values: Sequence[float], others: Sequence[float]) -> Median | None:
    """Of two runs at different times: between the least and the greatest that their intervals
    allow, so that the confidence is that of the lesser one, at least."""
    if not values or not others:
        return None
    one, other = median_of(values), median_of(others)
    if other.low <= 0:
        return None
    return Median(one.value / other.value, one.low / other.high, one.high / other.low,
                  min(one.confidence, other.confidence))
