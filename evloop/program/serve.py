"""Running a server as a program: signals, status, the main loop."""

from __future__ import annotations

import signal
from collections.abc import Callable

from evloop.core.loop import Loop
from evloop.limits import Limits
from evloop.log import INFO, NOTICE, Logger, load, say
from evloop.net.eventloop import EventLoop
from evloop.net.protocol import Protocol
from evloop.ratelimit import LOADING_DELAY_S
from evloop.server.server import Server

_log = Logger("evloop.server")

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]

# A pass that takes longer is worth a line in the log: everyone else was waiting.
SLOW_PASS_S = 0.1


def serve(
    protocol_factory: Callable[[], Protocol],
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    limits: Limits | None = None,
    on_listening: Callable[[list[str]], object] | None = None,
) -> None:
    """Serve until a signal says stop, then drain: the whole of a small server's main function.

    The signals are SIGTERM, SIGINT and SIGHUP; a second one aborts at once. SIGUSR1 writes a status to the log. Takes
    SIGALRM and the interval timer of real time, too, to find out what blocks the loop, unless the program uses them. To
    be called in the main thread.

    Args:
        protocol_factory: makes the protocol of each connection; usually a `Protocol` subclass.
        host, port: where to listen; port 0 lets the kernel pick one.
        limits: what bounds it. Off by default are ``idle_timeout_s``, ``message_timeout_s`` and
            ``max_connections_per_address``, whose right values only you know: set them for a server that faces
            strangers. `Limits` says why, and suggests some.
        on_listening: called with the addresses once it listens. Default: they are printed on stderr.

    Raises:
        ListenError: in one line, what happened and what to do.
    """
    with EventLoop(slow_pass_s=SLOW_PASS_S) as loop:
        server = Server(loop, protocol_factory, limits)
        try:
            addresses = server.listen(host, port)
            prepare(loop, server)
            if on_listening is None:
                say("listening on " + ", ".join(addresses))
            else:
                on_listening(addresses)
            loop.run()
        finally:
            server.abort()  # nothing is left to abort, unless this ends by an exception


def prepare(loop: Loop, server: Server) -> None:
    """What a server that is a program does besides serving. To be called in the main thread, before the loop runs.

    SIGTERM, SIGINT or SIGHUP (the terminal was closed; stays ignored under nohup): drain the server, then stop the
    loop; on a second one abort at once. `Server.aborted` tells afterwards which it was. SIGUSR1: write the server's
    status to the log. Logging is loaded soon after the start (see `evloop.log`).
    """

    def stop() -> None:
        if server.stopping:
            server.abort()
            loop.stop()
        else:
            _log.log(INFO, "stopping: %d connections to finish; signal again to abort", len(server.connections))
            server.drain(loop.stop)

    def report() -> None:
        lines = [f"  {name:<20}{value}" for name, value in server.status().items()]
        _log.log(NOTICE, "status:\n%s", "\n".join(lines))

    loop.call_later(LOADING_DELAY_S, load)
    for signum in STOP_SIGNALS:
        if signum not in (signal.SIGTERM, signal.SIGINT) and signal.getsignal(signum) is signal.SIG_IGN:
            continue
        loop.add_signal_handler(signum, stop)
    if hasattr(signal, "SIGUSR1"):
        loop.add_signal_handler(signal.SIGUSR1, report)
