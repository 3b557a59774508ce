"""The connections of a server: who is let in, what is counted and kept of each, and what follows when one is over."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

from evloop.core.loop import Loop
from evloop.errors import DISCONNECTED, LimitError
from evloop.limits import Limits
from evloop.log import WARNING, Logger
from evloop.net.connection import Connection
from evloop.net.protocol import Protocol, is_handler
from evloop.net.sockets import origin, peer_text, set_stream_options
from evloop.net.sweeper import Sweeper
from evloop.server.descriptors import affordable_connections
from evloop.server.listener import Listener
from evloop.server.refusals import Refusals, refusal_line
from evloop.server.room import make_room
from evloop.server.stats import ServerStats

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

    from evloop.net.moving import Moving
    from evloop.net.proxyheader import ProxyHeader
    from evloop.protocols.handlers import Handler, Handlers
    from evloop.server.proxygate import ProxyGate
    from evloop.server.sharedcounts import SharedCounts

    # What makes a connection: called with the same as `Connection`, which is the default.
    ConnectionFactory = Callable[..., Connection]

_log = Logger("evloop.server")

# So many headers of proxies are waited for when the server is full, so that the client is told, and logged, and not its
# proxy.
_MAX_HEADERS_WHEN_FULL = 8


class Population:
    """What `evloop.server.server.Server` is built on; its arguments and attributes are told there."""

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
        counts: SharedCounts | None = None,
    ) -> None:
        self.loop = loop
        self.limits = Limits() if limits is None else limits
        self.connections: dict[Connection, object] = {}
        self.stats = ServerStats()
        self.listeners: list[Listener] = []
        self.max_connections = self._affordable(self.limits.max_connections)
        self._handlers: Handlers | None = None
        self._accept_one = self._accepted
        self._forget_connection = self._forget  # one bound method for all connections
        if is_handler(protocol_factory):
            from evloop.protocols.handlers import Handlers  # here, as who does not need it does not load it

            protocol_factory = self._handlers = Handlers(loop, protocol_factory, self._give_place_back)  # type: ignore[arg-type]
            self._accept_one = self._accepted_for_handler
            self._forget_connection = self._forget_with_handler
        # Of connections that are gone and whose handlers go on, each with the owner of its address.
        self._kept_places: dict[Connection, object] = {}
        self._protocol_factory: Callable[[], Protocol] = protocol_factory  # type: ignore[assignment]
        self._refusals = Refusals(loop, self.limits, self.stats, refusal, self._wake_listeners)
        self._by_origin: Counter[object] = Counter()
        self._accept = self._accept_one  # what listeners call
        if counts is not None:
            self.connections, self._by_origin = counts.connections, counts.by_origin
            self._accept = partial(self._accepted_of_many, counts)
        if self.looks_for_headers:
            from evloop.net.unexpectedheader import look_at_first_data  # here, as not every server does

            self._look_at_first_data = look_at_first_data
        self._gate: ProxyGate | None = None
        if proxy_from:
            from evloop.server.proxygate import ProxyGate  # here, as few are behind a proxy

            self._gate = ProxyGate(loop, proxy_from, self.limits, self.stats, self._wake_listeners)
            if counts is not None:
                self._gate.waiting = counts.waiting
        self.stopping = self.aborted = False
        self._sweeper = Sweeper(loop, self.connections, self.limits)
        self._make_room = partial(make_room, loop, self.connections)
        loop.memory.givers.append(self._make_room)

    def change_limits(self, limits: Limits) -> None:
        """Have other limits from now on. Connections that are open keep their sizes; their time-outs are the new ones.

        What belongs to a listening socket stays as it is: ``backlog``, ``accepts_per_pass``, ``kernel_unsent_bytes``.
        """
        self.limits = limits
        self.max_connections = self._affordable(limits.max_connections)
        self._refusals.limits = limits
        if self._gate is not None:
            self._gate.limits = limits
        self._sweeper.stop()
        self._sweeper = Sweeper(self.loop, self.connections, limits)

    def _affordable(self, wanted: int) -> int:
        poller = self.loop.poller
        affordable = affordable_connections(wanted, poller.capacity)
        if affordable < wanted:
            reason = "the descriptor limit allows no more (raise it with ulimit -n)"
            if affordable < affordable_connections(wanted, None):
                reason = f"{poller.name} can watch no more"
            _log.log(WARNING, "at most %d connections, not %d: %s", affordable, wanted, reason)
        return affordable

    def totals(self) -> tuple[int, int]:
        """Bytes received and sent since the start, open connections included."""
        return (
            self.stats.bytes_received + sum(connection.bytes_received for connection in self.connections),
            self.stats.bytes_sent + sum(connection.bytes_sent for connection in self.connections),
        )

    def _accepted(
        self,
        connection_factory: ConnectionFactory,
        family: int,
        sock: socket.socket,
        address: Any,
        header: ProxyHeader | None = None,
    ) -> None:
        limits, gate, occupied = self.limits, self._gate, len(self.connections)
        if gate is not None:
            occupied += len(gate.waiting)
            may_wait = occupied < self.max_connections + _MAX_HEADERS_WHEN_FULL
            if header is None and may_wait and gate.expects_header(family, address):
                gate.take(sock, address, partial(self._accept, connection_factory))
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
            self._look_at_first_data(connection, self.proxy_option)
        if who is not None:
            self._by_origin[who] += 1
        self.connections[connection] = who
        try:
            connection.open()
        except OSError as error:
            self._forget(connection, error)

    def _accepted_of_many(
        self,
        counts: SharedCounts,
        connection_factory: ConnectionFactory,
        family: int,
        sock: socket.socket,
        address: Any,
        header: ProxyHeader | None = None,
    ) -> None:
        """As `_accepted`, where the limits are for several processes together."""
        limits, gate = self.limits, self._gate
        expects_header = header is None and gate is not None and gate.expects_header(family, address)
        who = None
        try:
            most = limits.max_connections
            if counts.claim() > most + (_MAX_HEADERS_WHEN_FULL if expects_header else 0):
                self._refusals.refuse(connection_factory, sock, address, "too-many-connections", most)
                return
            per_address = limits.max_connections_per_address
            if per_address is not None and counts.knows_origins and not expects_header:
                who = origin(family, address, limits.ipv6_prefix_bits)
                if who is not None and counts.claim_from(who) > per_address:
                    limit = "too-many-connections-from-address"
                    self._refusals.refuse(connection_factory, sock, address, limit, per_address)
                    return
            self._accept_one(connection_factory, family, sock, address, header)
        finally:
            counts.settle()
            if who is not None:
                counts.settle_from(who)

    # ------------------------------------------------------------------ handlers that outlive their connections

    def _accepted_for_handler(
        self,
        connection_factory: ConnectionFactory,
        family: int,
        sock: socket.socket,
        address: Any,
        header: ProxyHeader | None = None,
    ) -> None:
        """As `_accepted`, where the places count that handlers keep whose connections are gone."""
        if self._kept_places:
            gate = self._gate
            expects_header = header is None and gate is not None and gate.expects_header(family, address)
            occupied = len(self.connections) + len(self._kept_places) + self.proxies_waiting
            if occupied >= self.max_connections and not expects_header:
                self._refusals.refuse(connection_factory, sock, address, "too-many-connections", self.max_connections)
                return
        self._accepted(connection_factory, family, sock, address, header)

    def _forget_with_handler(self, connection: Connection, error: Exception | None) -> None:
        """As `_forget`, but if its handler goes on, its place is kept until that has ended."""
        assert self._handlers is not None
        if connection in self._handlers.unfinished:
            self._kept_places[connection] = self.connections.get(connection)
            self.connections[connection] = None  # it stays counted by its owner
        self._forget(connection, error)

    def _give_place_back(self, connection: Connection) -> None:
        """A handler has ended that has gone on after its connection was closed."""
        who = self._kept_places.pop(connection, None)
        if who is not None:
            self._by_origin[who] -= 1
            if not self._by_origin[who]:
                del self._by_origin[who]
        self._check_stopped()

    # ------------------------------------------------------------------ connections that move

    @property
    def speaks(self) -> str:
        """What clients see of its settings, as text. A connection moves only to a server of which this is the same."""
        factory: Any = self._protocol_factory if self._handlers is None else self._handlers.handler
        while isinstance(factory, partial):
            factory = factory.func
        named = factory if hasattr(factory, "__qualname__") else type(factory)
        return f"{named.__module__}.{named.__qualname__}"

    @property
    def proxies_waiting(self) -> int:
        """Connections of proxies that have not said yet whom they speak for."""
        return 0 if self._gate is None else len(self._gate.waiting)

    def dump(self, connection: Connection) -> Moving | None:
        """What another process needs to go on with one of the connections; as `evloop.net.moving.dump`."""
        from evloop.net import moving  # here, as most never move

        dumped = moving.dump(connection)
        if dumped is not None:
            dumped.facts["waits"] = self._sweeper.dump(connection)
        return dumped

    def release(self, connection: Connection) -> None:
        """Another process has it: it is over here, and nobody is told."""
        from evloop.net import moving

        moving.detach(connection)
        self.stats.handed_over += 1
        self._leave(connection)

    def adopt(self, sock: socket.socket, dumped: Moving) -> None:
        """Go on with a connection of another process, whatever the limits are. Owns the socket.

        What is wrong with it is logged, and costs this connection only. If the server is stopping it is drained.
        """
        from evloop.net import moving

        limits, facts = self.limits, dumped.facts
        self.stats.adopted += 1
        try:
            sock.setblocking(False)
            sock.set_inheritable(False)
            try:
                set_stream_options(sock, limits.kernel_unsent_bytes)
                who = self._origin_of(sock, dumped.header)
            except OSError:
                who = None  # the peer has left meanwhile, which shows when it is read
            protocol = self._protocol_factory()
            moving.check(dumped, protocol)
            forget, limits_hit = self._forget_connection, self.stats.limits
            connection = Connection(self.loop, sock, facts["peer"], protocol, limits, forget, limits_hit)
            self.stats.bytes_received -= facts["received"]  # each server counts what it has moved itself
            self.stats.bytes_sent -= facts["sent"]
        except Exception as error:
            self.stats.failed += 1
            self.stats.closed += 1
            sock.close()
            self.loop.log_exception(error, "connection %s closed: it could not be taken over", facts.get("peer"))
            return
        if who is not None:
            self._by_origin[who] += 1
        self.connections[connection] = who
        try:
            moving.restore(connection, dumped)
            self._sweeper.restore(connection, facts["waits"])
        except Exception as error:
            self.loop.log_exception(error, "connection %s aborted: it could not go on here", connection.peer)
            connection.end_for(error)
        if self.stopping:
            connection.drain()

    def _origin_of(self, sock: socket.socket, header: ProxyHeader | None) -> object:
        """By whom a connection is counted that has come another way; None if it is not."""
        if self.limits.max_connections_per_address is None:
            return None
        family, address = int(sock.family), sock.getpeername()
        if header is not None and header.source is not None and not header.local:
            address = header.source
            if isinstance(address, str):
                return None
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        return origin(family, address, self.limits.ipv6_prefix_bits)

    # ------------------------------------------------------------------ the end of one

    def _wake_listeners(self) -> None:
        """A descriptor has become free, or will be at the end of this pass."""
        for listener in self.listeners:
            if listener.resting:
                self.loop.call_soon(listener.resume)

    def _forget(self, connection: Connection, error: Exception | None) -> None:
        stats = self.stats
        stats.closed += 1
        if connection.is_probe:
            stats.probes += 1
            if isinstance(error, OSError) and error.errno in DISCONNECTED:
                error = None  # some health checks end by a reset
        if error is not None:
            stats.failed += 1
            if isinstance(error, LimitError):
                stats.limits[error.limit] += 1
                self.aborted = self.aborted or self.stopping
        self._leave(connection)

    def _leave(self, connection: Connection) -> None:
        who = self.connections.pop(connection, None)
        if who is not None:
            self._by_origin[who] -= 1
            if not self._by_origin[who]:
                del self._by_origin[who]
        self._sweeper.forget(connection)
        self.stats.bytes_received += connection.bytes_received
        self.stats.bytes_sent += connection.bytes_sent
        self._wake_listeners()
        if self.stopping:
            self.loop.call_soon(self._check_stopped)

    def _check_stopped(self) -> None:
        """Go on with the stop, if there is one and nobody is left: for the class above."""
        raise NotImplementedError
