"""Conditions on a result, as in ``--assert 'p99<10ms'``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
# What a unit multiplies by, and of which kind of quantity it is. Times are compared in milliseconds.
_UNITS: dict[str, tuple[float, str]] = {
    "ns": (1e-6, "time"),
    "us": (1e-3, "time"),
    "ms": (1.0, "time"),
    "s": (1e3, "time"),
    "k": (1e3, "number"),
    "M": (1e6, "number"),
    "B": (1.0, "bytes"),
    "KiB": (1024.0, "bytes"),
    "MiB": (1024.0**2, "bytes"),
    "GiB": (1024.0**3, "bytes"),
    "%": (0.01, "share"),
}
_PERCENTILES = ("p50", "p90", "p95", "p99", "p99.9", "p99.99")
_DISTRIBUTIONS = {
    "": "latency",
    "latency.": "latency",
    "service.": "service_time",
    "lateness.": "send_lateness",
    "connect.": "connect_time",
}

_CONDITION = re.compile(r"\s*([a-z_0-9.]+?)\s*(<=|>=|==|!=|<|>)\s*([0-9][0-9._]*(?:e[0-9]+)?)\s*([a-zA-Z%]*)\s*")

Reader = Callable[[dict[str, Any]], float | None]


class AssertionSyntaxError(ValueError):
    """A condition that can't be understood. The text says why."""


def _path(*keys: str) -> Reader:
    def read(result: dict[str, Any]) -> float | None:
        value: Any = result
        for key in keys:
            if value is None:
                return None
            value = value.get(key)
        return value  # type: ignore[no-any-return]

    return read


def _scaled(reader: Reader, factor: float) -> Reader:
    def read(result: dict[str, Any]) -> float | None:
        value = reader(result)
        return None if value is None else value * factor

    return read


def _metrics() -> dict[str, tuple[str, Reader]]:
    """Each name, with the kind of quantity it is and where it stands in a result."""
    metrics: dict[str, tuple[str, Reader]] = {
        "throughput": ("number", _path("throughput_per_s")),
        "messages": ("number", _path("messages", "measured")),
        "errors": ("number", _path("error_total")),
        "late_sends": ("number", _path("messages", "late_sends")),
        "missed_sends": ("number", _path("messages", "missed_sends")),
        "cpu_per_message": ("time", _scaled(_path("server", "cpu_us_per_message"), 1e-3)),
        "generator_cpu_per_message": ("time", _scaled(_path("generator", "cpu_us_per_message"), 1e-3)),
        "cpu": ("share", _path("server", "cpu_share")),
        "rss": ("bytes", _path("server", "rss_max_bytes")),
        "rss_per_connection": ("bytes", _path("server", "rss_per_connection_bytes")),
    }
    for kind in ("wrong", "missing", "late", "refused", "reset", "timed_out"):
        metrics[kind] = ("number", _path("errors", kind))
    for prefix, key in _DISTRIBUTIONS.items():
        for name in _PERCENTILES:
            metrics[prefix + name] = ("time", _path(key, "percentiles_ms", name[1:]))
        for name in ("mean", "max", "min"):
            metrics[prefix + name] = ("time", _path(key, f"{name}_ms"))
    return metrics


METRICS = _metrics()


@dataclass(frozen=True)
class Condition:
    """One condition; ``text`` is as it was written, ``bound`` in the unit in which the metric is kept."""

    text: str
    metric: str
    comparison: str
    bound: float

    def check(self, result: dict[str, Any]) -> str | None:
        """None if the result meets it, else what is wrong with it."""
        value = METRICS[self.metric][1](result)
        if value is None:
            return f"{self.text}: {self.metric} is not known (too few samples, or not measured in this run)"
        if _OPERATORS[self.comparison](value, self.bound):
            return None
        return f"{self.text}: it is {_shown(value, METRICS[self.metric][0])}"


def _shown(value: float, kind: str) -> str:
    if kind == "time":
        return f"{value:.4g} ms" if value >= 1 else f"{value * 1000:.4g} us"
    if kind == "share":
        return f"{value:.1%}"
    if kind == "bytes":
        return f"{value / 1024:,.1f} KiB"
    return f"{value:,.10g}"


def parse_condition(text: str) -> Condition:
    """A condition from ``NAME OPERATOR NUMBER[UNIT]``.

    Raises:
        AssertionSyntaxError: it is none, or the name or the unit is not known or doesn't fit.
    """
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise AssertionSyntaxError(
            f"{text!r} is not a condition: write one like p99<10ms, errors==0 or throughput>=50k"
        )
    name, comparison, number, unit = match.groups()
    if name not in METRICS:
        known = ", ".join(name for name in METRICS if "." not in name or name.startswith("p"))
        raise AssertionSyntaxError(
            f"{text!r}: there is no {name!r}; known are {known}; also service.p99, lateness.p99 ..."
        )
    kind = METRICS[name][0]
    if kind == "time" and not unit:
        raise AssertionSyntaxError(f"{text!r}: {name} is a time and needs a unit: ns, us, ms or s")
    factor, unit_kind = _UNITS.get(unit, (0.0, "")) if unit else (1.0, kind)
    if unit_kind != kind:
        raise AssertionSyntaxError(f"{text!r}: {unit!r} is not a unit of {name}")
    try:
        bound = float(number) * factor
    except ValueError:
        raise AssertionSyntaxError(f"{text!r}: {number!r} is not a number") from None
    return Condition(text, name, comparison, bound)
