"""Time that a process had, and time that passed it by.

A process may be stopped at any moment: SIGSTOP, a paused container, a closed lid. When it goes on, every deadline is
over by the clock, while what would have met it waits unread in sockets and pipes. So nothing here looks at the clock
once and judges. A deadline is asked again and again, with a look at what is ready in between, and a long gap between
two questions counts as a short one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

# Nobody is judged after fewer looks: a gap between two of them takes no more from the deadline than its part.
_LOOKS = 8
# A heartbeat that comes so much too late shows that the process stood still. A busy machine does not do that.
STALL_S = 1.0


class Patience:
    """A deadline that counts only time in which this process ran.

    Args:
        seconds: how long to wait.
        clock: in seconds, monotonic.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._left_s = seconds
        self._max_step_s = seconds / _LOOKS
        self._clock = clock
        self._asked_s = clock()

    def over(self) -> bool:
        """Whether it is used up. To be asked again and again, each time after a look at what is ready."""
        now_s = self._clock()
        self._left_s -= min(now_s - self._asked_s, self._max_step_s)
        self._asked_s = now_s
        return self._left_s <= 0

    def shorten(self, seconds: float) -> None:
        """Wait no longer than so many seconds from now."""
        if seconds < self._left_s:
            self._left_s = seconds
            self._max_step_s = min(self._max_step_s, seconds / _LOOKS)


class Heartbeat:
    """Finds out for how long a process did not run at all. One that computes for long is busy, and does not count.

    Args:
        period_s: how often `beat` is called.
        clock: in seconds, monotonic.
        cpu_clock: the processor time of this process, in seconds.

    Attributes:
        stalled_s: how long it stood still, in all.
    """

    def __init__(
        self,
        period_s: float,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._period_s = period_s
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._last_s = clock()
        self._last_cpu_s = cpu_clock()
        self.stalled_s = 0.0

    def beat(self) -> None:
        """To be called every ``period_s``."""
        now_s, cpu_s = self._clock(), self._cpu_clock()
        late_s = now_s - self._last_s - self._period_s - (cpu_s - self._last_cpu_s)
        self._last_s, self._last_cpu_s = now_s, cpu_s
        if late_s > STALL_S:
            self.stalled_s += late_s
