"""Running servers as a program: signals, status, the main loop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from evloop.core.loop import Loop
from evloop.errors import EndpointError, ListenError
from evloop.eventloop import EventLoop
from evloop.limits import Limits
from evloop.log import ERROR, INFO, NOTICE, Logger, load, say
from evloop.net.protocol import Protocol
from evloop.program.statustext import status_text
from evloop.program.terminal import has_terminal, working_folder
from evloop.ratelimit import LOADING_DELAY_S
from evloop.server.opening import endpoint_to_listen_on
from evloop.server.server import Server

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.net.endpoint import Endpoint
    from evloop.net.tlssettings import TLSServerSettings
    from evloop.program.notify import Notifier
    from evloop.program.workers.role import Role
    from evloop.program.workers.upgrade import Heritage, Upgrade
    from evloop.program.workers.worker import Worker
    from evloop.protocols.handlers import Handler
    from evloop.server.unixsockets import UnixAccess

_log = Logger("evloop.server")

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]

# A shell that ends sends SIGHUP before its terminal goes away: after so long it is looked at once more.
_LOOK_AGAIN_S = 1.0

# After the time to drain, handlers may have 3 s to be cancelled; then an end is overdue.
_GRACE_AFTER_DRAIN_S = 5.0

# A pass that takes longer is worth a line in the log: everyone else was waiting.
SLOW_PASS_S = 0.1

# The exit status of a program that can't listen, and of a worker that has ended connections out of order.
EXIT_CANNOT_LISTEN = 3
EXIT_ABORTED = 1


def serve(
    protocol_factory: Callable[[], Protocol] | Handler,
    host: str | Endpoint | None = None,
    port: int | None = None,
    *,
    limits: Limits | None = None,
    proxy_from: str | Iterable[str] = (),
    tls: TLSServerSettings | None = None,
    unix: UnixAccess | None = None,
    workers: int | str = 1,
    on_listening: Callable[[list[str]], object] | None = None,
    on_start: Callable[[EventLoop, Server], Iterable[Server] | None] | None = None,
) -> None:
    """Serve until a signal comes, then drain: a small server's main function needs no more than this.

    The signals are SIGTERM and SIGINT, of which a second one aborts at once, and SIGHUP if the terminal was closed.
    Otherwise SIGHUP reads certificates again. SIGUSR1 writes a status to the log. It also uses SIGALRM and the interval
    timer of real time, to find out what blocks the loop, unless the program uses them itself. To be called in the main
    thread.

    Args:
        protocol_factory: makes the protocol of each connection; usually a `Protocol` subclass. Or a handler, an ``async
            def`` function of a stream.
        host, port: where to listen, as for `Server.listen`; port 0 lets the kernel pick one. With neither, on the
            sockets that the process was started with (see `evloop.program.systemd`); without any, on a port of
            127.0.0.1.
        unix: who may connect, if it is a Unix socket.
        limits: what bounds it. Off by default are ``idle_timeout_s``, ``message_timeout_s`` and
            ``max_connections_per_address``, whose right values only you know: set them for a server that faces
            strangers. `Limits` says why, and suggests some.
        proxy_from: proxies that are trusted to say whom they speak for; as for `Server`.
        tls: serve by TLS, with these certificates, which are read again when their files change.
        workers: how many processes serve; ``"auto"`` for one for each core that this one may use. With more than one, a
            supervisor holds the sockets, and starts this program again for each worker, which comes to here as well,
            and serves. So what stands before ``serve`` runs in each of them, and ``on_start`` in the workers only.
            SIGHUP replaces them one after another (see docs/operations.md).
        on_listening: called with the addresses once it listens. Default: they are printed on stderr, inherited sockets
            with the names that ``LISTEN_FDNAMES`` gives them.
        on_start: called with loop and server before the loop runs: for timers, outgoing connections, other servers.
            Servers that it returns, in a list, are stopped together with the first one.

    Raises:
        SystemExit: it can't listen. One line on stderr says what happened and what to do, and the exit status is 3. To
            handle that yourself, use `Server.listen`, which raises `ListenError`, and `prepare`.
    """
    role = None
    if workers != 1 or "EVLOOP_ROLE" in os.environ:
        from evloop.program.workers.service import (  # here, as one process does not need it
            WORKER,
            take_role,
            worker_count,
        )

        role = take_role()
        count = worker_count(workers)
        if count != 1 and (role is None or role.kind != WORKER):
            _supervise(count, role, host, port, limits or Limits(), tls, unix, on_listening)
            return
    with EventLoop(slow_pass_s=SLOW_PASS_S) as loop:
        servers: list[Server] = []
        worker: Worker | None = None
        heritage: Heritage | None = None
        try:
            try:
                if role is not None:
                    worker, heritage = take_part(loop, role)
                counts = None if worker is None else worker.counts
                servers = [Server(loop, protocol_factory, limits, proxy_from=proxy_from, counts=counts)]
                if role is not None:
                    (worker or heritage).equip(servers[0])  # type: ignore[union-attr]
                addresses = _listen(servers[0], host, port, tls, unix, on_listening is None)
                more = None if on_start is None else on_start(loop, servers[0])
                servers += more or ()
                if worker is not None:
                    worker.prepare(*servers)
            except ListenError as error:
                say(str(error))
                raise SystemExit(EXIT_CANNOT_LISTEN) from None
            if worker is None:
                prepare(loop, *servers, on_reload=[] if tls is None else [tls.reload_and_log], upgrades=True)
            if heritage is not None:
                heritage.take_over(*servers)
            if tls is not None:
                tls.watch(loop)
            if worker is None:
                (on_listening or _say_where)(addresses)
            loop.run()
        finally:
            for server in servers:
                server.abort()  # nothing is left to abort, unless this ends by an exception
            if worker is not None:
                worker.close()
            if heritage is not None:
                heritage.close()
    if worker is not None and any(server.aborted for server in servers):
        raise SystemExit(EXIT_ABORTED)  # for the supervisor, which tells it of the whole service


def take_part(loop: Loop, role: Role) -> tuple[Worker | None, Heritage | None]:
    """What a process that serves needs for its part in a service: as a worker, or as one that follows another.

    Raises:
        ListenError: who has started it is gone.
    """
    from evloop.program.workers.role import WORKER

    if role.kind == WORKER:
        from evloop.program.workers.worker import Worker

        return Worker(loop, role), None
    from evloop.program.workers.upgrade import Heritage

    return None, Heritage(loop, role)


def _supervise(
    workers: int,
    role: Role | None,
    host: str | Endpoint | None,
    port: int | None,
    limits: Limits,
    tls: TLSServerSettings | None,
    unix: UnixAccess | None,
    on_listening: Callable[[list[str]], object] | None,
) -> None:
    from evloop.program.workers.service import supervise

    try:
        inherited = _inherited(host, port)
        try:
            names = inherited or {endpoint_to_listen_on(host, port): ""}
        except EndpointError as error:
            raise ListenError(str(error)) from None
        supervisor = supervise(
            {endpoint: _note(endpoint, name) if on_listening is None else "" for endpoint, name in names.items()},
            workers,
            limits,
            on_listening or _say_where,
            access=unix,
            tls=tls is not None,
            inherited=inherited,
            role=role,
        )
    except ListenError as error:
        say(str(error))
        raise SystemExit(EXIT_CANNOT_LISTEN) from None
    if supervisor.failure is not None:
        say(f"cannot serve: {supervisor.failure}")
        raise SystemExit(EXIT_CANNOT_LISTEN)


def _say_where(addresses: list[str]) -> None:
    say("listening on " + ", ".join(addresses))


def _note(endpoint: Endpoint, name: str) -> str:
    """What is shown behind the address of a socket that has a name."""
    return f" ({endpoint}, {name if name.isprintable() else ascii(name)})" if name else ""


def _inherited(host: str | Endpoint | None, port: int | None) -> dict[Endpoint, str]:
    """The sockets that the process was started with, if nobody says where to listen."""
    if host is None and port is None and "LISTEN_PID" in os.environ:
        from evloop.program.systemd import take_inherited  # here, as most are started without sockets

        return take_inherited()
    return {}


def _listen(
    server: Server,
    host: str | Endpoint | None,
    port: int | None,
    tls: TLSServerSettings | None,
    unix: UnixAccess | None,
    with_names: bool,
) -> list[str]:
    inherited = _inherited(host, port)
    if inherited:
        return [
            address + (_note(endpoint, name) if with_names else "")
            for endpoint, name in inherited.items()
            for address in server.listen(endpoint, tls=tls, unix=unix)
        ]
    try:
        return server.listen(host, port, tls=tls, unix=unix)
    except EndpointError as error:
        raise ListenError(str(error)) from None


def prepare(
    loop: Loop, *servers: Server, on_reload: Sequence[Callable[[], object]] = (), upgrades: bool = False
) -> None:
    """Make a program of servers: signals, and an orderly stop. To be called in the main thread, before the loop runs.

    SIGTERM or SIGINT: drain all servers, then stop the loop; on a second one abort at once. `Server.aborted` tells
    afterwards which it was. SIGHUP: call all of ``on_reload``; but if the process had a controlling terminal, and it is
    gone, drain and stop. Stays ignored under nohup. SIGUSR1: write their status to the log. A service manager that
    wants to know is told when it serves, and the like (`evloop.program.notify`). Logging is loaded soon after the start
    (see `evloop.log`).

    Args:
        upgrades: the program finds out at its start whether it follows another process, and takes over from that, as
            `serve` does. Then SIGUSR2 starts it again, hands sockets and connections over to it when it serves, and
            ends this process (`evloop.program.workers.upgrade`).

    Raises:
        RuntimeError: not in the main thread.
    """
    had_terminal = hasattr(signal, "SIGHUP") and has_terminal()
    folder = working_folder() if upgrades else "."
    running = set(servers)
    stopping = told_to_stop = False
    upgrading: Upgrade | None = None
    notifier: Notifier | None = None
    if "NOTIFY_SOCKET" in os.environ:
        from evloop.program.notify import from_environment  # here, as most are started by nobody who wants to know

        notifier = from_environment(loop)

    def stopped(server: Server) -> None:
        running.discard(server)
        end_if_over()

    def end_if_over() -> None:
        if not running and (upgrading is None or not upgrading.making_way):  # else connections are still on their way
            end()

    def end() -> None:
        if notifier is not None:
            notifier.close()
        loop.stop()

    def stop() -> None:
        nonlocal told_to_stop
        if told_to_stop or not servers:
            for server in servers:
                server.abort()
            loop.call_soon(end)  # in the next pass, when handlers have seen that they are cancelled
            return
        told_to_stop = True
        _log.log(INFO, "stopping: %d connections to finish; signal again to abort", count())
        drain()

    def drain() -> None:
        nonlocal stopping
        if stopping:
            return
        stopping = True
        if upgrading is not None:
            upgrading.cancel()
        if notifier is not None:
            drain_s = max(server.limits.drain_timeout_s for server in servers)
            notifier.stopping(drain_s + _GRACE_AFTER_DRAIN_S, f"stopping: {count()} connections to finish")
        for server in servers:
            server.drain(partial(stopped, server))

    def hang_up() -> None:
        stop_without_terminal()
        if stopping:  # a hang-up comes from the kernel and from the shell: the second one is no wish to abort
            return
        if not on_reload:
            _log.log(NOTICE, "SIGHUP: there is nothing to reload; SIGTERM stops this server")
        if notifier is not None:
            notifier.reloading()
        for callback in on_reload:
            loop.call_soon(callback)
        if notifier is not None:
            loop.call_soon(notifier.ready)
        loop.call_later(_LOOK_AGAIN_S, stop_without_terminal)

    def stop_without_terminal() -> None:
        if had_terminal and not stopping and not has_terminal():
            stop()

    def upgrade() -> None:
        nonlocal upgrading
        if not upgrades:
            _log.log(NOTICE, "SIGUSR2: this program cannot take over from itself; SIGTERM stops it")
            return
        if stopping or upgrading is not None:
            return
        try:
            from evloop.program.workers.upgrade import Upgrade  # here, as few need it
        except Exception as error:  # what is on disk now need not fit what is loaded
            _log.log(ERROR, "not upgraded: %s: %s; this one goes on", type(error).__name__, error)
            return
        if notifier is None:
            upgrading = Upgrade(loop, servers, folder, lambda pid: None, upgraded)
        else:
            upgrading = Upgrade(loop, servers, folder, notifier.main_pid, upgraded, notifier.environment())
        upgrading.begin()

    def keep_for_upgrade() -> None:
        from evloop.program.workers.kept import keep  # here, as the start need not wait for it

        keep(loop)

    def upgraded(well: bool) -> None:
        nonlocal upgrading
        if not well:
            upgrading = None
        elif stopping:  # it was told to, meanwhile
            end_if_over()
        else:
            drain()

    def report() -> None:
        for server in servers:
            _log.log(NOTICE, "status:\n%s", status_text(server.status()))

    def count() -> int:
        return sum(len(server.connections) for server in servers)

    def told() -> str:
        return f"{count()} connections now, {sum(server.stats.accepted for server in servers)} accepted"

    if notifier is not None:
        loop.call_soon(notifier.begin, told)
    loop.call_later(LOADING_DELAY_S, load)
    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, hang_up)
    if hasattr(signal, "SIGUSR1"):
        loop.add_signal_handler(signal.SIGUSR1, report)
    if hasattr(signal, "SIGUSR2"):
        if upgrades or signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL:  # which would end it
            loop.add_signal_handler(signal.SIGUSR2, upgrade)
        if upgrades:
            loop.call_later(LOADING_DELAY_S, keep_for_upgrade)
