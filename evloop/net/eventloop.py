"""The loop that programs use: what waits, and opens connections."""

from __future__ import annotations

from evloop.core.loop import Loop
from evloop.limits import Limits
from evloop.net.connector import Connector
from evloop.net.protocol import Protocol, is_handler

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.protocols.handlers import Handler


class EventLoop(Loop):
    """A single-threaded event loop. Use it as a context manager, or `close` it.

    All that it does but `connect` is inherited, and described there; the core does not know what a connection is.
    """

    def connect(
        self,
        protocol: Protocol | Handler,
        host: str,
        port: int,
        *,
        timeout_s: float | None = 10.0,
        limits: Limits | None = None,
    ) -> Connector:
        """Open a connection to ``host:port`` and hand it to ``protocol``.

        Its ``on_connect`` is called once it is open, its ``on_connect_error`` if it can't be opened: never before this
        returns. A name is looked up at once, which blocks; pass an address to avoid it. If it has several
        addresses they are tried in turn, each for ``timeout_s``.

        Args:
            protocol: also an ``async def`` function of a stream, which runs when it is open; that it can't be opened is
                logged then.
            limits: its sizes bound the connection. Its time-outs don't, they are for a server's clients: an owner of an
                outgoing connection knows better what to wait for, and uses `call_later`.

        Returns:
            the attempt, which can be cancelled.
        """
        if not isinstance(protocol, Protocol):
            from evloop.protocols.handlers import Handlers  # here, as who does not need it does not load it

            if not is_handler(protocol):
                raise TypeError(f"{protocol!r} is neither a Protocol object nor an async function of a stream")
            protocol = Handlers(self, protocol)()
        return Connector(self, protocol, host, port, timeout_s, Limits() if limits is None else limits)
