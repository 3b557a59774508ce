"""A server: listeners, connections, limits, time-outs and an orderly end."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from functools import partial

from evloop.core.loop import Loop
from evloop.errors import ListenError
from evloop.limits import Limits
from evloop.log import WARNING, Logger
from evloop.net.connection import Connection
from evloop.net.protocol import Protocol
from evloop.server.countdown import Countdown
from evloop.server.listener import Listener
from evloop.server.opening import UNIX, endpoint_to_listen_on, open_endpoint
from evloop.server.population import Population
from evloop.server.refusals import refusal_line

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

    from evloop.net.endpoint import Endpoint
    from evloop.net.tlssettings import TLSServerSettings
    from evloop.protocols.handlers import Handler
    from evloop.server.population import ConnectionFactory
    from evloop.server.sharedcounts import SharedCounts
    from evloop.server.stats import Value
    from evloop.server.unixsockets import UnixAccess

_log = Logger("evloop.server")


class Server(Population):
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
        counts: by which ``max_connections`` and ``max_connections_per_address`` are for several processes
            together. Default: for this server.

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
        super().__init__(loop, protocol_factory, limits, refusal=refusal, proxy_from=proxy_from, counts=counts)
        self.open_endpoint = open_endpoint
        self._countdown: Countdown | None = None
        self._on_stopped: list[Callable[[], object]] = []

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
        for listener in added:
            listener.endpoint = endpoint
            if endpoint.tls or tls is not None:
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
        accepted: Callable[[socket.socket, Any], None] = partial(self._accept, connection_factory, sock.family)
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

    def status(self) -> dict[str, Value]:
        """What an operator wants to know, as values; the names are those of `evloop.server.stats.STATUS`.

        Reading it changes nothing. It goes over all connections, which takes 1 ms for some thousands.
        """
        received, sent = self.totals()
        stats, loop = self.stats, self.loop
        slowest_s, slowest = (None, None) if loop.slowest is None else loop.slowest
        return {
            "listening": [listener.address for listener in self.listeners],
            "connections": len(self.connections),
            "max_connections": self.max_connections,
            "accepted": stats.accepted,
            "adopted": stats.adopted,
            "handed_over": stats.handed_over,
            "closed": stats.closed,
            "failed": stats.failed,
            "probes": stats.probes,
            "bad_proxy_headers": stats.bad_proxy_headers,
            "received_bytes": received,
            "sent_bytes": sent,
            "unsent_bytes": sum(connection.unsent_bytes for connection in self.connections),
            "not_reading": sum(connection.stalled for connection in self.connections),
            "limits_hit": dict(sorted(stats.limits.items())),
            "accept_errors": sum(listener.accept_errors for listener in self.listeners),
            "out_of_descriptors": sum(listener.exhausted for listener in self.listeners),
            **stats.tls_status(),
            "passes": loop.passes,
            "slow_passes": loop.slow_passes,
            "timers": loop.timers,
            "selector": loop.poller.name,
            "worst_lag_s": loop.worst_lag_s,
            "slowest_pass_s": slowest_s,
            "slowest_handler": slowest,
        }
