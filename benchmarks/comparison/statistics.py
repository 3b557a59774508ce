"""Medians and ratios with confidence intervals, over rounds in which every server ran once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from evloop_bench.common.bootstrap import interval

_RESAMPLES = 4000
_SEED = 20230501  # fixed: the same results always give the same interval


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median and the ends of its 95 % confidence interval; ``rounds`` values went in."""

    value: float
    low: float
    high: float
    rounds: int


def estimate(values: Sequence[float]) -> Estimate:
    """The median, with a percentile bootstrap over the values.

    With the usual five rounds the interval can't be narrower than the data: it is close to their smallest and largest.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("no values")
    if len(values) == 1:
        return Estimate(values[0], values[0], values[0], 1)
    low, high = interval(lambda rng: median(rng.choices(values, k=len(values))), _RESAMPLES, _SEED)
    return Estimate(median(values), low, high, len(values))


def paired_ratio(theirs: Mapping[int, float], ours: Mapping[int, float]) -> Estimate | None:
    """How many times ours theirs is: the ratio within each round, then the median over rounds.

    Pairing within rounds takes out the drift of the machine, which is the same for both. None if no round has both.

    Args:
        theirs, ours: the figure of each round, by the round's number.
    """
    ratios = [theirs[number] / ours[number] for number in sorted(theirs.keys() & ours.keys()) if ours[number] > 0]
    return estimate(ratios) if ratios else None
