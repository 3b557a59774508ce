"""A PROXY header where nobody expects one: a proxy that is set up to send it, and a server that is not told.

To such a server the header is data like other data, and must be: anybody can send it. But then each answer is the one
to the message before it, and nobody is told. So the first bytes of a connection are looked at, and the log says it.
"""

from __future__ import annotations

from evloop.log import WARNING
from evloop.net.connection import Connection

# What a PROXY header begins with: one of these bytes. Only then more is looked at, and the module that knows is loaded.
FIRST_BYTES = b"P\r"


def look_for_header(connection: Connection, data: bytes, option: str) -> None:
    """Say in the log if a connection's first bytes look like a PROXY header.

    Args:
        connection: without a header that was expected.
        data: the first that was received.
        option: which option wants to know from where to expect it.
    """
    if data[0] in FIRST_BYTES:
        try:
            from evloop.net.proxyheader import looks_like_proxy_header
        except (OSError, ImportError):  # out of descriptors: then it is not said, and the connection lives
            return
        if looks_like_proxy_header(data):
            connection.loop.log_limited(
                WARNING,
                "connection %s begins with what looks like a PROXY header, and that was taken for data, as nobody "
                "there is trusted to send one; if it is a proxy of yours, add its address to %s",
                connection.peer,
                option,
            )


class _FirstLook:
    """A data handler for one chunk. Small, as there is one for each connection until its first bytes come."""

    __slots__ = ("connection", "handler", "option")

    def __init__(self, connection: Connection, option: str) -> None:
        self.connection = connection
        self.option = option
        self.handler = connection.set_data_handler(self)

    def __call__(self, data: bytes) -> bytes | None:
        self.connection.set_data_handler(self.handler)
        look_for_header(self.connection, data, self.option)
        return self.handler(data)


def look_at_first_data(connection: Connection, option: str) -> None:
    """Have `look_for_header` see what is received first, and nothing else: for who made the connection."""
    _FirstLook(connection, option)
