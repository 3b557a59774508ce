"""Whether a worker lives and works, and when one that died is started again. No I/O, no clock.

Each worker sends a *beat* now and then, by a timer of the loop that serves its clients: a beat from another thread
would come as well if that loop hung. From how long none has come follows what the worker is:

* **well**;
* **late**: it may be busy with something long. Its clients wait, but new ones need not: others get them;
* **stuck**: after ``stuck_timeout_s`` nobody believes any more that it comes back.

Until it is ready, a worker has another time, in which it loads what it needs: ``boot_timeout_s``.

Time is counted in steps, and of a long one only a part: if the supervisor was stopped, or the machine slept, workers
did not run either, and are not to blame.
"""

from __future__ import annotations

# How often a worker's loop says that it runs. The cost: a wake-up and two system calls each.
BEAT_S = 0.1
# Without a beat for so long it is late. A new connection has to be answered within 0.5 s, whatever one worker does.
LATE_S = 0.2
# Of a step that was longer than this no more counts.
_LONGEST_STEP_S = 0.5

# Who has served for so long is followed by another one at once; else after a delay, which doubles each time.
_GOOD_LIFE_S = 1.0
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 5.0


class Pulse:
    """What is known of one worker's life.

    Args:
        boot_timeout_s, stuck_timeout_s: see above; None for any time.

    Attributes:
        ready: it has said that it serves.
        silent_s: how long nothing has been heard of it.
    """

    __slots__ = ("_boot_timeout_s", "_stuck_timeout_s", "ready", "silent_s")

    def __init__(self, boot_timeout_s: float | None, stuck_timeout_s: float | None) -> None:
        self._boot_timeout_s = boot_timeout_s
        self._stuck_timeout_s = stuck_timeout_s
        self.ready = False
        self.silent_s = 0.0

    def heard(self) -> None:
        """It has said something."""
        if self.ready:
            self.silent_s = 0.0

    def became_ready(self) -> None:
        """It has said that it serves."""
        self.ready = True
        self.silent_s = 0.0

    def let_pass(self, seconds: float) -> None:
        """So much time is over."""
        self.silent_s += min(seconds, _LONGEST_STEP_S)

    @property
    def well(self) -> bool:
        """It can be given new connections."""
        return self.ready and self.silent_s < LATE_S

    @property
    def given_up(self) -> bool:
        """It is stuck, or does not get ready."""
        timeout_s = self._stuck_timeout_s if self.ready else self._boot_timeout_s
        return timeout_s is not None and self.silent_s >= timeout_s


class Backoff:
    """How long to wait before a worker is started again: not at all, unless it keeps dying young."""

    __slots__ = ("_delay_s",)

    def __init__(self) -> None:
        self._delay_s = 0.0

    def after(self, lived_s: float) -> float:
        """The delay, in seconds, after one that lived for so long."""
        if lived_s >= _GOOD_LIFE_S:
            self._delay_s = 0.0
            return 0.0
        delay_s = self._delay_s
        self._delay_s = min(max(2 * delay_s, _FIRST_DELAY_S), _LONGEST_DELAY_S)
        return delay_s
