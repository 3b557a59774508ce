"""Time-outs of connections, found by comparing instead of by timers.

Theory of operation
-------------------
Usually a time-out needs a timer for each connection, or a time stamp for each message, so every message of every
well-behaved client pays for it. Here neither exists. A connection counts its bytes anyway; so now and then the server
sweeps over its connections and compares. If the bytes have not changed since the last look, it is idle. If something is
unsent and no byte has left, it is stalled. If the same message is still unfinished, it is too slow, however many bytes
of it have come. So a time-out is found late by up to three intervals of the sweep, never early; and an idle connection
costs some 0.2 us in each interval.

What our kernel takes does not show whether a peer reads: the kernel holds megabytes, and takes nothing for minutes
while a slow peer reads from them. So the kernel is asked how much the peer has acknowledged. That is a system call, so
it is made only for connections for which something waits here, or which have just become quiet.

A process may not run for a while: stopped by a signal, frozen with its container or its machine. In that time peers go
on sending and reading, so a sweep that comes late finds everybody overdue. It only looks, and judges nobody. The next
one does, and by then everything that is ready has been read.

A connection that is paused is watched by no poller, so its peer's reset is found here, too.

A sweep does at most `SWEEP_BATCH` connections in a pass, so that ten thousand of them don't hold up a message.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

from evloop.core.loop import Loop
from evloop.core.timers import Timer
from evloop.errors import LimitError
from evloop.limits import Limits
from evloop.net.connection import Connection
from evloop.net.sockets import unacknowledged_bytes
from evloop.net.state import State

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

SWEEP_BATCH = 1000
# Of the shortest time-out, so that none is late by more than a quarter.
_SWEEP_FRACTION = 12
_SWEEP_MAX_S = 1.0
_SWEEP_MIN_S = 0.01
# A sweep that is late by this share of the interval, and by this time, comes after a time in which nothing ran.
_LATE_FRACTION = 4
_LATE_S = 0.05
# What the kernel has taken may be on its way for as long as this, however short the write time-out is.
_ON_ITS_WAY_S = 1.0

_LINGERING = State.LINGERING
_CLOSED = State.CLOSED


class StallClock:
    """For how long something has not changed, by connection. Only what is asked about takes memory.

    Attributes:
        seen: the last value of each, and when it was seen first. `Sweeper.forget` takes out a connection that is over.
    """

    def __init__(self) -> None:
        self.seen: dict[Connection, tuple[object, float]] = {}

    def unchanged_s(self, connection: Connection, marker: object, now: float) -> float:
        """Seconds since ``marker`` was first seen with this value; 0 and forgotten when it is None."""
        if marker is None:
            self.seen.pop(connection, None)
            return 0.0
        seen = self.seen.get(connection)
        if seen is None or seen[0] != marker:
            self.seen[connection] = (marker, now)
            return 0.0
        return now - seen[1]


class Sweeper:
    """Ends connections that are idle, stalled or too slow, or whose peer has gone without being noticed.

    Args:
        loop: the loop they live in.
        connections: those to look after; the collection is the server's and changes.
        limits: the time-outs.
    """

    def __init__(self, loop: Loop, connections: Iterable[Connection], limits: Limits) -> None:
        self._loop = loop
        self._connections = connections
        self._limits = limits
        self._undelivered = StallClock()
        self._slow_messages = StallClock()
        armed = [
            timeout
            for timeout in (limits.idle_timeout_s, limits.message_timeout_s, limits.write_timeout_s)
            if timeout is not None
        ]
        shortest = min(armed, default=_SWEEP_MAX_S * _SWEEP_FRACTION)
        self._interval_s = min(max(shortest / _SWEEP_FRACTION, _SWEEP_MIN_S), _SWEEP_MAX_S)
        self._late_s = max(self._interval_s / _LATE_FRACTION, _LATE_S)
        self._only_looks = False
        self._began = self._began_before = loop.now  # this sweep, and the one before
        self._left: list[Connection] = []  # to look at in this sweep
        self._timer: Timer | None = loop.call_later(self._interval_s, self._sweep)

    def stop(self) -> None:
        """No sweep any more. Safe to call twice."""
        self._left.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def forget(self, connection: Connection) -> None:
        """The connection is over."""
        if self._undelivered.seen:
            self._undelivered.seen.pop(connection, None)
        if self._slow_messages.seen:
            self._slow_messages.seen.pop(connection, None)

    def dump(self, connection: Connection) -> list[Any]:
        """For how long its time-outs have been running, for `restore` in another process; as JSON has it."""
        now = self._loop.now
        undelivered = self._undelivered.seen.get(connection)
        if undelivered is None and (marker := _undelivered(connection)) is not None:
            undelivered = marker, now  # nobody may have looked since that was sent
        message = self._slow_messages.seen.get(connection)
        same = message is not None and message[0] == connection.protocol.message_in_progress()
        return [
            None if undelivered is None else [undelivered[0], now - undelivered[1]],
            now - message[1] if message is not None and same else None,
        ]

    def restore(self, connection: Connection, waits: list[Any]) -> None:
        """Go on with what `dump` returned."""
        undelivered, slow_s = waits
        now = self._loop.now
        if undelivered is not None:
            marker = undelivered[0]
            seen = tuple(marker) if isinstance(marker, list) else marker
            self._undelivered.seen[connection] = (seen, now - undelivered[1])
        if slow_s is not None:
            self._slow_messages.seen[connection] = (connection.protocol.message_in_progress(), now - slow_s)

    def _sweep(self) -> None:
        assert self._timer is not None
        late_s = self._loop.now - self._timer.when
        # Before anything else, as whatever goes wrong in this sweep must not be the end of all sweeps.
        self._timer = self._loop.call_later(self._interval_s, self._sweep)
        if self._left:
            return  # the last one is still under way
        # Not twice in a row: a loop that is always late has its time-outs, too.
        self._only_looks = late_s > self._late_s and not self._only_looks
        self._began_before, self._began = self._began, self._loop.now
        self._left = list(self._connections)
        self._sweep_some()

    def _sweep_some(self) -> None:
        some = self._left[-SWEEP_BATCH:]
        del self._left[-SWEEP_BATCH:]
        if self._left:
            self._loop.call_soon(self._sweep_some)
        now = self._loop.now
        for connection in some:
            state = connection.state
            if state is not _LINGERING and state is not _CLOSED:
                self._look_at(connection, now)

    def _look_at(self, connection: Connection, now: float) -> None:
        activity = connection.bytes_received + connection.bytes_sent
        quiet = activity == connection.activity
        if not quiet:
            connection.activity = activity
            connection.active_at = now
        elif connection.paused or connection.state is State.HALF_OPEN:
            error = _error_of(connection)
            if error is not None:
                connection.end_for(error)
                return
        undelivered_s = None  # for how long nothing of what waits for the peer has got there; None if nothing waits
        if (
            connection.stalled
            or connection in self._undelivered.seen
            or (quiet and connection.active_at >= self._began_before)  # for the first time since something moved
        ):
            undelivered = _undelivered(connection)
            known = connection in self._undelivered.seen
            undelivered_s = self._undelivered.unchanged_s(connection, undelivered, now)
            if undelivered is None:
                undelivered_s = None
            if known and not undelivered_s:
                connection.active_at = now  # bytes have moved, from our kernel to the peer's
        slow_s = self._message_unfinished_s(connection, now)
        if not self._only_looks:
            self._judge(connection, now - connection.active_at, slow_s, undelivered_s)

    def _judge(self, connection: Connection, idle_s: float, slow_s: float, undelivered_s: float | None) -> None:
        limits = self._limits
        if limits.write_timeout_s is not None and undelivered_s is not None:
            # Bytes that come from the peer are no sign that it reads.
            patience_s = limits.write_timeout_s if connection.stalled else max(limits.write_timeout_s, _ON_ITS_WAY_S)
            if undelivered_s >= patience_s:
                text = f"not one byte read by the peer in {limits.write_timeout_s:g} s"
                connection.end_for(LimitError("write-timeout", text))
                return
        stalled = connection.stalled and limits.write_timeout_s is not None  # then that time-out is the one to judge
        if limits.idle_timeout_s is not None and idle_s >= limits.idle_timeout_s and not stalled:
            connection.end_for(LimitError("idle-timeout", f"no byte in {limits.idle_timeout_s:g} s"))
            return
        if limits.message_timeout_s is not None and slow_s >= limits.message_timeout_s:
            text = f"message not complete in {limits.message_timeout_s:g} s"
            connection.end_for(LimitError("message-timeout", text))

    def _message_unfinished_s(self, connection: Connection, now: float) -> float:
        if self._limits.message_timeout_s is None:
            return 0.0
        try:
            # A connection that is not being read can't finish a message, so no time counts for it.
            unread = connection.paused or connection.closing
            message = None if unread else connection.protocol.message_in_progress()
        except Exception as error:
            self._loop.log_exception(error, "connection %s aborted: its protocol raised", connection.peer)
            connection.end_for(error)
            return 0.0
        return self._slow_messages.unchanged_s(connection, message, now)


def _undelivered(connection: Connection) -> object:
    """What changes when the peer takes some of what waits for it, here or in the kernel; None if nothing waits."""
    unacknowledged = unacknowledged_bytes(connection.socket)
    return (connection.bytes_sent, unacknowledged) if connection.stalled or unacknowledged else None


def _error_of(connection: Connection) -> OSError | None:
    """Why the peer of a connection that nobody watches is gone, if it is."""
    try:
        code = connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    except OSError as error:
        return error
    return OSError(code, os.strerror(code)) if code else None
