"""The loop that programs use: what waits, and opens connections."""

from __future__ import annotations

from collections.abc import Callable

from evloop.core.loop import Loop
from evloop.limits import Limits
from evloop.net.connection import Connection
from evloop.net.protocol import Protocol, is_handler
from evloop.net.sweeper import Sweeper

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from evloop.core.loop import Cancellable
    from evloop.core.threads import ThreadPool
    from evloop.net.connector import Connector
    from evloop.net.endpoint import Endpoint
    from evloop.net.tlssettings import TLSClientSettings
    from evloop.protocols.handlers import Handler

    T = TypeVar("T")


class EventLoop(Loop):
    """A single-threaded event loop. Use it as a context manager, or `close` it.

    `connect` and `run_in_thread` are added here. Everything else is inherited from `Loop` and described there.
    """

    _timeouts: _Timeouts | None = None  # both are made when they are needed
    _threads: ThreadPool | None = None

    def run_in_thread(
        self,
        function: Callable[..., T],
        *args: Any,
        on_done: Callable[[T], object] | None = None,
        on_error: Callable[[BaseException], object] | None = None,
    ) -> Cancellable:
        """Call ``function(*args)``, which blocks, in a thread; what it returns or raises comes back as a call.

        There are few threads, which end when they have nothing more to do (see `evloop.core.threads`). Of this loop the
        function may only use `call_soon_threadsafe`. Neither `stop` nor `close` waits for it.

        Args:
            on_done: called in the loop with what it returned.
            on_error: called in the loop with what it raised. Default: that is logged.

        Returns:
            what can be cancelled: then neither is called.
        """
        if self._threads is None:
            from evloop.core.threads import ThreadPool  # here, as loading it would slow down every start

            self._threads = ThreadPool(self.call_soon_threadsafe, self.log_exception)
        return self._threads.run(function, args, on_done, on_error)

    def close(self) -> None:
        """As for `Loop.close`; from then on no thread calls anything back."""
        if self._threads is not None and not self._running:
            self._threads.close()  # first: else one might write to a wake-up socket whose number is in use again
        super().close()

    def connect(
        self,
        protocol: Protocol | Handler,
        host: str | Endpoint,
        port: int | None = None,
        *,
        timeout_s: float | None = 10.0,
        limits: Limits | None = None,
        source_address: tuple[str, int] | None = None,
        enforce_timeouts: bool = False,
        tls: TLSClientSettings | None = None,
    ) -> Connector:
        """Open a connection and hand it to ``protocol``. Never blocks.

        Its ``on_connect`` is called once it is open, its ``on_connect_error`` if it can't be opened: never before this
        returns. What is written to ``protocol.connection`` before that is kept, and sent first. A name is looked up in
        a thread; if it has several addresses they race (see `evloop.net.connector`).

        Args:
            protocol: whose connection it will be. Or a handler, an ``async def`` function of a stream, which runs when
                it is open; that it can't be opened is logged then.
            host, port: a name or an address, and a port; or in one argument an endpoint, or its text
                (``"[::1]:80"``, ``"unix:/run/x"``: see `evloop.net.endpoint`).
            timeout_s: for all of it, the look-up included.
            limits: its sizes bound the connection; its time-outs only if ``enforce_timeouts``.
            source_address: the address and port of this machine to connect from; port 0 for any.
            enforce_timeouts: end the connection by the ``idle_timeout_s``, ``message_timeout_s`` and
                ``write_timeout_s`` of ``limits``, as a server does. Otherwise none of them does: an owner of an
                outgoing connection often knows better what to wait for, and uses `call_later`.
            tls: connect by TLS, with these settings. ``on_connect`` comes when its handshake is done, for which it has
                a time of its own.

        Returns:
            the attempt, which can be cancelled.

        Raises:
            ValueError: there can't be an endpoint, a source address or a TLS server's name like that.
        """
        if not isinstance(protocol, Protocol):
            from evloop.protocols.handlers import Handlers  # here, as who does not need it does not load it

            if not is_handler(protocol):
                raise TypeError(f"{protocol!r} is neither a Protocol object nor an async function of a stream")
            protocol = Handlers(self, protocol)()
        from evloop.net.connector import Connector, endpoint_of, source_of  # here, as most servers never need it

        endpoint = endpoint_of(host, port, tls is not None)
        limits = Limits() if limits is None else limits
        if enforce_timeouts and self._timeouts is None:
            self._timeouts = _Timeouts(self)
        timeouts = self._timeouts if enforce_timeouts else None
        return Connector(
            self,
            protocol,
            endpoint,
            timeout_s=timeout_s,
            limits=limits,
            source=None if source_address is None else source_of(source_address, endpoint),
            on_opening=None if timeouts is None else timeouts.add,
            on_closed=None if timeouts is None else timeouts.forget,
            connection_factory=Connection if tls is None else tls.factory(getattr(endpoint, "host", "localhost")),
        )


class _Timeouts:
    """The time-outs of connections that no server looks after: one sweep for all that have the same limits."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._groups: dict[Limits, tuple[Sweeper, dict[Connection, None]]] = {}

    def add(self, connection: Connection) -> None:
        """Look after it from now on."""
        group = self._groups.get(connection.limits)
        if group is None:
            connections: dict[Connection, None] = {}
            group = self._groups[connection.limits] = Sweeper(self._loop, connections, connection.limits), connections
        group[1][connection] = None

    def forget(self, connection: Connection, error: Exception | None) -> None:
        """It is over. No sweep and no timer is left behind by the last one. Safe to call twice."""
        group = self._groups.get(connection.limits)
        if group is not None:
            sweeper, connections = group
            connections.pop(connection, None)
            sweeper.forget(connection)
            if not connections:
                sweeper.stop()
                del self._groups[connection.limits]
