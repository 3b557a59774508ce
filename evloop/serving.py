"""Running a server as a program: signals, status, the main loop."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from evloop.limits import Limits
from evloop.log import INFO, WARNING, Logger, load
from evloop.loop import EventLoop
from evloop.protocol import Protocol
from evloop.ratelimit import LOADING_DELAY_S
from evloop.server import Server

_log = Logger("evloop.server")

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
    """Serve until SIGTERM or SIGINT, then drain: the whole of a small server's main function.

    A second signal aborts at once; SIGUSR1 writes a status to the log. Takes SIGALRM and the interval timer of real
    time, too, to find out what blocks the loop, unless the program uses them. To be called in the main thread.

    Args:
        protocol_factory: makes the protocol of each connection; usually a `Protocol` subclass.
        host, port: where to listen; port 0 lets the kernel pick one.
        limits: what bounds it.
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
                print("listening on " + ", ".join(addresses), file=sys.stderr, flush=True)
            else:
                on_listening(addresses)
            loop.run()
        finally:
            server.abort()  # nothing is left to abort, unless this ends by an exception


def prepare(loop: EventLoop, server: Server) -> None:
    """What a server that is a program does besides serving. To be called in the main thread, before the loop runs.

    SIGTERM or SIGINT: drain the server, then stop the loop; on a second one abort at once (`Server.aborted` tells
    afterwards which it was). SIGUSR1: write the server's status to the log. Logging is loaded soon after the start (see
    `evloop.log`).
    """

    def stop() -> None:
        if server.stopping:
            server.abort()
            loop.stop()
        else:
            _log.log(INFO, "stopping: %d connections to finish; signal again to abort", len(server.connections))
            server.drain(loop.stop)

    def report() -> None:
        # At WARNING, for who sends the signal wants to see it, whatever is logged otherwise.
        lines = [f"  {name:<20}{value}" for name, value in server.status().items()]
        _log.log(WARNING, "status:\n%s", "\n".join(lines))

    loop.call_later(LOADING_DELAY_S, load)
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop)
    if hasattr(signal, "SIGUSR1"):
        loop.add_signal_handler(signal.SIGUSR1, report)
