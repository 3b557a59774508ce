"""Finding out that something blocks the loop, and what.

Theory of operation
-------------------
A handler that takes long holds up everyone, and nothing in the loop can say so while it happens. To time each handler
would cost each message two readings of the clock. So the loop only counts its passes and says when it is waiting; and a
thread that otherwise sleeps looks in now and then. When it finds the same pass still running, it looks at what the
loop's thread is executing at that moment: the function that evloop called, and the line it has got to. When the pass
ends, the loop knows how long it took, and logs both.

The thread only looks. It touches no connection, takes no lock, and ends with the loop.
"""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evloop.loop import EventLoop

_PACKAGE = __name__.rpartition(".")[0]


class Monitor:
    """A thread that finds what keeps a pass of the loop from ending.

    Args:
        loop: the loop to look at, from the thread that runs it.
        slow_s: how long a pass may take. It is looked at twice in that time.

    Attributes:
        found: what was running when a pass was found to be slow, and which pass that was.
    """

    def __init__(self, loop: EventLoop, slow_s: float) -> None:
        self.found: tuple[int, str] | None = None
        self._loop = loop
        self._interval_s = slow_s / 2
        self._watched = threading.get_ident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="evloop-monitor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        loop = self._loop
        seen = -1
        while not self._stop.wait(self._interval_s):
            current = loop.passes
            if current == seen and not loop.waiting:
                frame = sys._current_frames().get(self._watched)
                where = None if frame is None else describe(frame)
                if where is not None and loop.passes == current:
                    self.found = (current, where)
            seen = current


def describe(frame: FrameType) -> str | None:
    """What code outside of evloop a thread is in: the function that evloop called, and the line it has got to.

    None when it is in none.
    """
    line = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    called = None
    walk: FrameType | None = frame
    while walk is not None:
        module = walk.f_globals.get("__name__", "")
        if module == _PACKAGE or module.startswith(_PACKAGE + "."):
            if called is None:
                called = walk  # evloop itself is busy, or in a function written in C
            return f"{called.f_code.co_qualname} ({line})"
        called = walk
        walk = walk.f_back
    return None
