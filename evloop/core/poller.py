"""Readiness: which descriptors can be read or written without blocking.

Descriptors are registered through the public API of ``selectors.DefaultSelector``, which picks epoll, kqueue, poll or
select. Each has one handler, called without arguments: **readiness is a hint**, never a fact. What a handler
learns, it learns from the system call it tries; a stale event is just an EAGAIN. So no event mask has to be interpreted
anywhere, and a hang-up or an error on a socket surfaces through the same read or write as everything else.

A descriptor that nobody wants to read or write is not registered at all. epoll and poll report HUP and ERR whether
asked to or not; a paused connection that stayed registered would turn the loop into a busy loop when its peer resets.
"""

from __future__ import annotations

import errno
import os
import select
import selectors
import sys
from collections.abc import Callable

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

Handler = Callable[[], None]

# select(2) looks at a bitmap of this many descriptors; Windows' version at a list of this many sockets, of which a few
# are left for the loop itself.
SELECT_MAX_FD = 1024
SELECT_MAX_SOCKETS_WINDOWS = 512

# How many descriptors one poll tells of at most: epoll's default in Python. The others have their turn in the next one.
POLL_MAX_EVENTS = 1023


class Poller:
    """Handlers by descriptor, over one selector.

    Args:
        selector: the selector to use, owned and closed by the poller. Default: ``selectors.DefaultSelector()``.

    Attributes:
        handlers: what to call when a descriptor is ready. Read it; change it with `register` and `watch`
            only.
        poll: wait until something is ready. Takes the longest wait in seconds (0 to only look, None for ever), returns
            pairs of a ready descriptor and something to ignore.
    """

    def __init__(self, selector: selectors.BaseSelector | None = None) -> None:
        self._selector = selectors.DefaultSelector() if selector is None else selector
        self.handlers: dict[int, Handler] = {}
        self.poll: Callable[[float | None], list[tuple[int, Any]]] = self._poll_selector
        self._epoll: select.epoll | None = None
        self._is_select = isinstance(self._selector, selectors.SelectSelector)
        if hasattr(select, "epoll") and isinstance(self._selector, selectors.EpollSelector):
            # EpollSelector.select() makes a list of keys and translates the masks, 3-6 % of a busy server's time for
            # what we don't look at. A duplicate of its descriptor polls the same kernel object. epoll.poll rounds the
            # time-out up to its resolution of 1 ms, so a timer is never early and never spins.
            self._epoll = select.epoll.fromfd(os.dup(self._selector.fileno()))
            self.poll = self._epoll.poll
            if sys.implementation.name == "pypy":
                self.poll = self._poll_epoll_of_pypy

    @property
    def name(self) -> str:
        """The selector's class name, for logs."""
        return type(self._selector).__name__

    @property
    def capacity(self) -> int | None:
        """How many descriptors it can watch at most; None when only the process's own limit counts."""
        if not self._is_select:
            return None
        return SELECT_MAX_SOCKETS_WINDOWS if sys.platform == "win32" else SELECT_MAX_FD

    def register(self, fd: int, events: int, handler: Handler) -> None:
        """Call ``handler`` whenever ``fd`` is ready for any of ``events`` (`READ`, `WRITE` or both).

        Raises:
            KeyError: ``fd`` is registered already.
            OSError: it can't be watched: the kernel is out of memory for watches, or (with EMFILE) it is past what
                select() can look at.
        """
        if self._is_select:
            taken = len(self.handlers) if sys.platform == "win32" else fd
            if taken >= (self.capacity or 0):
                raise OSError(errno.EMFILE, f"select() cannot watch more than {self.capacity} descriptors")
        self._selector.register(fd, events)
        try:
            self.handlers[fd] = handler
        except MemoryError:
            self._selector.unregister(fd)  # watched and without a handler, it would be reported for ever
            raise

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """Bring what is watched of ``fd`` to ``events`` and ``handler``, whatever it was before.

        With ``events`` 0 it is forgotten: from here on its handler is not called, not even for an event already
        reported. That must come before the descriptor is closed.

        Raises:
            OSError: as for `register`.
        """
        if fd not in self.handlers:
            if events:
                self.register(fd, events, handler)
        elif events:
            try:
                self._selector.modify(fd, events)
            except OSError:
                del self.handlers[fd]  # the selector has forgotten it, too; the kernel has not, until it is closed
                raise
            self.handlers[fd] = handler
        else:
            del self.handlers[fd]
            self._selector.unregister(fd)

    def _poll_epoll_of_pypy(self, timeout_s: float | None) -> list[tuple[int, Any]]:
        # There None, for ever, is a TypeError, which would end a loop that has no timers.
        assert self._epoll is not None
        return self._epoll.poll(-1 if timeout_s is None else timeout_s)

    def _poll_selector(self, timeout_s: float | None) -> list[tuple[int, Any]]:
        return [(key.fd, events) for key, events in self._selector.select(timeout_s)]

    def close(self) -> None:
        """Close the selector. The descriptors themselves belong to those who registered them."""
        self.handlers.clear()
        if self._epoll is not None:
            self._epoll.close()
        self._selector.close()
