"""A server: listeners, connections, limits, time-outs and an orderly end.

Theory of operation: the sweep
------------------------------
Time-outs usually mean a timer per connection, or a time stamp per message, and both are paid for by every message of
every well-behaved client. Here neither exists. A connection counts its bytes anyway; so every now and then the server
sweeps over its connections and compares. Bytes that have not changed since the last look: idle. Something unsent and no
byte has left: stalled. The same message still unfinished: too slow, however many bytes of it came. A time-out is
so found late by up to two intervals of the sweep, never early; and an idle connection pays some 0.2 us per interval.

A sweep does at most `SWEEP_BATCH` connections in a pass, so that ten thousand of them don't hold up a message.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from evloop.connection import Connection, State
from evloop.connector import peer_text
from evloop.descriptors import affordable_connections
from evloop.errors import LimitError
from evloop.limits import Limits
from evloop.listener import Listener, open_listeners
from evloop.loop import EventLoop
from evloop.protocol import Protocol
from evloop.timers import Timer

_log = logging.getLogger("evloop.server")

SWEEP_BATCH = 1000
# Of the shortest time-out, so that none is late by more than a quarter.
_SWEEP_FRACTION = 8
_SWEEP_MAX_S = 1.0
_SWEEP_MIN_S = 0.01

# Clients over the limit that are being told so, at the same time. Beyond it they are just closed: each needs a
# descriptor.
_MAX_REFUSALS = 16


@dataclass(slots=True)
class ServerStats:
    """Counters since the start. ``limits`` has one for each limit that was hit, by its name in `LimitError`."""

    accepted: int = 0
    closed: int = 0
    failed: int = 0  # closed because of an error, limits included
    probes: int = 0  # closed without having sent a byte: health checks, port scans
    bytes_received: int = 0  # of closed connections; `Server.totals` adds those that are open
    bytes_sent: int = 0
    limits: Counter[str] = field(default_factory=Counter)


class StallClock:
    """For how long something has not changed, by connection. Only what is asked about takes memory."""

    def __init__(self) -> None:
        self._seen: dict[Connection, tuple[int, float]] = {}

    def unchanged_s(self, connection: Connection, marker: int | None, now: float) -> float:
        """Seconds since ``marker`` was first seen with this value; 0 and forgotten when it is None."""
        if marker is None:
            self._seen.pop(connection, None)
            return 0.0
        seen = self._seen.get(connection)
        if seen is None or seen[0] != marker:
            self._seen[connection] = (marker, now)
            return 0.0
        return now - seen[1]

    def forget(self, connection: Connection) -> None:
        """The connection is over."""
        self._seen.pop(connection, None)


class Server:
    """Serves a protocol on any number of listening sockets.

    Args:
        loop: the loop to live in. Not owned.
        protocol_factory: makes the protocol of each connection; usually a `Protocol` subclass.
        limits: what bounds it.
        refusal: what is sent to a client over a connection limit before it is closed, made from the limit's name and
            number. Default: ``ERR too-many-connections limit 10000`` and LF.

    Attributes:
        connections: those that are open.
        stats: counters.
        stopping: True once `drain` or `abort` was called.
        aborted: True once `abort` was called, or the time to drain was over, while connections were open.
        listeners: where it listens.
    """

    def __init__(
        self,
        loop: EventLoop,
        protocol_factory: Callable[[], Protocol],
        limits: Limits | None = None,
        *,
        refusal: Callable[[str, int], bytes] = lambda limit, number: b"ERR %s limit %d\n" % (limit.encode(), number),
    ) -> None:
        self.loop = loop
        self.limits = Limits() if limits is None else limits
        self.connections: set[Connection] = set()
        self.stats = ServerStats()
        self.listeners: list[Listener] = []
        self.max_connections = self._affordable(self.limits.max_connections)
        self._protocol_factory = protocol_factory
        self._refusal = refusal
        self._refused: set[Connection] = set()
        self._by_address: Counter[str] = Counter()
        self._forget_connection = self._forget  # one bound method for all connections
        self.stopping = False
        self.aborted = False
        self._drain_timer: Timer | None = None
        self._on_stopped: Callable[[], object] | None = None
        self._stalled_writes = StallClock()
        self._slow_messages = StallClock()
        timeouts = (self.limits.idle_timeout_s, self.limits.message_timeout_s, self.limits.write_timeout_s)
        armed = [timeout for timeout in timeouts if timeout is not None]
        self._sweep_s = min(max(min(armed, default=0) / _SWEEP_FRACTION, _SWEEP_MIN_S), _SWEEP_MAX_S)
        self._sweep_timer = loop.call_later(self._sweep_s, self._sweep) if armed else None

    def _affordable(self, wanted: int) -> int:
        affordable = affordable_connections(wanted, self.loop.poller.capacity)
        if affordable < wanted:
            _log.warning(
                "at most %d connections, not %d: the descriptor limit allows no more (raise it with ulimit -n)",
                affordable,
                wanted,
            )
        return affordable

    # ------------------------------------------------------------------ life

    def listen(self, host: str = "127.0.0.1", port: int = 0) -> list[str]:
        """Accept connections on every address of ``host``.

        Returns:
            the addresses it really listens on, as text; with port 0 they say which one the kernel picked.

        Raises:
            ListenError: in one line, what happened and what to do.
        """
        added = [
            Listener(self.loop, sock, self.limits.accepts_per_pass, self._accepted, self.stats.limits)
            for sock in open_listeners(host, port, self.limits.backlog)
        ]
        self.listeners += added
        return [listener.address for listener in added]

    def drain(self, on_stopped: Callable[[], object] | None = None) -> None:
        """Stop in order: answer everything that has reached this machine, flush, close.

        That includes connections that still wait in the kernel's queue. What is left after ``drain_timeout_s`` is
        aborted.

        Args:
            on_stopped: called once, when the last connection is closed.
        """
        if self.stopping:
            return
        self.stopping = True
        self._on_stopped = on_stopped
        for listener in self.listeners:
            # Not until there is none left: in a storm there always is one more. No more than these can have waited.
            if not listener.resting:
                listener.accept_up_to(self.limits.backlog + 1)
            listener.close()
        for connection in list(self.connections):
            connection.drain()
        self._drain_timer = self.loop.call_later(self.limits.drain_timeout_s, self._drain_timed_out)
        self.loop.call_soon(self._check_stopped)

    def _drain_timed_out(self) -> None:
        left = len(self.connections)
        if left:
            self.stats.limits["drain-timeout"] += left
            _log.warning("%d connections not done after %g s: aborted", left, self.limits.drain_timeout_s)
        self.abort()

    def abort(self) -> None:
        """Stop at once: close listeners and connections, drop what is unsent."""
        self.stopping = True
        for listener in self.listeners:
            listener.close()
        self.aborted = self.aborted or bool(self.connections)
        for connection in [*self.connections, *self._refused]:
            connection.abort()
        self._check_stopped()

    def _check_stopped(self) -> None:
        if not self.stopping or self.connections:
            return
        for connection in list(self._refused):
            connection.abort()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        if self._drain_timer is not None:
            self._drain_timer.cancel()
        on_stopped, self._on_stopped = self._on_stopped, None
        if on_stopped is not None:
            on_stopped()

    def totals(self) -> tuple[int, int]:
        """Bytes received and sent since the start, open connections included."""
        return (
            self.stats.bytes_received + sum(connection.bytes_received for connection in self.connections),
            self.stats.bytes_sent + sum(connection.bytes_sent for connection in self.connections),
        )

    # ------------------------------------------------------------------ connections

    def _accepted(self, sock: socket.socket, address: Any) -> None:
        limits = self.limits
        per_address = limits.max_connections_per_address
        if len(self.connections) >= self.max_connections:
            self._refuse(sock, address, "too-many-connections", self.max_connections)
            return
        if per_address is not None:
            if self._by_address[address[0]] >= per_address:
                self._refuse(sock, address, "too-many-connections-from-address", per_address)
                return
            self._by_address[address[0]] += 1
        self.stats.accepted += 1
        forget, limits_hit = self._forget_connection, self.stats.limits
        try:
            protocol = self._protocol_factory()
            connection = Connection(self.loop, sock, peer_text(address), protocol, limits, forget, limits_hit)
        except Exception as error:
            self.loop.log_exception(f"connection {peer_text(address)} closed: its protocol could not be made", error)
            self._release_address(address[0])
            self.stats.failed += 1
            self.stats.closed += 1
            sock.close()
            return
        self.connections.add(connection)
        try:
            connection.open()
        except OSError as error:
            self._forget(connection, error)
            return
        if self.stopping:
            connection.drain()

    def _refuse(self, sock: socket.socket, address: Any, limit: str, number: int) -> None:
        self.stats.limits[limit] += 1
        self.loop.log_limited(logging.WARNING, "connection %s refused: %s limit %d", peer_text(address), limit, number)
        if len(self._refused) >= _MAX_REFUSALS:
            # No descriptor can be spared until it has read this; that it does is likely, not certain.
            with contextlib.suppress(OSError):
                sock.send(self._refusal(limit, number))
                sock.shutdown(socket.SHUT_WR)
            sock.close()
            return
        connection = Connection(self.loop, sock, peer_text(address), Protocol(), self.limits, self._forget_refused)
        try:
            connection.open()
        except OSError:
            return
        self._refused.add(connection)
        connection.write(self._refusal(limit, number))
        connection.close()

    def _forget_refused(self, connection: Connection, error: Exception | None) -> None:
        self._refused.discard(connection)

    def _release_address(self, host: str) -> None:
        if self.limits.max_connections_per_address is not None:
            self._by_address[host] -= 1
            if not self._by_address[host]:
                del self._by_address[host]

    def _forget(self, connection: Connection, error: Exception | None) -> None:
        self.connections.discard(connection)
        self._release_address(connection.peer.rpartition(":")[0].strip("[]"))
        self._stalled_writes.forget(connection)
        self._slow_messages.forget(connection)
        stats = self.stats
        stats.closed += 1
        stats.bytes_received += connection.bytes_received
        stats.bytes_sent += connection.bytes_sent
        if not connection.bytes_received:
            stats.probes += 1
        if error is not None:
            stats.failed += 1
            if isinstance(error, LimitError):
                stats.limits[error.limit] += 1
        for listener in self.listeners:
            if listener.resting:
                # The descriptor itself is closed at the end of this pass.
                self.loop.call_soon(listener.resume)
        if self.stopping:
            self.loop.call_soon(self._check_stopped)

    # ------------------------------------------------------------------ the sweep

    def _sweep(self) -> None:
        self._sweep_some(list(self.connections), 0)

    def _sweep_some(self, connections: list[Connection], start: int) -> None:
        now = self.loop.now
        idle_s = self.limits.idle_timeout_s
        for connection in connections[start : start + SWEEP_BATCH]:
            if connection.state is State.LINGERING or connection.state is State.CLOSED:
                continue
            activity = connection.bytes_received + connection.bytes_sent
            if activity != connection.activity:
                connection.activity = activity
                connection.active_at = now
            elif idle_s is not None and now - connection.active_at >= idle_s and not connection.stalled:
                connection.end_for(LimitError("idle-timeout", f"no byte in {idle_s:g} s"))
                continue
            self._check_stalls(connection, now)
        start += SWEEP_BATCH
        if start < len(connections):
            self.loop.call_soon(self._sweep_some, connections, start)
        elif self._sweep_timer is not None:
            self._sweep_timer = self.loop.call_later(self._sweep_s, self._sweep)

    def _check_stalls(self, connection: Connection, now: float) -> None:
        message_s = self.limits.message_timeout_s
        if message_s is not None:
            try:
                message = connection.protocol.message_in_progress()
            except Exception as error:
                self.loop.log_exception(f"connection {connection.peer} aborted: its protocol raised", error)
                connection.end_for(error)
                return
            if self._slow_messages.unchanged_s(connection, message, now) >= message_s:
                connection.end_for(LimitError("message-timeout", f"message not complete in {message_s:g} s"))
                return
        write_s = self.limits.write_timeout_s
        if write_s is not None:
            marker = connection.bytes_sent if connection.stalled else None
            if self._stalled_writes.unchanged_s(connection, marker, now) >= write_s:
                connection.end_for(LimitError("write-timeout", f"not one byte read by the peer in {write_s:g} s"))


def serve(
    protocol_factory: Callable[[], Protocol],
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    limits: Limits | None = None,
    on_listening: Callable[[list[str]], object] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain: the whole of a small server's main function.

    A second signal aborts at once. To be called in the main thread.

    Args:
        protocol_factory: makes the protocol of each connection; usually a `Protocol` subclass.
        host, port: where to listen; port 0 lets the kernel pick one.
        limits: what bounds it.
        on_listening: called with the addresses once it listens. Default: they are printed on stderr.

    Raises:
        ListenError: in one line, what happened and what to do.
    """
    with EventLoop() as loop:
        server = Server(loop, protocol_factory, limits)
        addresses = server.listen(host, port)
        stop_on_signals(loop, server)
        if on_listening is None:
            print("listening on " + ", ".join(addresses), file=sys.stderr, flush=True)
        else:
            on_listening(addresses)
        loop.run()


def stop_on_signals(loop: EventLoop, server: Server) -> None:
    """On SIGTERM or SIGINT drain the server, then stop the loop; on a second signal abort at once.

    `Server.aborted` tells afterwards which it was. To be called in the main thread.
    """

    def on_signal() -> None:
        if server.stopping:
            server.abort()
            loop.stop()
        else:
            _log.info("stopping: %d connections to finish; signal again to abort", len(server.connections))
            server.drain(loop.stop)

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal)
