"""What of a connection goes to another process, so that it goes on there and its peer notices nothing.

Theory of operation
-------------------
Processes can pass each other descriptors. Both have the same connection then, and when one closes its own, nothing is
sent: the connection ends with its last descriptor. What has arrived and was not read stays in the kernel. So all that
has to go along is what this process knows and the kernel doesn't: who the peer is, what was counted, for how long
time-outs have been running, what the protocol knows, and what was received and not dealt with yet.

What was written and not sent does not go along. It may be much, and its peer reads slowly: until it has left, the
connection can't move. So is it with an answer that is owed (`Connection.hold`), with a peer that has sent its end of
stream, and while the protocol says so.

The bytes are read by the next version of the program, too. So they are a line of JSON, in which that may look for
more or less than there is, and after it what has no names: the protocol's state, its framing's, and the rest.

`dump`, `detach` and `restore` are partners of `Connection`, and use what is private to it. They stand here so that who
never moves does not load them.
"""

from __future__ import annotations

import json

from evloop.errors import CannotMoveError
from evloop.net.buffers import NOTHING_MORE
from evloop.net.connection import NOBODY, Connection
from evloop.net.proxyheader import ProxyHeader
from evloop.net.state import State
from evloop.net.stream import PAUSED_BY_TURN

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

    from evloop.net.protocol import Protocol

# The version of what is written here. One that reads it must know it: processes with different ones don't try.
FORMAT = 1

# One more reason for not being read, beside those of `evloop.net.stream` and `evloop.net.tlsstream`: what is owed is to
# leave first.
PAUSED_BY_MOVE = 32


class Moving:
    """All that is known of a connection on its way.

    Attributes:
        facts: what has a name, as JSON has it.
        state: of the protocol.
        framing: of its framing, too.
        rest: what was received and not handed over yet.
    """

    __slots__ = ("facts", "framing", "rest", "state")

    def __init__(self, facts: dict[str, Any], state: bytes, framing: bytes, rest: bytes) -> None:
        self.facts = facts
        self.state = state
        self.framing = framing
        self.rest = rest

    def to_bytes(self) -> bytes:
        """All of it."""
        parts = (self.state, self.framing, self.rest)
        line = json.dumps({**self.facts, "format": FORMAT, "parts": [len(part) for part in parts]})
        return b"".join((line.encode(), b"\n", *parts))

    @classmethod
    def from_bytes(cls, data: bytes) -> Moving:
        """What another process has made by `to_bytes`.

        Raises:
            CannotMoveError: it is not that.
        """
        line, _, rest = data.partition(b"\n")
        try:
            facts = json.loads(line)
            if facts["format"] != FORMAT:
                raise CannotMoveError(f"a connection in format {facts['format']}, and {FORMAT} is known")
            parts = []
            for size in facts["parts"]:
                parts.append(rest[:size])
                rest = rest[size:]
            state, framing, received = parts
        except (ValueError, KeyError, TypeError) as error:
            raise CannotMoveError(f"no connection, but {data[:60]!r}: {error!r}") from None
        return cls(facts, state, framing, received)

    @property
    def header(self) -> ProxyHeader | None:
        """What a proxy has said of the client."""
        found = self.facts["proxy"]
        if found is None:
            return None
        header = ProxyHeader(
            found["version"],
            local=found["local"],
            source=_address(found["source"]),
            destination=_address(found["destination"]),
            tlvs=tuple((kind, value.encode("latin-1")) for kind, value in found["tlvs"]),
        )
        header.sender = found["sender"]
        return header


def dump(connection: Connection) -> Moving | None:
    """What another process needs to go on with a connection; None if it can't move just now.

    Sends what is unsent, if the kernel takes it.

    Raises:
        CannotMoveError: it never can.
        Exception: what the protocol raised.
    """
    if type(connection) is not Connection:
        tls = connection.tls is not None
        raise CannotMoveError("it speaks TLS" if tls else f"it is a {type(connection).__qualname__}")
    if connection._unsent:
        connection.flush()
    if connection.state is not State.OPEN:
        return None
    protocol = connection.protocol
    state, framing = protocol.dump(), protocol.dump_framing()
    if _owes(connection) or connection._pause & ~(PAUSED_BY_TURN | PAUSED_BY_MOVE) or connection.batch is not None:
        return None
    if state is None or framing is None:
        return None
    now = connection.loop.now
    moved = connection.bytes_received + connection.bytes_sent != connection.activity
    facts = {
        "peer": connection.peer,
        "protocol": _name(protocol),
        "received": connection.bytes_received,
        "sent": connection.bytes_sent,
        "receive_size": connection._recv_bytes,
        "age_s": now - connection.opened_at,
        "idle_s": 0.0 if moved else now - connection.active_at,
        "proxy": None if connection.proxy_header is None else _header_facts(connection.proxy_header),
    }
    return Moving(facts, state, framing, connection._rest)


def wait_for_what_is_owed(connection: Connection) -> None:
    """Don't read a connection that owes its peer something, so that it comes to an end with that; read it if not."""
    owes = connection.state is State.OPEN and _owes(connection)
    connection._set_pause(connection._pause | PAUSED_BY_MOVE if owes else connection._pause & ~PAUSED_BY_MOVE)


def go_on(connection: Connection) -> None:
    """It will not move."""
    connection._set_pause(connection._pause & ~PAUSED_BY_MOVE)


def detach(connection: Connection) -> None:
    """Another process has it: it is over here, without a word to the peer. Only our descriptor is closed."""
    protocol = connection.protocol
    connection.state = State.CLOSED
    connection._unsent = NOTHING_MORE
    connection._rest = b""
    connection.protocol = NOBODY  # as at any other end, these refer to each other
    connection._on_data = NOBODY.on_data
    connection.loop.poller.watch(connection.socket.fileno(), 0, connection.flush)
    connection.loop.close_later(connection.socket)
    try:
        protocol.on_moved()
    except Exception as error:
        connection.loop.log_exception(error, "connection %s: on_moved raised", connection.peer)


def check(moving: Moving, protocol: Protocol) -> None:
    """Whether this protocol can go on where that one was.

    Raises:
        CannotMoveError: it can't.
    """
    there, here = moving.facts["protocol"], _name(protocol)
    if there != here:
        raise CannotMoveError(f"it spoke {there}, and here it would be {here}")


def restore(connection: Connection, moving: Moving) -> None:
    """Have a new connection, which was not opened, go on where the other one was.

    Raises:
        Exception: what the protocol raised. The connection can be ended then.
    """
    facts, loop, protocol = moving.facts, connection.loop, connection.protocol
    connection.bytes_received, connection.bytes_sent = facts["received"], facts["sent"]
    connection.activity = facts["received"] + facts["sent"]
    connection.active_at = loop.now - facts["idle_s"]
    connection.opened_at = loop.now - facts["age_s"]
    connection.proxy_header = moving.header
    connection._recv_bytes = facts["receive_size"]
    if moving.framing:
        protocol.restore_framing(moving.framing)
    protocol.restore(moving.state)
    if connection.state is not State.OPEN:
        return
    if moving.rest:
        connection._rest = moving.rest
        connection._go_on_if_not_paused()
    connection._update_interest()  # an error of it ends the connection


def _owes(connection: Connection) -> bool:
    return bool(connection._unsent) or connection._holds > 0


def _name(protocol: Protocol) -> str:
    kind = type(protocol)
    return f"{kind.__module__}.{kind.__qualname__}"


def _header_facts(header: ProxyHeader) -> dict[str, Any]:
    return {
        "version": header.version,
        "local": header.local,
        "source": header.source,
        "destination": header.destination,
        "tlvs": [(kind, value.decode("latin-1")) for kind, value in header.tlvs],
        "sender": header.sender,
    }


def _address(found: Any) -> tuple[str, int] | str | None:
    return (found[0], found[1]) if isinstance(found, list) else found
