"""A server: listeners, connections, limits, time-outs and an orderly end."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

from evloop.core.loop import Loop
from evloop.errors import DISCONNECTED, LimitError, ListenError
from evloop.limits import Limits
from evloop.log import WARNING, Logger
from evloop.net.connection import Connection
from evloop.net.protocol import Protocol, is_handler
from evloop.net.sockets import origin, peer_text
from evloop.net.sweeper import Sweeper
from evloop.net.unexpectedheader import look_at_first_data
from evloop.server.countdown import Countdown
from evloop.server.descriptors import affordable_connections
from evloop.server.listener import Listener
from evloop.server.opening import UNIX, endpoint_to_listen_on, open_endpoint
from evloop.server.refusals import Refusals, refusal_line
from evloop.server.room import make_room
from evloop.server.stats import ServerStats

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

    from evloop.net.endpoint import Endpoint
    from evloop.net.proxyheader import ProxyHeader
    from evloop.net.tlssettings import TLSServerSettings
    from evloop.protocols.handlers import Handler, Handlers
    from evloop.server.proxygate import ProxyGate
    from evloop.server.stats import Value
    from evloop.server.unixsockets import UnixAccess

    # What makes a connection: called with the same as `Connection`, which is the default.
    ConnectionFactory = Callable[..., Connection]

_log = Logger("evloop.server")

# So many headers of proxies are waited for when the server is full, so that the client is told, and logged, and not its
# proxy.
_MAX_HEADERS_WHEN_FULL = 8


class Server:
    """Serves a protocol on any number of listening sockets.

    Args:
        loop: the loop to live in. Not owned.
        protocol_factory: makes the protocol of each connection; usually a `Protocol` subclass. Or a handler, an ``async
            def`` function of a stream (`evloop.protocols.streams.Stream`), which runs as the connection's task.
        limits: what bounds it.
        refusal: what is sent to a client over a connection limit before it is closed, made from the limit's name and
            number. Default: ``ERR too-many-connections limit 10000`` and LF.
        proxy_from: proxies whose word is taken for whom they speak for, as `evloop.net.trustedpeers.TrustedPeers` wants
            it: ``"10.0.0.0/8,2001:db8::7"``; ``unix`` for all Unix sockets. Each of their connections must begin with a
            PROXY header; it then counts, and shows in logs, as one from the client's own address. What others send is
            never taken for such a header.

    Attributes:
        connections: those that are open, each with the owner of its address, by whom it is counted for
            ``max_connections_per_address`` (`evloop.net.sockets.origin`); with None if it is not counted.
        stats: counters.
        stopping: True once `drain` or `abort` was called.
        aborted: True if connections were not ended in order when it was stopped: by `abort`, because the time to
            drain was over, or by another limit.
        listeners: where it listens.
        open_endpoint: what opens the sockets of an endpoint, called as `evloop.server.opening.open_endpoint`. A worker
            of several has them from its supervisor.
    """

    # For subclasses: whether the first bytes of each connection are looked at for a PROXY header that is not expected
    # (False: the protocol does that), and which option is named then.
    looks_for_headers = True
    proxy_option = "proxy_from"

    def __init__(
        self,
        loop: Loop,
        protocol_factory: Callable[[], Protocol] | Handler,
        limits: Limits | None = None,
        *,
        refusal: Callable[[str, int], bytes] = refusal_line,
        proxy_from: str | Iterable[str] = (),
    ) -> None:
        self.loop = loop
        self.limits = Limits() if limits is None else limits
        self.connections: dict[Connection, object] = {}
        self.stats = ServerStats()
        self.listeners: list[Listener] = []
        self.open_endpoint = open_endpoint
        self.max_connections = self._affordable(self.limits.max_connections)
        self._handlers: Handlers | None = None
        if is_handler(protocol_factory):
            from evloop.protocols.handlers import Handlers  # here, as who does not need it does not load it

            protocol_factory = self._handlers = Handlers(loop, protocol_factory, self._check_stopped)  # type: ignore[arg-type]
        self._protocol_factory: Callable[[], Protocol] = protocol_factory  # type: ignore[assignment]
        self._refusals = Refusals(loop, self.limits, self.stats, refusal, self._wake_listeners)
        self._by_origin: Counter[object] = Counter()
        self._gate: ProxyGate | None = None
        if proxy_from:
            from evloop.server.proxygate import ProxyGate  # here, as few are behind a proxy

            self._gate = ProxyGate(loop, proxy_from, self.limits, self.stats, self._wake_listeners)
        self._forget_connection = self._forget  # one bound method for all connections
        self.stopping = self.aborted = False
        self._countdown: Countdown | None = None
        self._on_stopped: list[Callable[[], object]] = []
        self._sweeper = Sweeper(loop, self.connections, self.limits)
        self._make_room = partial(make_room, loop, self.connections)
        loop.memory.givers.append(self._make_room)

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

    def listen(
        self,
        host: str | Endpoint | None = None,
        port: int | None = None,
        *,
        tls: TLSServerSettings | None = None,
        unix: UnixAccess | None = None,
        connection_factory: ConnectionFactory = Connection,
    ) -> list[str]:
        """Accept connections on every address of ``host``, or wherever an endpoint says.

        Args:
            host, port: a name or an address, ``""`` for all of this machine, and a port, 0 for one that the kernel
                picks; or in one argument an endpoint, or its text (``"[::1]:80"``, ``"unix:/run/x"``, ``"fd:3"``: see
                `evloop.net.endpoint`). Default: any port of 127.0.0.1.
            tls: the connections accepted there speak TLS, with these certificates. Needed if the endpoint says so.
            unix: who may connect, if it is a Unix socket.
            connection_factory: makes the connections accepted there, a subclass of `Connection` as a rule; called as
                that is.

        Returns:
            the addresses it really listens on, as the text of endpoints; with port 0 they say which one the kernel
            picked.

        Raises:
            ListenError: in one line, what happened and what to do.
            EndpointError: there can't be an endpoint like that.
        """
        endpoint = endpoint_to_listen_on(host, port)
        if tls is not None:
            connection_factory = tls.connection
            self.stats.tls.add(tls.tally)
        elif endpoint.tls and connection_factory is Connection:
            raise ListenError(f"cannot listen on {endpoint}: TLS needs certificates; give tls=TLSServerSettings(...)")
        sockets = self.open_endpoint(endpoint, self.limits.backlog, unix, self.loop.poller.handlers)
        added: list[Listener] = []
        try:
            for sock in sockets:
                added.append(self.add_listener(sock, connection_factory, unix=unix))
        except BaseException as error:
            for listener in added:
                self.listeners.remove(listener)
                listener.close()
            for sock in sockets:
                sock.close()
            if isinstance(error, OSError):
                raise ListenError(f"cannot wait for connections: {error.strerror or error}") from None
            raise
        if endpoint.tls or tls is not None:
            for listener in added:
                listener.address = f"tls:{listener.address}"
        return [listener.address for listener in added]

    def add_listener(
        self,
        sock: socket.socket,
        connection_factory: ConnectionFactory = Connection,
        *,
        unix: UnixAccess | None = None,
    ) -> Listener:
        """Accept connections on a socket that listens already and does not block. Owns it, unless this raises.

        Args:
            connection_factory, unix: as for `listen`; of ``unix`` only the users.

        Raises:
            OSError: it can't be watched.
        """
        limits = self.limits
        accepted: Callable[[socket.socket, Any], None] = partial(self._accepted, connection_factory, sock.family)
        if sock.family == UNIX:
            from evloop.server.unixsockets import UnixGate  # here, as few need it

            refuse = partial(self._refusals.refuse, connection_factory)
            accepted = UnixGate(accepted, refuse, None if unix is None else unix.uids)
        listener = Listener(
            self.loop, sock, limits.accepts_per_pass, accepted, self.stats.limits, limits.kernel_unsent_bytes
        )
        self.listeners.append(listener)
        return listener

    def drain(self, on_stopped: Callable[[], object] | None = None) -> None:
        """Stop in order: answer everything that has reached this machine, flush, close.

        That includes connections that still wait in the kernel's queue. What is left after ``drain_timeout_s`` is
        aborted.

        Args:
            on_stopped: called once, when the last connection is closed. If the server is stopping already, it goes on
                with that, and calls this at the end, too.
        """
        if on_stopped is not None:
            self._on_stopped.append(on_stopped)
        self.loop.call_soon(self._check_stopped)
        if self.stopping:
            return
        self.stopping = True
        # Before anything that may go wrong.
        self._countdown = Countdown(self.loop, self.limits.drain_timeout_s, self._drain_timed_out)
        for listener in self.listeners:
            # Not until there is none left: in a storm there always is one more. No more than these can have waited.
            if not listener.resting:
                listener.accept_up_to(self.limits.backlog + 1)
            listener.close()
        if self._gate is not None:
            self._gate.drain()
        if self.loop.task is None:
            self._drain_connections()
        else:  # a handler has called this, which can't be given what has arrived before it waits again
            self.loop.call_soon(self._drain_connections)

    def _drain_connections(self) -> None:
        for connection in list(self.connections):
            connection.drain()

    def _drain_timed_out(self) -> None:
        if left := len(self.connections):
            self.stats.limits["drain-timeout"] += left
            _log.log(WARNING, "%d connections not done after %g s: aborted", left, self.limits.drain_timeout_s)
        self.abort()

    def abort(self) -> None:
        """Stop at once: close listeners and connections, drop what is unsent. Handlers are cancelled, and have 3 s for
        what they do in ``finally``, unless this is called again."""
        self.stopping = True
        for listener in self.listeners:
            listener.close()
        if self._gate is not None:
            self._gate.abort()
        self.aborted = self.aborted or bool(self.connections)
        for connection in [*self.connections, *self._refusals.connections]:
            connection.abort()
        if self._countdown is not None:
            self._countdown.cancel()
        if self._handlers is not None:
            self._handlers.abort()
        self._check_stopped()

    def _check_stopped(self) -> None:
        if not self.stopping or self.connections or (self._handlers is not None and self._handlers.unfinished):
            return
        for connection in list(self._refusals.connections):
            connection.abort()
        self._sweeper.stop()
        if self._countdown is not None:
            self._countdown.cancel()
        if self._make_room in self.loop.memory.givers:
            self.loop.memory.givers.remove(self._make_room)
        on_stopped, self._on_stopped = self._on_stopped, []
        for callback in on_stopped:
            try:
                callback()
            except Exception as error:
                self.loop.log_exception(error, "what was to be called when the server has stopped raised")

    def stop_accepting(self) -> None:
        """Close the listeners, and leave what waits in the kernel's queues to others who have these sockets, too."""
        for listener in self.listeners:
            listener.close()

    def totals(self) -> tuple[int, int]:
        """Bytes received and sent since the start, open connections included."""
        return self.stats.totals(self.connections)

    def status(self) -> dict[str, Value]:
        """What an operator wants to know, as values; the names are those of `evloop.server.stats.STATUS`.

        Reading it changes nothing. It goes over all connections, which takes 1 ms for some thousands.
        """
        return self.stats.status(self.loop, self.listeners, self.connections, self.max_connections)

    # ------------------------------------------------------------------ connections

    def _accepted(
        self,
        connection_factory: ConnectionFactory,
        family: int,
        sock: socket.socket,
        address: Any,
        header: ProxyHeader | None = None,
    ) -> None:
        limits, gate = self.limits, self._gate
        occupied = len(self.connections) + (0 if gate is None else len(gate.waiting))
        if gate is not None:
            may_wait = occupied < self.max_connections + _MAX_HEADERS_WHEN_FULL
            if header is None and may_wait and gate.expects_header(family, address):
                gate.take(sock, address, partial(self._accepted, connection_factory))
                return
        if occupied >= self.max_connections:
            self._refusals.refuse(connection_factory, sock, address, "too-many-connections", self.max_connections)
            return
        per_address = limits.max_connections_per_address
        who = None
        if per_address is not None:
            who = origin(family, address, limits.ipv6_prefix_bits)
            if who is not None and self._by_origin[who] >= per_address:
                limit = "too-many-connections-from-address"
                self._refusals.refuse(connection_factory, sock, address, limit, per_address)
                return
        self.stats.accepted += 1
        peer, forget, limits_hit = peer_text(address), self._forget_connection, self.stats.limits
        try:
            connection = connection_factory(self.loop, sock, peer, self._protocol_factory(), limits, forget, limits_hit)
        except Exception as error:
            self.stats.failed += 1
            self.stats.closed += 1
            sock.close()
            self.loop.log_exception(error, "connection %s closed: its protocol could not be made", peer)
            return
        connection.proxy_header = header
        if self.looks_for_headers and header is None:
            look_at_first_data(connection, self.proxy_option)
        if who is not None:
            self._by_origin[who] += 1
        self.connections[connection] = who
        try:
            connection.open()
        except OSError as error:
            self._forget(connection, error)

    def _wake_listeners(self) -> None:
        """A descriptor has become free, or will be at the end of this pass."""
        for listener in self.listeners:
            if listener.resting:
                self.loop.call_soon(listener.resume)

    def _forget(self, connection: Connection, error: Exception | None) -> None:
        who = self.connections.pop(connection, None)
        if who is not None:
            self._by_origin[who] -= 1
            if not self._by_origin[who]:
                del self._by_origin[who]
        self._sweeper.forget(connection)
        stats = self.stats
        stats.closed += 1
        stats.bytes_received += connection.bytes_received
        stats.bytes_sent += connection.bytes_sent
        if connection.is_probe:
            stats.probes += 1
            if isinstance(error, OSError) and error.errno in DISCONNECTED:
                error = None  # some health checks end by a reset
        if error is not None:
            stats.failed += 1
            if isinstance(error, LimitError):
                stats.limits[error.limit] += 1
                self.aborted = self.aborted or self.stopping
        self._wake_listeners()
        if self.stopping:
            self.loop.call_soon(self._check_stopped)
