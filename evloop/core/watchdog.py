"""Finding out what blocks the loop.

Theory of operation
-------------------
A handler that takes long makes everybody wait, and nothing in the loop can notice while it happens. To time each
handler would cost each message two readings of the clock. A second thread for this costs more than one would think: as
soon as a process has two threads, the kernel counts references to a descriptor in each system call and malloc takes
locks, 1.7 % of a busy server's time. A signal costs nothing between two ticks, and at each tick one pass of the loop
that has nothing to do. So an interval timer interrupts the process now and then, and Python tells the signal's handler
what was being executed at that moment: the function that evloop had called, and the line that was reached. When the
pass ends, the loop knows how long it took, and logs that with the function that was seen most often, as a pass may run
many.

A server that has nothing to do should not be woken for this ten times a second. If a tick finds that there was no pass
but the one of the last tick, it stops the timer; the loop starts it again when it has something to do.

Python runs signal handlers between two bytecodes of the main thread. If a function blocks in C, it is named when it
returns, which is still in time: the pass has not ended.
"""

from __future__ import annotations

import signal
from collections import Counter
from types import FrameType

from evloop.core.signals import unblock

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Protocol

    class Watched(Protocol):
        """What is looked at, as a loop has it."""

        passes: int
        waiting: bool
        unwatched: bool


# What is not blamed: the library. What is built on it is blamed, even if it is in the same package.
_LIBRARY = "evloop"
_APPLICATION = "evloop.charcount"


class Watchdog:
    """Samples what the loop is doing, by SIGALRM and the process's one interval timer of real time.

    Does nothing where these can't be had: outside of the main thread, on a platform without them, or when the program
    uses them itself.

    Args:
        loop: the loop to look at, which runs in this thread.
        slow_s: how long a pass may take. It is looked at that often, so whatever takes longer is seen.
    """

    def __init__(self, loop: Watched, slow_s: float) -> None:
        self._loop = loop
        self._slow_s = slow_s
        self._passes_seen = 0
        self._found_pass = 0  # the last pass in which something was seen
        self._found: Counter[str] = Counter()  # what was seen in it, and how often
        self._lines: dict[str, str] = {}  # and where, when it was seen last
        self._active = (
            hasattr(signal, "setitimer")
            and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
            and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        )
        # One object: handed over, and compared with at the end, when there may be no memory for another.
        self._handler = self._sample
        self._was_blocked = False
        if self._active:
            try:
                signal.signal(signal.SIGALRM, self._handler)
            except ValueError:  # not in the main thread
                self._active = False
                return
            try:
                # A process may have been started with it blocked: then it would never look, and leave one to come.
                self._was_blocked = unblock(signal.SIGALRM)
                self.watch()
            except BaseException:
                self.stop()
                raise

    def watch(self) -> None:
        """Look from now on. For the loop, when it had been left unwatched."""
        if self._active and signal.getsignal(signal.SIGALRM) is self._handler:  # else the program has taken both over
            self._passes_seen = self._loop.passes
            signal.setitimer(signal.ITIMER_REAL, self._slow_s, self._slow_s)

    def stop(self) -> None:
        """Give timer and signal back, also when there is no memory: an alarm that comes later would end the process."""
        if self._active and signal.getsignal(signal.SIGALRM) is self._handler:  # else the program has taken both over
            try:
                signal.setitimer(signal.ITIMER_REAL, 0)  # has done so, should there be no memory for what it returns
            finally:
                self._active = False
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                if self._was_blocked:
                    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        self._active = False

    def found_in(self, current_pass: int) -> str:
        """What was running most of the times that it looked in this pass, as words for a log line."""
        if not self._active:
            return "a handler that could not be looked for"
        if self._found_pass != current_pass:
            return "a handler that was not seen at it"
        ((function, _),) = self._found.most_common(1)
        return f"{function} ({self._lines[function]}){', mostly' if len(self._found) > 1 else ''}"

    def _sample(self, signum: int, frame: FrameType | None) -> None:
        try:
            self._look(frame)
        except MemoryError:
            pass  # it would be raised wherever the program has just got to

    def _look(self, frame: FrameType | None) -> None:
        loop = self._loop
        if loop.waiting:
            if loop.passes - self._passes_seen <= 1:  # one: the pass that the last tick itself led to
                signal.setitimer(signal.ITIMER_REAL, 0)
                loop.unwatched = True
            self._passes_seen = loop.passes
        elif frame is not None:
            seen = describe(frame)
            if seen is not None:
                if self._found_pass != loop.passes:
                    self._found_pass = loop.passes
                    self._found.clear()
                    self._lines.clear()
                function, line = seen
                self._found[function] += 1
                self._lines[function] = line


def describe(frame: FrameType) -> tuple[str, str] | None:
    """What code a thread is in: the function that evloop called, and the line it is at; None if evloop called none."""
    line = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    called = None
    walk: FrameType | None = frame
    while walk is not None:
        if _is_library(walk.f_globals.get("__name__")):
            if called is None:
                called = walk  # evloop itself is busy, or in a function written in C
            return called.f_code.co_qualname, line
        called = walk
        walk = walk.f_back
    return None


def _is_library(module: object) -> bool:
    return (
        isinstance(module, str)
        and f"{module}.".startswith(f"{_LIBRARY}.")
        and not f"{module}.".startswith(f"{_APPLICATION}.")
    )
