"""A server: listeners, connections, limits, time-outs and an orderly end."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable

from evloop.core.loop import Loop
from evloop.core.timers import Timer
from evloop.errors import LimitError, ListenError
from evloop.limits import Limits
from evloop.log import WARNING, Logger
from evloop.net.connection import Connection
from evloop.net.protocol import Protocol
from evloop.net.sockets import peer_text
from evloop.net.sweeper import Sweeper
from evloop.server.descriptors import affordable_connections
from evloop.server.listener import Listener, open_listeners
from evloop.server.stats import ServerStats

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

_log = Logger("evloop.server")

# Clients over the limit that are being told so and waited for, at the same time. Beyond it they are told, and closed at
# once: each needs a descriptor.
_MAX_REFUSALS = 16


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
        aborted: True if connections were not ended in order when it was stopped: by `abort`, because the time to
            drain was over, or by another limit.
        listeners: where it listens.
    """

    def __init__(
        self,
        loop: Loop,
        protocol_factory: Callable[[], Protocol],
        limits: Limits | None = None,
        *,
        refusal: Callable[[str, int], bytes] = lambda limit, number: b"ERR %s limit %d\n" % (limit.encode(), number),
    ) -> None:
        self.loop = loop
        self.limits = Limits() if limits is None else limits
        # A dict used as a set: at some thousands, a set takes three times the memory for each.
        self.connections: dict[Connection, None] = {}
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
        self._sweeper = Sweeper(loop, self.connections, self.limits)

    def _affordable(self, wanted: int) -> int:
        poller = self.loop.poller
        affordable = affordable_connections(wanted, poller.capacity)
        if affordable < wanted:
            reason = "the descriptor limit allows no more (raise it with ulimit -n)"
            if affordable < affordable_connections(wanted, None):
                reason = f"{poller.name} can watch no more"
            _log.log(WARNING, "at most %d connections, not %d: %s", affordable, wanted, reason)
        return affordable

    # ------------------------------------------------------------------ life

    def listen(self, host: str = "127.0.0.1", port: int = 0) -> list[str]:
        """Accept connections on every address of ``host``.

        Returns:
            the addresses it really listens on, as text; with port 0 they say which one the kernel picked.

        Raises:
            ListenError: in one line, what happened and what to do.
        """
        sockets = open_listeners(host, port, self.limits.backlog)
        added: list[Listener] = []
        try:
            for sock in sockets:
                added.append(Listener(self.loop, sock, self.limits.accepts_per_pass, self._accepted, self.stats.limits))
        except OSError as error:
            for listener in added:
                listener.close()
            for sock in sockets:
                sock.close()
            raise ListenError(f"cannot wait for connections: {error.strerror or error}") from None
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
            _log.log(WARNING, "%d connections not done after %g s: aborted", left, self.limits.drain_timeout_s)
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
        self._sweeper.stop()
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

    def status(self) -> dict[str, object]:
        """What an operator wants to see on one screen: each line a name and a value."""
        received, sent = self.totals()
        stats = self.stats
        loop = self.loop
        slowest = "none" if loop.slowest is None else f"{loop.slowest[0]:.3f} s by {loop.slowest[1]}"
        return {
            "listening": ", ".join(listener.address for listener in self.listeners),
            "connections": f"{len(self.connections)} of {self.max_connections} open",
            "accepted": stats.accepted,
            "closed": f"{stats.closed}: {stats.failed} by an error, {stats.probes} without a byte from the client",
            "received": f"{received} bytes",
            "sent": f"{sent} bytes",
            "unsent": f"{sum(connection.unsent_bytes for connection in self.connections)} bytes",
            "not reading": f"{sum(connection.stalled for connection in self.connections)} clients",
            "limits hit": ", ".join(f"{name} {count}" for name, count in sorted(stats.limits.items())) or "none",
            "accept errors": sum(listener.accept_errors for listener in self.listeners),
            "out of descriptors": f"{sum(listener.exhausted for listener in self.listeners)} times",
            "loop": f"{loop.passes} passes, {loop.slow_passes} slow, {loop.timers} timers, {loop.poller.name}",
            "worst lag": f"{loop.reset_lag():.6f} s since the last report",
            "slowest handler": slowest,
        }

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
            self.loop.log_exception(error, "connection %s closed: its protocol could not be made", peer_text(address))
            self._release_address(address[0])
            self.stats.failed += 1
            self.stats.closed += 1
            sock.close()
            return
        self.connections[connection] = None
        try:
            connection.open()
        except OSError as error:
            self._forget(connection, error)

    def _refuse(self, sock: socket.socket, address: Any, limit: str, number: int) -> None:
        self.stats.limits[limit] += 1
        self.loop.log_limited(WARNING, "connection %s refused: %s limit %d", peer_text(address), limit, number)
        try:
            text = self._refusal(limit, number)
        except Exception as error:
            self.loop.log_exception(error, "the text of a refusal could not be made")
            text = b""
        if len(self._refused) >= _MAX_REFUSALS:
            # No descriptor can be spared until it has read this; that it does is likely, not certain.
            try:
                sock.send(text)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            sock.close()
            return
        protocol, peer = Protocol(), peer_text(address)
        limits_hit = self.stats.limits
        connection = Connection(self.loop, sock, peer, protocol, self.limits, self._forget_refused, limits_hit)
        try:
            connection.open()
        except OSError:
            return
        self._refused.add(connection)
        connection.write(text)
        connection.close()

    def _forget_refused(self, connection: Connection, error: Exception | None) -> None:
        self._refused.discard(connection)
        self._wake_listeners()

    def _wake_listeners(self) -> None:
        """A descriptor has become free, or will be at the end of this pass."""
        for listener in self.listeners:
            if listener.resting:
                self.loop.call_soon(listener.resume)

    def _release_address(self, host: str) -> None:
        if self.limits.max_connections_per_address is not None:
            self._by_address[host] -= 1
            if not self._by_address[host]:
                del self._by_address[host]

    def _forget(self, connection: Connection, error: Exception | None) -> None:
        self.connections.pop(connection, None)
        if self._by_address:
            self._release_address(connection.peer.rpartition(":")[0].strip("[]"))
        self._sweeper.forget(connection)
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
                self.aborted = self.aborted or self.stopping
        self._wake_listeners()
        if self.stopping:
            self.loop.call_soon(self._check_stopped)
