"""The answers of a callback that takes one message at a time, to all the messages of a chunk."""

from __future__ import annotations

from collections.abc import Callable

from evloop.net.buffers import as_bytes
from evloop.net.state import State

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.net.connection import Connection

_OPEN = State.OPEN


def answer_each(connection: Connection, callback: Callable[[bytes], bytes | None], messages: list[bytes]) -> bytes:
    """Call it with each message, until one of them closes the connection, and return all answers in one piece.

    What the callback writes stands among what it returns.
    """
    outer = connection.batch
    connection.batch = replies = []
    try:
        for message in messages:
            reply = callback(message)
            if reply:
                replies.append(reply)
            if connection.state is not _OPEN and connection.closing:
                break
    finally:
        connection.batch = outer
    try:
        return b"".join(replies)
    except TypeError:  # one of them is no bytes: say which
        return b"".join([as_bytes(reply, callback) for reply in replies])
