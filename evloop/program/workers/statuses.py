"""The statuses of several processes as one, and that of each beside it. No I/O.

How a value adds up is declared with its name, in `evloop.server.stats.STATUS`. What a server tells beyond these names
is added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from evloop.program.statustext import value_text
from evloop.server.stats import EACH, MOST, OF_SLOWEST, STATUS, SUM

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

    from evloop.server.stats import Value

    Status = Mapping[str, Value]


def sum_of(statuses: Sequence[Status]) -> dict[str, Value]:
    """One status for all of them, in the order of the first one; `{}` for none.

    They may be of different versions of a program: a name that only some have is that of these.
    """
    names = dict.fromkeys(name for status in statuses for name in status)
    return {name: _total(name, [status for status in statuses if name in status]) for name in names}


def _total(name: str, statuses: Sequence[Status]) -> Value:
    how = STATUS[name][0] if name in STATUS else SUM
    values: list[Any] = [status[name] for status in statuses if status[name] is not None]
    if not values:
        return None
    if how == SUM:
        return _added(values)
    if how == MOST:
        most: Value = max(values)
        return most
    if how == OF_SLOWEST:
        return max(statuses, key=_slowest_pass_s)[name]
    assert how == EACH
    if isinstance(values[0], list):
        return list(dict.fromkeys(one for value in values for one in value))
    return ", ".join(dict.fromkeys(values))


def _added(values: list[Any]) -> Value:
    if not isinstance(values[0], dict):
        total: Value = sum(values)
        return total
    added: Counter[str] = Counter()
    for value in values:
        added.update(value)
    return dict(sorted(added.items()))


def _slowest_pass_s(status: Status) -> float:
    seconds: Any = status.get("slowest_pass_s")
    return -1.0 if seconds is None else seconds


def service_status(by_worker: Mapping[str, Sequence[Status] | None]) -> str:
    """What an operator is shown: a line for each name, with the value of the whole service, and of each worker.

    Args:
        by_worker: the statuses of each worker's servers; None if it does not answer. The servers are the same, and in
            the same order, in all of them; each has a table of its own.
    """
    answers = {worker: servers for worker, servers in by_worker.items() if servers is not None}
    lines = [f"  {len(answers)} of {len(by_worker)} workers answer"]
    lines += [f"  {worker} does not answer" for worker in by_worker if worker not in answers]
    for number in range(max((len(servers) for servers in answers.values()), default=0)):
        each = {worker: servers[number] for worker, servers in answers.items() if number < len(servers)}
        total = sum_of(list(each.values()))
        lines += _table(["all", *each], [total, *each.values()])
    return "\n".join(lines)


def _table(columns: Sequence[str], statuses: Sequence[Status]) -> list[str]:
    """The first status is that of all. Numbers have a column for each; what is longer stands there once."""
    names = statuses[0]
    cells = {name: [_cell(status, name) for status in statuses] for name in names if _is_number(statuses, name)}
    widths = [max(len(column), *(len(row[i]) for row in cells.values())) for i, column in enumerate(columns)]
    lines = [_row("", [f"{column:>{width}}" for column, width in zip(columns, widths, strict=True)])]
    for name, total in names.items():
        if name in cells:
            lines.append(_row(name, [f"{cell:>{width}}" for cell, width in zip(cells[name], widths, strict=True)]))
        else:
            lines.append(_row(name, [value_text(total)]))
    return lines


def _row(name: str, cells: Sequence[str]) -> str:
    return f"  {name:<20}" + "  ".join(cells)


def _is_number(statuses: Sequence[Status], name: str) -> bool:
    return any(isinstance(status.get(name), int | float) for status in statuses)


def _cell(status: Status, name: str) -> str:
    return value_text(status[name]) if name in status else "-"
