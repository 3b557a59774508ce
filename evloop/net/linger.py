"""The last moments of a connection that has said all it had to say.

Closing a socket that still has unread input makes the kernel send a reset, and a reset makes the peer's kernel throw
away what it has not handed to its program yet: our last reply, typically the one that said what was wrong. So after our
FIN we read and drop what comes, until the peer says FIN as well. It may never do so, or never cease to send: both are
bounded.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from evloop.errors import RETRY
from evloop.limits import Limits

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.core.loop import Loop
    from evloop.core.timers import Timer

_DROP_BYTES = 65536


class Linger:
    """Says FIN on a socket, then drops what it receives until the peer has said FIN, too. The socket is not owned.

    Args:
        loop: the loop it lives in.
        sock: a connected socket on which all has been sent.
        limits: bound the time and the bytes.
        on_over: called once, with the limit that ended it or None. Not called after `cancel`.

    Attributes:
        dropped_bytes: how much was dropped so far.

    Raises:
        OSError: the peer was faster: the socket is connected no more.
    """

    __slots__ = ("_limits", "_on_over", "_socket", "_timer", "dropped_bytes")

    def __init__(
        self, loop: Loop, sock: socket.socket, limits: Limits, on_over: Callable[[str | None], object]
    ) -> None:
        self.dropped_bytes = 0
        self._socket = sock
        self._limits = limits
        self._on_over = on_over
        sock.shutdown(socket.SHUT_WR)
        self._timer: Timer | None = loop.call_later(limits.linger_timeout_s, self._timed_out)

    def handle_readable(self) -> None:
        """What to do when the socket is readable."""
        try:
            data = self._socket.recv(_DROP_BYTES)
        except OSError as error:
            if error.errno not in RETRY:
                self._over(None)  # a reset, after all that we had to say was said
            return
        self.dropped_bytes += len(data)
        if not data:
            self._over(None)
        elif self.dropped_bytes > self._limits.linger_bytes:
            self._over("linger-bytes")

    def _timed_out(self) -> None:
        # If this process did not run for a while, much may wait, and the peer's FIN behind it: so all of it is read
        # before it is judged. One read in each step, as each may end it.
        dropped = -1
        while self._timer is not None and dropped != self.dropped_bytes:
            dropped = self.dropped_bytes
            self.handle_readable()
        if self._timer is not None:
            self._over("linger-timeout")

    def _over(self, limit: str | None) -> None:
        self.cancel()
        self._on_over(limit)

    def cancel(self) -> None:
        """It is over, for this or another reason."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
