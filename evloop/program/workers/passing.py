"""Connections on their way from the supervisor to a worker.

Theory of operation
-------------------
Each worker has a pair of datagram sockets of its own for them: a datagram is a connection's descriptor, and the number
of the place that it came to. The supervisor keeps both ends. So it can take back what the worker has not read: when the
worker is held up, or has died, these connections go to another one. A datagram is read as a whole, by one of the two
and never by both; so there is nothing to agree upon, and passing costs one system call on each side.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Callable

from evloop.core.loop import Loop
from evloop.core.poller import READ
from evloop.core.timers import Timer

_PLACE = struct.Struct("!H")
_ONE_DESCRIPTOR = socket.CMSG_SPACE(array.array("i").itemsize)

# Connections that are taken before others get their turn.
_PER_PASS = 64
# How long taking rests while the process has no descriptor left.
_EXHAUSTED_PAUSE_S = 0.1


class Passing:
    """The supervisor's side of one pair.

    Attributes:
        worker_end: what the worker is to have, too.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ours.setblocking(False)
        self._theirs.setblocking(False)
        self.worker_end = self._theirs.fileno()

    def put(self, place: int, descriptor: int) -> bool:
        """Pass a connection on; the descriptor stays the caller's. False if there is no room now."""
        try:
            socket.send_fds(self._ours, [_PLACE.pack(place)], [descriptor])
        except OSError:
            return False
        return True

    def take_back(self) -> list[tuple[int, socket.socket]]:
        """What the worker has not read: places, and connections."""
        found = []
        while (one := _take(self._theirs)) is not None:
            found.append(one)
        return found

    def close(self) -> None:
        """The worker is gone. What it has not read is closed, unless it was taken back."""
        self._ours.close()
        self._theirs.close()


class Passed:
    """The worker's side.

    Args:
        descriptor: of its end. Owned.
        on_connection: called with the place and the connection; owns that.
    """

    def __init__(self, loop: Loop, descriptor: int, on_connection: Callable[[int, socket.socket], object]) -> None:
        self._loop = loop
        self._socket = socket.socket(fileno=descriptor)
        self._on_connection = on_connection
        self._pause: Timer | None = None
        self._watch()

    def _watch(self) -> None:
        self._pause = None
        self._loop.poller.register(self._socket.fileno(), READ, self._handle_readable)

    def _handle_readable(self) -> None:
        for _ in range(_PER_PASS):
            if not _has_room(self._socket):
                self._loop.poller.watch(self._socket.fileno(), 0, self._handle_readable)
                self._pause = self._loop.call_later(_EXHAUSTED_PAUSE_S, self._watch)
                return
            found = _take(self._socket)
            if found is None:
                return
            self._on_connection(*found)

    def take_last(self) -> None:
        """Take what is there, and no more from now on. Safe to call twice."""
        if self._socket.fileno() < 0:
            return
        while (found := _take(self._socket)) is not None:
            self._on_connection(*found)
        self.close()

    def close(self) -> None:
        """Take no more. Safe to call twice."""
        if self._socket.fileno() < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.poller.watch(self._socket.fileno(), 0, self._handle_readable)
        self._socket.close()


def _has_room(sock: socket.socket) -> bool:
    """Whether a descriptor that comes could be taken: the kernel drops, without a word, what can't be."""
    try:
        os.close(os.dup(sock.fileno()))
    except OSError:
        return False
    return True


def _take(sock: socket.socket) -> tuple[int, socket.socket] | None:
    if not _has_room(sock):
        return None
    try:
        data, ancillary, _, _ = sock.recvmsg(_PLACE.size, _ONE_DESCRIPTOR)
    except OSError:
        return None
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    if len(data) < _PLACE.size or not descriptors:
        return None
    os.set_inheritable(descriptors[0], False)
    return _PLACE.unpack(data)[0], socket.socket(fileno=descriptors[0])
