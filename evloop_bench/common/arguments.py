"""Arguments as people write them: types for argparse, and a parser that is brief about what is wrong."""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any, NoReturn

from evloop.charcount.cli.arguments import HelpfulParser, one_line
from evloop_bench.common.streams import EXIT_USAGE, print_error, print_out

_FACTORS = {"k": 1e3, "M": 1e6}
_TIME_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class Parser(HelpfulParser):
    """One that says in one line what is wrong, and writes so that what can't be written is an error."""

    def error(self, message: str) -> NoReturn:
        print_error(f"{self.prog}: {one_line(message)}; see {self.prog} --help")
        sys.exit(EXIT_USAGE)

    def print_help(self, file: Any = None) -> None:
        """Print it.

        Raises:
            CannotWrite: stdout doesn't take it.
        """
        print_out(self.format_help().rstrip())


def _number(text: str, what: str, least: float, *, strict: bool = False) -> float:
    try:
        factor = _FACTORS.get(text[-1:])
        value = float(text) if factor is None else float(text[:-1]) * factor
    except ValueError:
        value = math.nan
    if not least <= value <= 1e9 or (strict and value == least):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def natural(text: str) -> int:
    """A whole number of 0 or more."""
    value = _number(text, "a whole number of 0 or more", 0)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(value)


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    value = natural(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return value


def rate(text: str) -> float:
    """So many a second."""
    return _number(text, "a rate: give a number per second above 0", 0, strict=True)


def seconds(text: str) -> float:
    """A time above 0: ``10``, ``10s``, ``500ms``, ``2m``, ``1h``."""
    return _time(text, strict=True)


def seconds_or_none(text: str) -> float:
    """A time, or 0."""
    return _time(text, strict=False)


def _time(text: str, *, strict: bool) -> float:
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    factor = _TIME_UNITS_S.get(text[len(number) :] or "s")
    what = f"a number of seconds{' above 0' if strict else ''}: write 10, 10s, 500ms, 2m or 1h"
    if factor is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    try:
        return _number(number, what, 0, strict=strict) * factor
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
