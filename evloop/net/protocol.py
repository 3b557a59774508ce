"""The callbacks a user overrides.

One protocol object belongs to one connection. All callbacks run in the loop's thread and must not block. An exception
in one of them costs its own connection, which is aborted, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from evloop.errors import CannotMoveError

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any, Never, Self

    from evloop.errors import ConnectError
    from evloop.net.connection import Connection

# What a code object's flags say of ``async def``, and of a generator that `types.coroutine` has made awaitable; and of
# an asynchronous generator.
_CO_COROUTINE = 0x80 | 0x100
_CO_ASYNC_GENERATOR = 0x200
_CALL = "__call__"


def is_handler(given: object) -> bool:
    """Whether this is an ``async def`` function of a stream, which may stand where a protocol factory does.

    Also a method, a partial of one, or an object whose ``__call__`` is one.

    Raises:
        TypeError: it is an asynchronous generator function, which is neither.
    """
    while isinstance(given, partial):
        given = given.func
    call = given if hasattr(given, "__code__") else getattr(type(given), _CALL, None)
    code = getattr(call, "__code__", None)
    flags: int = getattr(code, "co_flags", 0)
    if flags & _CO_ASYNC_GENERATOR:
        raise TypeError(f"{given!r} is an asynchronous generator: a handler has no yield, it calls stream.write")
    return flags & _CO_COROUTINE != 0


class _NoConnection:
    """What a protocol has for a connection before it has one."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Never:
        raise AttributeError("this protocol has no connection yet: it has one from on_connect on", name=name, obj=self)


_NO_CONNECTION = _NoConnection()


class Protocol:
    """What happens on one connection. Override what you need.

    A callback that returns bytes has them written: ``return reply`` is ``self.connection.write(reply)`` and nothing
    else, but cheaper.

    Attributes:
        connection: the connection it belongs to, set before `on_connect`.
        keep_half_open: when the peer has sent all it wants to send (EOF), the connection is closed once what is
            unsent has left. Set this to True in your class to go on writing until you call `Connection.close`.
        wants_whole_chunks: receive 64 KiB at a time from the first byte on. Otherwise a connection begins with less,
            and takes more when its peer fills that. This is cheaper for short messages, and makes no difference to a
            protocol that does not care how a stream is cut.
        message_end: bytes that end a message, or nothing. What arrives at once is delivered in several pieces, so that
            nobody waits for long. With this, pieces are cut only at the end of a message (see `evloop.net.receiving`).
    """

    # Without a dict unless a subclass has one, which it has as soon as it doesn't declare __slots__ itself.
    __slots__ = ("connection",)

    keep_half_open = False
    wants_whole_chunks = False
    message_end = b""
    connection: Connection

    # A `__getattr__` would say as well that there is no connection yet. But CPython then takes its slow path for every
    # attribute of every protocol and stream: 25 ns each, which is a third of what a coroutine pays for a line.
    def __new__(cls, *args: object, **named: object) -> Self:
        protocol = super().__new__(cls)
        protocol.connection = _NO_CONNECTION  # type: ignore[assignment]
        return protocol

    def __init__(self) -> None:
        """Nothing is lost if a subclass does not call it."""

    def on_connect(self) -> bytes | None:
        """The connection is open."""
        return None

    def on_data(self, data: bytes) -> bytes | None:
        """Bytes have arrived: at least one, at most 64 KiB, cut wherever the network liked.

        What arrived at once may come in several calls, the last of them in later passes of the loop.
        """
        return None

    def data_handler(self) -> Callable[[bytes], bytes | None]:
        """What is called with received bytes: asked for once, when the connection is made; by default `on_data`.

        A protocol that only passes its data on can name the receiver here, and saves a call for each message.
        """
        return self.on_data

    def on_eof(self) -> bytes | None:
        """The peer will send nothing more (it may still read).

        The connection is closed when what is unsent has left, unless `keep_half_open` is set or `Connection.hold` says
        that an answer is still owed.
        """
        return None

    def on_high_water(self) -> None:
        """More is unsent than `Limits.high_water_bytes`: a protocol that produces data on its own should pause.

        Unsent is what the kernel did not take when it was offered, which happens at the end of each pass of the loop.
        If the kernel takes all of it, this is not called, however much that was. `Connection.unsent_bytes` tells within
        a pass how much is still to be offered. Until `on_low_water`, the peer is not read; the protocol need not do
        anything for that.
        """

    def on_low_water(self) -> None:
        """No more than `Limits.low_water_bytes` is unsent any more: produce again."""

    def on_drain(self) -> bytes | None:
        """The server stops, and an answer is still owed (`Connection.hold`): nothing more will be received.

        After it the connection is closed as soon as the answer is given. Not called if nothing is owed.
        """
        return None

    def on_close(self, error: Exception | None) -> None:
        """The connection is over: called exactly once for each `on_connect`.

        The connection is over when all that was written has been given to the kernel, which may still be delivering it.

        Args:
            error: None when it was closed in order; else why it was not: an OSError (reset by the peer, say), a
                `LimitError`, or what a callback raised.
        """

    def on_connect_error(self, error: ConnectError) -> None:
        """An outgoing connection could not be made. No other callback is called, before or after."""

    def held_bytes(self) -> int:
        """How many bytes it holds of messages that have not ended. When memory runs out, the connections that hold most
        are ended."""
        return 0

    def message_in_progress(self) -> int | None:
        """For `Limits.message_timeout_s`: None between messages, else a number that changes with each message.

        It must not change when just more bytes of the same message arrive.
        """
        return None

    # ------------------------------------------------------------------ going on in another process

    def dump(self) -> bytes | None:
        """What its successor must know: asked when the connection could go on in another process, for which a server's
        connections are handed over on a reload (see `evloop.server.handover`).

        By default a protocol can move if it has no state of its own (`own_state` says what that means), and then this
        is empty. One that has some overrides this and `restore`, and `on_moved` if others know of it.

        Returns:
            what `restore` is given there; None if it can't move just now: it is asked again a little later.

        Raises:
            CannotMoveError: it never can. The connection is drained.
        """
        found = own_state(self)
        if found is not None:
            raise CannotMoveError(f"{type(self).__qualname__} {found}: give it dump() and restore()")
        return b""

    def restore(self, state: bytes) -> None:
        """Go on where the predecessor has stopped, in another process. Called instead of `on_connect`.

        The connection can be written to. By then it has taken its data handler from `data_handler`.

        Args:
            state: what `dump` returned there; perhaps that of another version of the program.
        """

    def on_moved(self) -> None:
        """The connection goes on in another process. Nothing more is called here, `on_close` neither."""

    def dump_framing(self) -> bytes | None:
        """For classes that cut the stream into messages, such as `LineProtocol`: what they hold of one that has not
        ended; as for `dump`."""
        return b""

    def restore_framing(self, state: bytes) -> None:
        """What `dump_framing` returned; given back before `restore` is called."""


_SLOT = type(vars(Protocol)["connection"])


def own_state(protocol: Protocol) -> str | None:
    """Why a protocol is not the same as any other one of its class: the first reason found, in words; None if it is.

    It is if it has no `on_connect` and no `on_close`, as who has them is probably known to somebody else or has a
    beginning that must not be repeated; if no attribute is set on it but `connection`; and if received bytes go where
    `data_handler` says. What classes keep that have a `dump_framing` is not its own.
    """
    kind = type(protocol)
    if kind.on_connect is not Protocol.on_connect:
        return "has an on_connect"
    if kind.on_close is not Protocol.on_close:
        return "has an on_close"
    for name in getattr(protocol, "__dict__", ()):
        return f"has an attribute {name!r}"
    for base in kind.__mro__:
        if base is Protocol or "dump_framing" in vars(base):
            continue
        for name, slot in vars(base).items():
            if isinstance(slot, _SLOT) and _is_set(slot, protocol):
                return f"has an attribute {name!r}"
    connection, usual = protocol.connection, protocol.data_handler()
    handler = connection.set_data_handler(usual)
    connection.set_data_handler(handler)
    if connection.bytes_received and handler != usual:  # before the first byte a server may look at that itself
        return "has set a data handler"
    return None


def _is_set(slot: Any, protocol: Protocol) -> bool:
    try:
        slot.__get__(protocol)
    except AttributeError:
        return False
    return True
