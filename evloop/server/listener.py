"""Accepting connections, whatever happens.

Theory of operation
-------------------
A listening socket is registered like any other descriptor. Each time it is ready, up to ``accepts_per_pass``
connections are accepted: enough to keep up with a storm, few enough that those already served get their turn.

When the process is out of descriptors, accept fails and the connection stays in the kernel's queue, so the listener
stays ready: a loop that only logged the error would spin and log for ever. So the listener takes itself out of the
poller and comes back after a pause, or as soon as its server knows that a descriptor is free. Those who wait in the
queue are served then; nobody is turned away. (The well-known spare descriptor, given up to accept and drop the
client, would turn away someone whose turn may be 100 ms off. What must be turned away, the server's connection limit
turns away, with a reason.)
"""

from __future__ import annotations

import math
import socket
import sys
from collections import Counter
from collections.abc import Callable

from evloop.core.poller import READ
from evloop.core.timers import Timer
from evloop.errors import ACCEPT_RETRY, EXHAUSTED
from evloop.log import WARNING
from evloop.net.sockets import peer_text, set_stream_options

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

    from evloop.core.loop import Loop
    from evloop.net.endpoint import Endpoint

# How long accepting rests when descriptors have run out. At ten tries a second the cost is not measurable.
EXHAUSTED_PAUSE_S = 0.1

# How often it is said, while that goes on: ten tries a second would be ten lines a second, for hours.
WARN_EVERY_S = 60.0

# Linux lets an accepted socket inherit these two from its listener: two system calls less for each connection.
_INHERITS_OPTIONS = sys.platform == "linux"


class Listener:
    """One listening socket in a loop. Owns the socket.

    Args:
        loop: the loop to live in.
        sock: a listening, non-blocking socket, of any family.
        accepts_per_pass: how many connections are accepted before others get their turn.
        on_accept: called with each new socket, non-blocking, its options set, and the peer's address. Owns it then.
        limits_hit: where it is counted that a pass used up its accepts (``accepts-per-pass``), and that there was no
            descriptor for a connection (``descriptors``).
        kernel_unsent_bytes: an option of the new sockets, as in `Limits`.

    Attributes:
        address: where it really listens, as text.
        endpoint: what `Server.listen` was asked for; None if it wasn't.
        accept_errors: accepts that failed, for whatever reason.
        exhausted: how many of them because descriptors had run out.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        accepts_per_pass: int,
        on_accept: Callable[[socket.socket, Any], None],
        limits_hit: Counter[str] | None = None,
        kernel_unsent_bytes: int | None = None,
    ) -> None:
        self.address = peer_text(sock.getsockname())
        self.endpoint: Endpoint | None = None
        self.accept_errors = 0
        self.exhausted = 0
        self._loop = loop
        self._socket = sock
        self._budget = accepts_per_pass
        self._kernel_unsent_bytes = kernel_unsent_bytes
        self._on_accept = on_accept
        self._limits_hit: Counter[str] = Counter() if limits_hit is None else limits_hit
        self._warn_again_at = -math.inf
        self._pause_timer: Timer | None = None
        self._closed = False
        if _INHERITS_OPTIONS:
            set_stream_options(sock, kernel_unsent_bytes)
        loop.poller.register(sock.fileno(), READ, self._handle_acceptable)

    def take(self, sock: socket.socket) -> None:
        """Serve a connection that another process has accepted from this socket. Owns it."""
        try:
            address = sock.getpeername()
            sock.setblocking(False)
            if not _INHERITS_OPTIONS:
                set_stream_options(sock, self._kernel_unsent_bytes)
        except OSError:  # gone already
            sock.close()
            self.accept_errors += 1
            return
        self._on_accept(sock, address)

    @property
    def socket(self) -> socket.socket:
        """The listening socket, for its options and address."""
        return self._socket

    def _handle_acceptable(self) -> None:
        if self.accept_up_to(self._budget):
            self._limits_hit["accepts-per-pass"] += 1

    def accept_up_to(self, count: int) -> bool:
        """Accept at most ``count`` connections. False when there was none left to accept."""
        for _ in range(count):
            if self._closed:  # by what accepting the last one led to
                return False
            try:
                sock, address = self._socket.accept()
            except BlockingIOError:
                return False
            except OSError as error:
                self.accept_errors += 1
                if error.errno in ACCEPT_RETRY:
                    continue
                if error.errno in EXHAUSTED:
                    self.exhausted += 1
                    self._limits_hit["descriptors"] += 1
                self._rest(error.strerror or str(error))
                return False
            except MemoryError:
                self.accept_errors += 1
                self._rest("out of memory")
                raise
            try:
                sock.setblocking(False)
                if not _INHERITS_OPTIONS:
                    set_stream_options(sock, self._kernel_unsent_bytes)
            except OSError:  # gone already; some systems say so here
                sock.close()
                self.accept_errors += 1
                continue
            self._on_accept(sock, address)
        return True

    def leave_to_others(self) -> None:
        """Accept nothing by itself from now on: another process does, and passes connections to `take`."""
        self._loop.poller.watch(self._socket.fileno(), 0, self._handle_acceptable)

    def _rest(self, reason: str) -> None:
        if self._pause_timer is None:
            self._pause_timer = self._loop.call_later(EXHAUSTED_PAUSE_S, self.resume)
            self._loop.poller.watch(self._socket.fileno(), 0, self._handle_acceptable)
            if self._loop.now >= self._warn_again_at:
                self._warn_again_at = self._loop.now + WARN_EVERY_S
                self._loop.log_limited(WARNING, "cannot accept on %s: %s; trying again", self.address, reason)

    def resume(self) -> None:
        """Accept again, if it rests because descriptors had run out; or go on to rest, if the kernel can't watch it."""
        if self._pause_timer is None:
            return
        self._pause_timer.cancel()
        self._pause_timer = self._loop.call_later(EXHAUSTED_PAUSE_S, self.resume)
        try:
            self._loop.poller.watch(self._socket.fileno(), READ, self._handle_acceptable)
        except OSError:  # out of memory for watches
            return
        self._pause_timer.cancel()
        self._pause_timer = None

    @property
    def resting(self) -> bool:
        """True while it does not accept because descriptors have run out."""
        return self._pause_timer is not None

    def close(self) -> None:
        """Stop listening. Connections that wait in the kernel's queue are reset. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._pause_timer is not None:
            self._pause_timer.cancel()
            self._pause_timer = None
        self._loop.poller.watch(self._socket.fileno(), 0, self._handle_acceptable)
        self._socket.close()
