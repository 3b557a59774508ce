"""A time that passes only while the process runs."""

from __future__ import annotations

from collections.abc import Callable

from evloop.core.loop import Loop
from evloop.core.timers import Timer

# It is counted in so many steps; none is longer than this.
_STEPS = 8
_LONGEST_STEP_S = 1.0


class Countdown:
    """Calls a function when a time is over in which the process ran.

    It goes by steps: of a time in which the process does not run, stopped or frozen, no more than one step counts.

    Args:
        seconds: how long.
        on_over: called once.
    """

    def __init__(self, loop: Loop, seconds: float, on_over: Callable[[], object]) -> None:
        self._loop = loop
        self._on_over = on_over
        self._step_s = min(seconds / _STEPS, _LONGEST_STEP_S)
        self._timer: Timer
        self._wait(seconds)

    def _wait(self, left_s: float) -> None:
        step_s = min(left_s, self._step_s)
        if left_s - step_s > 0.001:
            self._timer = self._loop.call_later(step_s, self._wait, left_s - step_s)
        else:
            self._timer = self._loop.call_later(left_s, self._on_over)

    def cancel(self) -> None:
        """It is not called any more."""
        self._timer.cancel()
