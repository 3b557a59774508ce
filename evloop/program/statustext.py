"""A status as people read it."""

from __future__ import annotations

from collections.abc import Mapping

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.server.stats import Value


def status_text(status: Mapping[str, Value]) -> str:
    """A status as people read it: a line for each value, by its name."""
    return "\n".join(f"  {name:<20}{value_text(value)}" for name, value in status.items())


def value_text(value: Value) -> str:
    """A value as people read it."""
    if isinstance(value, float):
        return f"{value:.6f}"
    if isinstance(value, dict):
        value = [f"{name} {count}" for name, count in value.items()]
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "none" if value is None else str(value)
