"""Clients that are refused: each is told why, and waited for a moment so that it can read it."""

from __future__ import annotations

import socket
from collections.abc import Callable

from evloop.core.loop import Loop
from evloop.limits import Limits
from evloop.log import WARNING
from evloop.net.connection import Connection
from evloop.net.protocol import Protocol
from evloop.net.sockets import peer_text
from evloop.server.stats import ServerStats

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

# Clients that are being told so and waited for, at the same time. Beyond it they are told, and closed at once: each
# needs a descriptor.
_MAX_REFUSALS = 16


def refusal_words(limit: str, number: int) -> str:
    """Why a client is refused, for its eyes and for the log."""
    return f"{limit} {'uid' if limit == 'uid-not-allowed' else 'limit'} {number}"


def refusal_line(limit: str, number: int) -> bytes:
    """What a client is told if its server has no other words for it."""
    return b"ERR " + refusal_words(limit, number).encode() + b"\n"


class Refusals:
    """Refuses clients of a server.

    Args:
        loop: the loop to live in.
        limits: bound each of the connections.
        stats: where it is counted that a limit was hit.
        text: makes what a client is told from the limit's name and number.
        on_closed: called when the connection of one is closed.

    Attributes:
        connections: of those that are waited for.
    """

    def __init__(
        self,
        loop: Loop,
        limits: Limits,
        stats: ServerStats,
        text: Callable[[str, int], bytes],
        on_closed: Callable[[], object],
    ) -> None:
        self.connections: set[Connection] = set()
        self._loop = loop
        self.limits = limits
        self._stats = stats
        self._text = text
        self._on_closed = on_closed

    def refuse(
        self, connection_factory: Callable[..., Connection], sock: socket.socket, address: Any, limit: str, number: int
    ) -> None:
        """Refuse a client that was accepted. Owns its socket.

        Args:
            connection_factory: as for `Server.listen`.
            sock, address: the client's.
            limit, number: why.
        """
        loop, peer = self._loop, peer_text(address)
        self._stats.limits[limit] += 1
        loop.log_limited(WARNING, "connection %s refused: %s", peer, refusal_words(limit, number))
        try:
            text = self._text(limit, number)
        except Exception as error:
            loop.log_exception(error, "the text of a refusal could not be made")
            text = b""
        if len(self.connections) >= _MAX_REFUSALS:
            # No descriptor can be spared until it has read this; that it does is likely, not certain.
            try:
                if connection_factory is Connection:  # TLS would take its time to say it
                    sock.send(text)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            sock.close()
            return
        limits_hit = self._stats.limits
        try:
            connection = connection_factory(loop, sock, peer, Protocol(), self.limits, self._forget, limits_hit)
            connection.open()
        except Exception as error:
            sock.close()
            if not isinstance(error, OSError):
                loop.log_exception(error, "connection %s closed: it could not be refused in order", peer)
            return
        self.connections.add(connection)
        connection.write(text)
        connection.close()

    def _forget(self, connection: Connection, error: Exception | None) -> None:
        self.connections.discard(connection)
        self._on_closed()
