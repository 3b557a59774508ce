"""A queue of timers that never reads a clock.

Theory of operation
-------------------
The queue is a binary heap of ``(when, sequence, timer)``. The sequence number makes timers that are due at
the same moment fire in the order they were added, and keeps the heap from ever comparing two timers.

Cancelling does not search the heap: it marks the timer, and the entry is dropped when it reaches the top. A
program that arms and cancels a time-out per request would so fill the heap with dead entries that sit far in
the future, so the queue is rebuilt once more than half of it is dead. Each rebuild is paid for by the
cancellations that caused it: the cost per operation stays O(log n), and memory stays proportional to the
number of live timers.

Time is whatever the caller says it is: ``pop_due(now)`` takes it as an argument. So tests run without waiting, and
no change of the wall clock can reach in here.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

# Below this a rebuild saves nothing worth having.
_COMPACT_MIN = 64


class Timer:
    """A callback that is due at a moment. Made by `TimerQueue.add`; `cancel` is all a user calls.

    Attributes:
        when: the moment it is due, in seconds of the clock its creator uses.
    """

    __slots__ = ("_queue", "args", "callback", "when")

    def __init__(self, when: float, callback: Callable[..., object], args: tuple[Any, ...], queue: TimerQueue) -> None:
        self.when = when
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self._queue = queue

    def cancel(self) -> None:
        """Make sure the callback does not run (again). Safe to call twice, or after it ran."""
        if self.callback is not None:
            self.callback = None
            self.args = ()
            self._queue._cancelled_one()

    @property
    def active(self) -> bool:
        """True until the timer has fired or was cancelled."""
        return self.callback is not None

    def __repr__(self) -> str:
        what = "done" if self.callback is None else getattr(self.callback, "__qualname__", repr(self.callback))
        return f"<Timer when={self.when:.6f} {what}>"


class TimerQueue:
    """Timers in the order they are due."""

    __slots__ = ("_cancelled", "_heap", "_sequence")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._sequence = 0
        self._cancelled = 0

    def __len__(self) -> int:
        """The number of timers that are still to fire."""
        return len(self._heap) - self._cancelled

    def add(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Have ``callback(*args)`` fall due at ``when`` (seconds)."""
        timer = Timer(when, callback, args, self)
        self._sequence += 1
        heapq.heappush(self._heap, (when, self._sequence, timer))
        return timer

    def next_due(self) -> float | None:
        """When the earliest live timer is due, or None when there is none."""
        heap = self._heap
        while heap:
            if heap[0][2].callback is not None:
                return heap[0][0]
            heapq.heappop(heap)
            self._cancelled -= 1
        return None

    @property
    def newest(self) -> int:
        """A number that grows with each timer added; see `pop_due`."""
        return self._sequence

    def pop_due(self, now: float, newest: int | None = None) -> tuple[Callable[..., object], tuple[Any, ...]] | None:
        """Take out the earliest timer that is due at ``now``: its callback and arguments, or None.

        One at a time, and not a list of all that are due, so that a callback can still cancel a timer that falls due
        at the same moment. A caller that takes all that are due passes the value that `newest` had at its first call:
        then a callback that adds a timer which is due already can't keep it there for ever.
        """
        due = self.next_due()
        if due is None or due > now or (newest is not None and self._heap[0][1] > newest):
            return None
        timer = heapq.heappop(self._heap)[2]
        callback, args = timer.callback, timer.args
        assert callback is not None
        timer.callback = None
        timer.args = ()
        return callback, args

    def _cancelled_one(self) -> None:
        self._cancelled += 1
        if self._cancelled > _COMPACT_MIN and self._cancelled * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].callback is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0
