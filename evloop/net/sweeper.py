"""Time-outs of connections, found by comparing instead of by timers.

Theory of operation
-------------------
Time-outs usually mean a timer per connection, or a time stamp per message, and both are paid for by every message of
every well-behaved client. Here neither exists. A connection counts its bytes anyway; so every now and then the server
sweeps over its connections and compares. Bytes that have not changed since the last look: idle. Something unsent and no
byte has left: stalled. The same message still unfinished: too slow, however many bytes of it came. A time-out is
so found late by up to two intervals of the sweep, never early; and an idle connection pays some 0.2 us per interval.

A sweep does at most `SWEEP_BATCH` connections in a pass, so that ten thousand of them don't hold up a message.
"""

from __future__ import annotations

from collections.abc import Iterable

from evloop.core.loop import Loop
from evloop.errors import LimitError
from evloop.limits import Limits
from evloop.net.connection import Connection
from evloop.net.state import State

SWEEP_BATCH = 1000
# Of the shortest time-out, so that none is late by more than a quarter.
_SWEEP_FRACTION = 8
_SWEEP_MAX_S = 1.0
_SWEEP_MIN_S = 0.01


class StallClock:
    """For how long something has not changed, by connection. Only what is asked about takes memory.

    Attributes:
        seen: the last value of each, and when it was seen first. Whoever closes a connection takes it out.
    """

    def __init__(self) -> None:
        self.seen: dict[Connection, tuple[int, float]] = {}

    def unchanged_s(self, connection: Connection, marker: int | None, now: float) -> float:
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
    """Ends connections that are idle, stalled or too slow.

    Args:
        loop: the loop they live in.
        connections: those to look after; the collection is the server's and changes.
        limits: the time-outs. With none there is no sweep.
    """

    def __init__(self, loop: Loop, connections: Iterable[Connection], limits: Limits) -> None:
        self._loop = loop
        self._connections = connections
        self._limits = limits
        self._stalled_writes = StallClock()
        self._slow_messages = StallClock()
        armed = [
            timeout
            for timeout in (limits.idle_timeout_s, limits.message_timeout_s, limits.write_timeout_s)
            if timeout is not None
        ]
        self._interval_s = min(max(min(armed, default=0) / _SWEEP_FRACTION, _SWEEP_MIN_S), _SWEEP_MAX_S)
        self._timer = loop.call_later(self._interval_s, self._sweep) if armed else None

    def stop(self) -> None:
        """No sweep any more. Safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def forget(self, connection: Connection) -> None:
        """The connection is over."""
        for clock in (self._stalled_writes, self._slow_messages):
            if clock.seen:
                clock.seen.pop(connection, None)

    def _sweep(self) -> None:
        self._sweep_some(list(self._connections), 0)

    def _sweep_some(self, connections: list[Connection], start: int) -> None:
        now = self._loop.now
        idle_s = self._limits.idle_timeout_s
        has_write_timeout = self._limits.write_timeout_s is not None
        for connection in connections[start : start + SWEEP_BATCH]:
            if connection.state is State.LINGERING or connection.state is State.CLOSED:
                continue
            activity = connection.bytes_received + connection.bytes_sent
            if activity != connection.activity:
                connection.activity = activity
                connection.active_at = now
            elif (
                idle_s is not None
                and now - connection.active_at >= idle_s
                and not (connection.stalled and has_write_timeout)  # else it is the other time-out's to judge
            ):
                connection.end_for(LimitError("idle-timeout", f"no byte in {idle_s:g} s"))
                continue
            self._check_stalls(connection, now)
        start += SWEEP_BATCH
        if start < len(connections):
            self._loop.call_soon(self._sweep_some, connections, start)
        elif self._timer is not None:
            self._timer = self._loop.call_later(self._interval_s, self._sweep)

    def _check_stalls(self, connection: Connection, now: float) -> None:
        message_s = self._limits.message_timeout_s
        if message_s is not None:
            try:
                # Who is not being read can't finish a message, so no time runs for it.
                unread = connection.paused or connection.closing
                message = None if unread else connection.protocol.message_in_progress()
            except Exception as error:
                self._loop.log_exception(error, "connection %s aborted: its protocol raised", connection.peer)
                connection.end_for(error)
                return
            if self._slow_messages.unchanged_s(connection, message, now) >= message_s:
                connection.end_for(LimitError("message-timeout", f"message not complete in {message_s:g} s"))
                return
        write_s = self._limits.write_timeout_s
        if write_s is not None:
            marker = connection.bytes_sent if connection.stalled else None
            if self._stalled_writes.unchanged_s(connection, marker, now) >= write_s:
                connection.end_for(LimitError("write-timeout", f"not one byte read by the peer in {write_s:g} s"))
