"""What a server does when memory has run out: it ends those who hold most of it, so that the others can go on."""

from __future__ import annotations

from evloop.core.loop import Loop
from evloop.errors import LimitError
from evloop.log import WARNING
from evloop.net.connection import Connection

# How much is to be had again, and which share of the connections that may cost.
_MAKE_ROOM_BYTES = 1024 * 1024
_MAKE_ROOM_FRACTION = 16


def make_room(loop: Loop, connections: dict[Connection, object]) -> bool:
    """End those who hold most memory, the newest first among equals. False if there is nobody.

    For the loop, which goes on then.

    Args:
        loop: the loop they live in.
        connections: in the order in which they came. Those that are ended go out of it.
    """
    count = len(connections) // _MAKE_ROOM_FRACTION + 1
    held = ((_held_bytes(connection), connection) for connection in reversed(connections))
    freed = 0
    ended = 0
    for size, connection in sorted(held, key=lambda pair: pair[0], reverse=True)[:count]:
        if freed >= _MAKE_ROOM_BYTES:
            break
        freed += size
        ended += 1
        connection.end_for(LimitError("memory", "memory has run out, and this connection held more than others"))
    if ended:
        loop.log_limited(WARNING, "out of memory: %d connections ended, which held %d bytes", ended, freed)
    return ended > 0


def _held_bytes(connection: Connection) -> int:
    """What a connection makes this process hold, as far as that is known."""
    try:
        unfinished = connection.protocol.held_bytes()
    except Exception:  # it is asked when there is no memory; whatever is wrong shows when it is used
        unfinished = 0
    return connection.unsent_bytes + unfinished
