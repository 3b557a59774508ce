"""How sure a figure is: confidence intervals by bootstrap."""

from __future__ import annotations

import random
from collections.abc import Callable

CONFIDENCE = 0.95


def interval(resampled: Callable[[random.Random], float], resamples: int, seed: int) -> tuple[float, float]:
    """The two ends of a percentile bootstrap interval of 95 %.

    Args:
        resampled: the estimate from values drawn anew, with replacement.
        resamples: how often it is drawn.
        seed: the same one gives the same interval for the same values.
    """
    rng = random.Random(seed)
    drawn = sorted(resampled(rng) for _ in range(resamples))
    tail = int(resamples * (1 - CONFIDENCE) / 2)
    return drawn[tail], drawn[-1 - tail]
