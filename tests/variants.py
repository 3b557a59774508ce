"""Variants of a test that differ little, of which one is enough for every run."""

from __future__ import annotations

from typing import TypeVar

import pytest

T = TypeVar("T")


def first_of(*values: T) -> list[object]:
    """For `pytest.mark.parametrize`: the first value is tried in every run, the others in slow runs only."""
    return [values[0], *(pytest.param(value, marks=pytest.mark.slow) for value in values[1:])]
