"""A selector that wakes up on time.

epoll's time-out has a resolution of a millisecond, and Python rounds it up: a message meant to leave in 0.2 ms would
leave in one. select(2) counts in microseconds, and an epoll descriptor can itself be waited for. So this one waits for
its inner selector with select, and then asks the inner one what is ready: one system call more, and late by the
scheduler's slack (some 50 us) instead of by a millisecond.
"""

from __future__ import annotations

import select
import selectors
from collections.abc import Mapping
from typing import Any

# A longer wait needs no such precision at its end: the loop will wait again for the rest of it.
_PRECISE_WAIT_S = 0.005


class PreciseSelector(selectors.BaseSelector):
    """Wraps ``selectors.DefaultSelector``; where that has no descriptor of its own (poll), it is as precise as that."""

    def __init__(self) -> None:
        self._inner = selectors.DefaultSelector()
        fileno = getattr(self._inner, "fileno", None)
        self._fds = [] if fileno is None else [fileno()]

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or not self._fds or timeout <= 0:
            return self._inner.select(timeout)
        if timeout > _PRECISE_WAIT_S:
            # epoll rounds up: leave out what the rounding could add.
            return self._inner.select(timeout - 0.002)
        ready, _, _ = select.select(self._fds, [], [], timeout)
        return self._inner.select(0) if ready else []

    def close(self) -> None:
        self._inner.close()

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._inner.get_map()
