"""Signals: their handlers, the descriptor that wakes the loop, and whether they get through at all.

Python runs handlers in the main thread, between two bytecodes of anything that runs there; so a handler only queues a
call. After a signal, Python goes on with the system call that was interrupted. So the loop's wait ends by something
else: a byte that the interpreter writes to a descriptor.

If the process was started with a signal blocked, that signal never comes, and a server that waits for it can't be
stopped. So signals that are handled here are unblocked, and blocked again at the end.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any


class Signals:
    """The signals that a loop handles. For the main thread.

    Args:
        wakeup_fd: where a byte is to be written for each signal. Not owned.
    """

    def __init__(self, wakeup_fd: int) -> None:
        self._wakeup_fd = wakeup_fd
        self._old_wakeup_fd: int | None = None
        # Signal number -> what handles it, what did before, and whether it was blocked then.
        self._handled: dict[int, tuple[Any, Any, bool]] = {}

    def add(self, signum: int, queue: Callable[[], object]) -> None:
        """Have ``queue()`` called when the process gets the signal, instead of what was called before.

        Raises:
            RuntimeError: not in the main thread.
            OSError, ValueError: the signal can't be handled.
        """

        def on_signal(_signum: int, _frame: object) -> None:
            queue()

        try:
            previous = signal.signal(signum, on_signal)
        except ValueError as error:
            if "main thread" in str(error):
                raise RuntimeError("signals can only be handled by a loop in the main thread") from None
            raise
        was_blocked = unblock(signum)
        if signum in self._handled:
            _, previous, was_blocked = self._handled[signum]
        self._handled[signum] = (on_signal, previous, was_blocked)
        if self._old_wakeup_fd is None:
            self._old_wakeup_fd = signal.set_wakeup_fd(self._wakeup_fd, warn_on_full_buffer=False)

    def remove(self, signum: int) -> None:
        """Restore what was before, unless the program has set a handler since. Nothing happens if it is not handled."""
        if signum not in self._handled:
            return
        ours, previous, was_blocked = self._handled.pop(signum)
        if was_blocked:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signum})
        if signal.getsignal(signum) is ours:
            signal.signal(signum, signal.SIG_DFL if previous is None else previous)
        if not self._handled and self._old_wakeup_fd is not None:
            signal.set_wakeup_fd(self._old_wakeup_fd)
            self._old_wakeup_fd = None

    def remove_all(self) -> None:
        """Restore all of them."""
        for signum in list(self._handled):
            self.remove(signum)


def unblock(signum: int) -> bool:
    """Let a signal through to this thread. Whether it was blocked."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows nothing is blocked
        return False
    return signum in signal.pthread_sigmask(signal.SIG_UNBLOCK, {signum})
