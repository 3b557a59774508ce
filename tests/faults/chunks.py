"""What a connection of the service received at once, and what came of it."""

from __future__ import annotations

from typing import NamedTuple

from evloop import Connection
from evloop.charcount.server import CharCountProtocol
from harness import RunningServer


class Chunk(NamedTuple):
    """One receive: the pass of the loop, bytes received, bytes of the replies, and what was unsent before them."""

    in_pass: int
    received: int
    replied: int
    unsent_before: int


def record_chunks(server: RunningServer, connection: Connection) -> list[Chunk]:
    """From now on, what this connection receives; the list grows."""
    chunks: list[Chunk] = []
    protocol = connection.protocol
    assert isinstance(protocol, CharCountProtocol)
    feed = protocol.session.feed

    def feed_and_record(data: bytes) -> bytes:
        reply = feed(data)
        chunks.append(Chunk(server.loop.passes, len(data), len(reply), connection.unsent_bytes))
        return reply

    server.call(connection.set_data_handler, feed_and_record)
    return chunks
