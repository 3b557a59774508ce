"""What to do when there is no memory.

Theory of operation
-------------------
A MemoryError can be raised wherever an object is made, also in the middle of handling another error. So some memory is
kept for that moment, and is given up first. Then the servers are asked to give up more. What was interrupted is tried
again: a descriptor stays ready, a timer due and a call queued until it has been handled.

This is about limits that the process is told of (RLIMIT_AS, a machine without overcommitment). A container's limit, or
Linux when it runs out, ends the process without a word; all that a program can do about that is to use less.
"""

from __future__ import annotations

import time
from collections.abc import Callable

# More than CPython's allocator asks the system for at once (1 MiB). It is never written to, so it takes address space
# and no memory.
_RESERVE_BYTES = 2 * 1024 * 1024

# How long everything rests when nothing could be given up: it would only be tried again and again.
_PAUSE_S = 0.05


class MemoryReserve:
    """Some memory for when there is none, and who can give up more.

    Attributes:
        givers: asked to give up some, one after the other, until one says True: it has.
    """

    def __init__(self) -> None:
        self.givers: list[Callable[[], bool]] = []
        self._reserve = bytes(_RESERVE_BYTES)

    def make_room(self) -> bool:
        """After a MemoryError: have something given up, if memory is short at all, and keep a reserve again.

        False if there is nobody who could give something up.
        """
        if not is_short():
            return (
                True  # something absurdly large was asked for; that has been refused, and nobody else is to pay for it
            )
        self._reserve = b""
        try:
            if self.givers and not any(giver() for giver in self.givers):
                time.sleep(_PAUSE_S)
            self._reserve = bytes(_RESERVE_BYTES)
        except MemoryError:
            pass  # it will be tried again when it is missed
        return bool(self.givers)


def is_short() -> bool:
    """Whether less memory is available than the reserve takes."""
    try:
        bytes(_RESERVE_BYTES)
    except MemoryError:
        return True
    return False
