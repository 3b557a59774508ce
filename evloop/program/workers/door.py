"""Accepting in place of a worker: whoever comes to a socket that nobody serves now is passed to one who works."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from evloop.core.loop import Loop
from evloop.log import WARNING
from evloop.server.listener import Listener
from evloop.server.tcpsockets import ListeningSocket

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

_ACCEPTS_PER_PASS = 64


class Door:
    """One listening socket, at which the supervisor stands while the door is open.

    Args:
        sock: not owned.
        backlog: how many can wait in its queue.
        on_accept: called with each new connection; owns it.
    """

    def __init__(
        self, loop: Loop, sock: socket.socket, backlog: int, on_accept: Callable[[socket.socket], object]
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._backlog = backlog
        self._on_accept = on_accept
        self._listener: Listener | None = None

    def set_open(self, wanted: bool) -> None:
        """Accept from now on, or leave them to others. A socket that is closed already stays so.

        Without a descriptor for it the door stays shut; whoever wants it open will say so again.
        """
        if wanted and self._listener is None and self._socket.fileno() >= 0:
            try:
                self._listener = self._listen()
            except OSError as error:
                self._loop.log_limited(WARNING, "the supervisor cannot accept: %s", error.strerror or error)
        elif not wanted and self._listener is not None:
            self._listener.close()
            self._listener = None

    def _listen(self) -> Listener:
        # A duplicate: a listener owns its socket, and here it is only borrowed.
        duplicate = ListeningSocket(self._socket.family, os.dup(self._socket.fileno()))
        try:
            return Listener(self._loop, duplicate, _ACCEPTS_PER_PASS, self._accepted)
        except BaseException:
            duplicate.close()
            raise

    def _accepted(self, sock: socket.socket, _address: Any) -> None:
        self._on_accept(sock)

    def accept_all(self) -> None:
        """Accept whoever waits there now."""
        was_open = self._listener is not None
        self.set_open(True)
        if self._listener is not None:
            self._listener.accept_up_to(self._backlog + 1)
        self.set_open(was_open)
