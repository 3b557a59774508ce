"""Outgoing connections, opened without blocking.

Theory of operation
-------------------
A name is looked up in a thread, an address is taken as it is. Several addresses race, as RFC 8305 has it: the first one
is tried, and while it neither answers nor fails the next one joins in every 250 ms, the families in turn. The first
that is connected wins, and the others are closed. So a family that leads nowhere (IPv6 at many homes) costs a quarter
of a second and not a time-out.

One time-out holds for all of it. When a process was suspended, or a loop was blocked, the timer is due before the loop
has seen what has happened meanwhile. So each attempt is first asked whether it has succeeded. If the timer is much too
late, the whole time is given once more: the attempts must not fail because this process did not look.

Until there is a `Connection`, a protocol's ``connection`` is its `Connector`. So it can be written to from the
beginning; what is written is kept, and sent first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from evloop.core.timers import Timer
from evloop.errors import ConnectError, EndpointError
from evloop.limits import Limits
from evloop.net.attempt import UNIX, Attempt
from evloop.net.connection import NOBODY, Connection
from evloop.net.endpoint import Endpoint, TcpEndpoint, UnixEndpoint, parse_endpoint
from evloop.net.protocol import Protocol
from evloop.net.resolver import literal_addresses, look_up, lookup_error
from evloop.net.sockets import set_stream_options

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Never

    from evloop.core.loop import Cancellable, Loop
    from evloop.net.resolver import Address

# How long an address is waited for before the next one joins in: what RFC 8305 recommends.
ATTEMPT_DELAY_S = 0.25

# A timer that is so late did not wait: the process was suspended, or the loop was blocked.
_OVERRUN_S = 1.0


class Connector:
    """One attempt to connect; see `EventLoop.connect`. Owns the sockets until a `Connection` takes over the best one.

    Until then it is the protocol's ``connection``, with what can be done before there is one: `write`, `close` and
    `abort`. Once it is given up, or has failed, they do nothing.

    Args:
        endpoint: where to connect to.
        timeout_s: for all of it; None to wait for as long as the system does.
        limits: those of the connection.
        source: the local address to connect from: a family, and what a socket of that family is bound to.
        on_opening: called with the connection before its protocol knows of it.
        on_closed: called when a connection that was opening is over, with it and the reason.
        connection_factory: makes the connection: called as `Connection` is.

    Attributes:
        peer: where to, as text.
        unsent_bytes: how much was written, and waits for the connection.
    """

    _over = False  # connected, failed or given up

    def __init__(
        self,
        loop: Loop,
        protocol: Protocol,
        endpoint: TcpEndpoint | UnixEndpoint,
        *,
        timeout_s: float | None,
        limits: Limits,
        source: Address | None = None,
        on_opening: Callable[[Connection], object] | None = None,
        on_closed: Callable[[Connection, Exception | None], None] | None = None,
        connection_factory: Callable[..., Connection] = Connection,
    ) -> None:
        self.loop = loop
        self.limits = limits
        self.peer = str(endpoint)
        self._protocol = protocol
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._source = source
        self._on_opening = on_opening
        self._on_closed = on_closed
        self._make_connection = connection_factory
        self._written: list[bytes] = []
        self._connection: Connection | None = None  # that was made
        self._closing = False  # once connected
        self._cancelled = False
        self.unsent_bytes = 0
        self._lookup: Cancellable | None = None
        self._addresses: deque[Address] = deque()  # that are still to be tried
        self._attempts: list[Attempt] = []  # those under way
        self._reasons: dict[str, str] = {}  # why attempts failed, each with the address it was said of first
        self._next: Timer | None = None
        self._deadline = None if timeout_s is None else loop.call_later(timeout_s, self._handle_timeout)
        self._had_more_time = False
        protocol.connection = self  # type: ignore[assignment]  # for the time being: see above
        loop.call_soon(self._begin)

    # ------------------------------------------------------------------ what a protocol uses before it is connected

    def write(self, data: bytes) -> None:
        """Send ``data`` once it is connected, before anything else.

        The attempt fails if that is more than ``limits.max_unsent_bytes``.
        """
        if self.closing or not data:
            return
        self._written.append(bytes(data))
        self.unsent_bytes += len(data)
        if self.unsent_bytes > self.limits.max_unsent_bytes:
            self._fail(f"more than {self.limits.max_unsent_bytes} bytes were written before it was made")

    def close(self) -> None:
        """Connect, send what was written, then close."""
        self._closing = True

    def abort(self) -> None:
        """The same as `cancel`, by the name that a `Connection` has for it."""
        self.cancel()

    def cancel(self) -> None:
        """Give up. No callback of the protocol is called any more, unless the connection is open already."""
        self._cancelled = True  # an error may be about to be told
        self._end()
        # A TLS connection is not open before its handshake is done.
        if self._connection is not None and getattr(self._connection, "in_handshake", False):
            self._connection.abort()
        self._forget_written()
        self._protocol = NOBODY

    @property
    def closing(self) -> bool:
        """True once nothing more can be written."""
        return self._closing or self._over

    def __getattr__(self, name: str) -> Never:
        # Only called for what there isn't here. A connection has it; the caller is too early, or too late.
        state = "was not made" if self._over else "is not made yet, wait for on_connect"
        raise AttributeError(f"no {name!r}: the connection to {self.peer} {state}; before, there is write and close")

    def __repr__(self) -> str:
        return f"<Connector {self.peer} {'over' if self._over else 'connecting'} unsent={self.unsent_bytes}>"

    # ------------------------------------------------------------------ the race

    def _begin(self) -> None:
        if self._over:
            return
        if isinstance(self._endpoint, UnixEndpoint):
            if UNIX is None:
                self._fail("this system has no Unix sockets")
            else:
                self._race([(UNIX, self._endpoint.address)])
            return
        host, port = self._endpoint.host, self._endpoint.port
        addresses = literal_addresses(host, port)
        if addresses is not None:
            self._race(addresses)
        else:
            self._lookup = self.loop.run_in_thread(
                look_up, host, port, on_done=self._race, on_error=lambda error: self._fail(lookup_error(host, error))
            )

    def _race(self, addresses: list[Address]) -> None:
        self._lookup = None
        if self._source is not None:
            family = self._source[0]
            addresses = [address for address in addresses if address[0] == family]
            if not addresses:
                self._fail("it has no address of the family of source_address")
                return
        self._addresses.extend(addresses)
        self._try_next()

    def _try_next(self) -> None:
        """Begin one more attempt; fail if that can't be, and none is under way."""
        if self._next is not None:
            self._next.cancel()
        while self._addresses:
            if self._try(*self._addresses.popleft()):
                if self._addresses:
                    self._next = self.loop.call_later(ATTEMPT_DELAY_S, self._try_next)
                return
        if not self._attempts:
            reasons = self._reasons or {"no address": ""}
            if len(reasons) == 1:
                self._fail(*reasons)
            else:
                self._fail("; ".join(f"{reason} ({where})" for reason, where in reasons.items()))

    def _try(self, family: int, address: object) -> bool:
        """Begin an attempt. False if it has failed already."""
        try:
            attempt = Attempt(self.loop, family, address, self._source, self._won, self._lost)
        except OSError as error:
            self._note(address, error.strerror or str(error))
            return False
        self._attempts.append(attempt)
        return True

    def _note(self, address: object, reason: str) -> None:
        where = str(address[0]) if isinstance(address, tuple) else str(address)
        self._reasons.setdefault(reason, where)

    def _lost(self, attempt: Attempt, reason: str) -> None:
        attempt.close()
        self._attempts.remove(attempt)
        self._note(attempt.address, reason)
        self._try_next()

    def _won(self, attempt: Attempt) -> None:
        self._attempts.remove(attempt)
        self._end()
        protocol, self._protocol = self._protocol, NOBODY
        sock = attempt.socket
        connection: Connection | None = None
        try:
            set_stream_options(sock, self.limits.kernel_unsent_bytes)
            peer = attempt.peer or self.peer
            connection = self._make_connection(self.loop, sock, peer, protocol, self.limits, self._on_closed)
            if self._on_opening is not None:
                self._on_opening(connection)
            connection.write(b"".join(self._written))
            connection.open()
        except Exception as error:
            if not isinstance(error, OSError):  # an error of the protocol's data_handler; on_connect's is not seen here
                self.loop.log_exception(error, "connection to %s closed: its protocol could not be used", self.peer)
            self.loop.close_later(sock)
            if connection is not None:
                while connection in self.loop.pending_writes:
                    self.loop.pending_writes.remove(connection)
                if self._on_closed is not None:
                    self._on_closed(connection, error)
            if not self._cancelled:
                self._protocol = protocol
            self.loop.call_soon(self._tell, f"cannot use the connection to {self.peer}: {error}")
        else:
            self._connection = connection
            if self._closing:
                connection.close()
        self._forget_written()

    # ------------------------------------------------------------------ the end of it

    def _handle_timeout(self) -> None:
        assert self._deadline is not None
        assert self._timeout_s is not None
        for attempt in list(self._attempts):
            attempt.look()
            if self._over:
                return
        if self.loop.now - self._deadline.when > _OVERRUN_S and not self._had_more_time:
            self._had_more_time = True
            self._deadline = self.loop.call_later(self._timeout_s, self._handle_timeout)
        elif self._lookup is not None:
            assert isinstance(self._endpoint, TcpEndpoint)
            self._fail(f"cannot resolve {self._endpoint.host!r}: no answer in {self._timeout_s:g} s")
        else:
            self._fail(f"no answer in {self._timeout_s:g} s")

    def _fail(self, reason: str) -> None:
        if not self._over:
            self._end()
            self._forget_written()
            self.loop.call_soon(self._tell, f"cannot connect to {self.peer}: {reason}")

    def _forget_written(self) -> None:
        self._written.clear()
        self.unsent_bytes = 0

    def _tell(self, text: str) -> None:
        protocol, self._protocol = self._protocol, NOBODY
        protocol.on_connect_error(ConnectError(text))

    def _end(self) -> None:
        """Stop all that is under way."""
        self._over = True
        self._addresses.clear()
        for attempt in self._attempts:
            attempt.close()
        self._attempts.clear()
        for under_way in (self._deadline, self._next, self._lookup):
            if under_way is not None:
                under_way.cancel()


def endpoint_of(host: str | Endpoint, port: int | None, speaks_tls: bool) -> TcpEndpoint | UnixEndpoint:
    """What `EventLoop.connect` was asked to connect to, if that can be; by TLS only if it was told how."""
    if port is None:
        endpoint = parse_endpoint(host) if isinstance(host, str) else host
    elif isinstance(host, str):
        endpoint = TcpEndpoint(host, port)
    else:
        raise EndpointError(f"{host} says all that is needed: give no port beside it")
    if isinstance(endpoint, TcpEndpoint) and not endpoint.host:
        raise EndpointError(f"cannot connect to {endpoint}: only who listens can leave out the host")
    if not isinstance(endpoint, TcpEndpoint | UnixEndpoint):
        raise EndpointError(f"cannot connect to {endpoint}: only who listens can be given a socket")
    if endpoint.tls and not speaks_tls:
        raise EndpointError(f"cannot connect to {endpoint}: give tls=TLSClientSettings(...)")
    return endpoint


def source_of(source_address: tuple[str, int], endpoint: Endpoint) -> Address:
    """What `Connector` wants for the local address that a user names.

    Raises:
        ValueError: it is not an address and a port, or the endpoint can't be connected to from one.
    """
    if isinstance(endpoint, UnixEndpoint):
        raise ValueError(f"source_address is for TCP, and {endpoint} is not")
    host, port = source_address if isinstance(source_address, tuple) else (source_address, 0)
    addresses = literal_addresses(host, port)
    if addresses is None:
        raise ValueError(f"source_address wants an address of this machine and a port (0 for any), got {host!r}")
    return addresses[0]
