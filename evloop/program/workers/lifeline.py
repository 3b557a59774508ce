"""No worker outlives its supervisor for long, not even one that is stuck.

A worker learns from its control channel that the supervisor is gone, and stops in order. One that is stuck does not
read that. So the supervisor holds one end of a pipe for each worker, its *life line*. When the supervisor is gone,
however it went, the kernel closes that end, and sends the worker a signal (``O_ASYNC``, ``F_SETSIG``: on Linux only):

* **SIGIO**, as a rule. The worker handles it, between two bytecodes of whatever it is stuck in, or in a system call
  that waits; and sets the kernel's alarm clock. If that rings before the worker has ended, the kernel ends it.
* **SIGKILL**, if the supervisor had found it stuck by then: what it hangs in may not be Python.

The owner and the signal belong to the open pipe, not to a descriptor, so the supervisor can set both for the worker,
and change them. A worker that has not come to its handler yet is ended by SIGIO, which is right.
"""

from __future__ import annotations

import fcntl
import os
import signal

HAS_LIFE_LINES = hasattr(fcntl, "F_SETSIG") and hasattr(os, "O_ASYNC") and hasattr(signal, "setitimer")


class LifeLine:
    """The supervisor's side of one.

    Attributes:
        worker_end: the descriptor that the worker is to have, too.
    """

    def __init__(self) -> None:
        self.worker_end, self._our_end = os.pipe()
        self._hard: bool | None = None

    def tie(self, pid: int) -> None:
        """Have the kernel tell that process when this one is gone."""
        if not HAS_LIFE_LINES:
            return
        fcntl.fcntl(self.worker_end, fcntl.F_SETOWN, pid)
        self.be_hard(False)
        flags = fcntl.fcntl(self.worker_end, fcntl.F_GETFL)
        fcntl.fcntl(self.worker_end, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)

    def be_hard(self, hard: bool) -> None:
        """Whether it is ended at once then."""
        if not HAS_LIFE_LINES or hard == self._hard:
            return
        self._hard = hard
        fcntl.fcntl(self.worker_end, fcntl.F_SETSIG, signal.SIGKILL if hard else signal.SIGIO)

    def close(self) -> None:
        """The worker is gone."""
        os.close(self.worker_end)
        os.close(self._our_end)


def end_after(grace_s: float) -> None:
    """For a worker: when its life line is cut, it has so much time to end. To be called in the main thread.

    The alarm clock may be the watchdog's until then (`evloop.core.watchdog`): it gives way to whoever takes it.
    """
    if not HAS_LIFE_LINES:
        return

    def cut(_signum: int, _frame: object) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, grace_s)

    signal.signal(signal.SIGIO, cut)
