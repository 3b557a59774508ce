"""What a connection of the service dealt with in each of its turns, and what came of it."""

from __future__ import annotations

from typing import NamedTuple

from evloop import Connection
from evloop.charcount.server import CharCountProtocol
from evloop.net.receiving import MAX_PIECE_BYTES, MAX_TURN_REPLY_BYTES
from servers import RunningServer

# The replies that end a turn, and those to one more piece: the worst are the errors to messages of one invalid byte.
MOST_REPLIES_OF_A_TURN = MAX_TURN_REPLY_BYTES + MAX_PIECE_BYTES // len(b"\xff\n") * len(b"ERR invalid-utf8 at byte 0\n")


class Chunk(NamedTuple):
    """One turn: the pass of the loop, bytes dealt with, bytes of the replies, and what was unsent before them."""

    in_pass: int
    received: int
    replied: int
    unsent_before: int


def record_chunks(server: RunningServer, connection: Connection) -> list[Chunk]:
    """From now on, the turns of this connection; the list grows."""
    chunks: list[Chunk] = []
    protocol = connection.protocol
    assert isinstance(protocol, CharCountProtocol)
    feed = protocol.session.feed

    def feed_and_record(data: bytes) -> bytes:
        reply = feed(data)
        chunk = Chunk(server.loop.passes, len(data), len(reply), connection.unsent_bytes)
        if chunks and chunks[-1].in_pass == chunk.in_pass:
            last = chunks.pop()
            chunk = Chunk(last.in_pass, last.received + len(data), last.replied + len(reply), last.unsent_before)
        chunks.append(chunk)
        return reply

    server.call(connection.set_data_handler, feed_and_record)
    return chunks
