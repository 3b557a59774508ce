"""A protocol whose messages say how long they are."""

from __future__ import annotations

from evloop.errors import FramingError, IncompleteReadError, LimitError
from evloop.log import WARNING
from evloop.net.buffers import as_bytes
from evloop.net.protocol import Protocol
from evloop.protocols.answers import answer_each
from evloop.protocols.framings import Framing, MessageFramer

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Self


class MessageProtocol(Protocol):
    """A protocol whose messages say how long they are.

    Attributes:
        framing: how they do it: `LengthPrefix`, `VarintPrefix`, `Netstring`, or one of your own. What is sent is
            wrapped by ``self.framing.wrap(message)``.
        max_message_bytes: the longest message accepted. 64 KiB, as a message is held in memory until it is complete,
            for each connection. A longer one is counted as ``max-message`` in the server's statistics.
    """

    __slots__ = ("_framer", "_messages")

    framing: Framing
    max_message_bytes = 65536
    _framer: MessageFramer | None
    _messages: int

    # As in `LineProtocol`.
    def __new__(cls, *args: object, **named: object) -> Self:
        protocol = super().__new__(cls)
        protocol._framer = None
        protocol._messages = 0
        return protocol

    def on_message(self, message: bytes) -> bytes | None:
        """A message has arrived, without its head."""
        return None

    def on_messages(self, messages: list[bytes]) -> bytes | None:
        """Whole messages, in order: all of a received chunk, or of a piece of it. Override it instead of `on_message`
        for speed.

        The default calls `on_message` for each, until one of them closes the connection.
        """
        return answer_each(self.connection, self.on_message, messages)

    def on_bad_message(self, error: LimitError | FramingError | IncompleteReadError) -> bytes | None:
        """No more messages will come: one was too long, or was none, or the stream has ended in the middle of one.

        What is returned is sent; then the connection is closed.
        """
        return None

    def on_data(self, data: bytes) -> bytes | None:
        framer = self._framer
        if framer is None:
            framer = self._framer = self._make_framer()
        messages = framer.feed(data)
        reply = None
        if messages:
            self._messages += len(messages)
            reply = self.on_messages(messages)
            if type(reply) is not bytes and reply:
                reply = as_bytes(reply, self.on_messages)
        return reply if framer.error is None else self._end(framer.error, reply)

    def on_eof(self) -> bytes | None:
        """Calls `on_bad_message` if a message has begun. Call it if you override it."""
        try:
            if self._framer is not None:
                self._framer.finish()
        except IncompleteReadError as error:
            return self._last_words(error)
        return None

    def held_bytes(self) -> int:
        return 0 if self._framer is None else self._framer.held_bytes

    def message_in_progress(self) -> int | None:
        return self._messages if self._framer is not None and self._framer.in_message else None

    def dump_framing(self) -> bytes | None:
        return b"" if self._framer is None else self._framer.dump()

    def restore_framing(self, state: bytes) -> None:
        if state:
            self._framer = self._make_framer()
            self._framer.feed(state)

    def _make_framer(self) -> MessageFramer:
        if not hasattr(self, "framing"):
            raise TypeError(f"{type(self).__name__} does not say how its messages are framed: set its `framing`")
        return MessageFramer(self.framing, self.max_message_bytes)

    def _end(self, error: LimitError | FramingError, reply: bytes | None) -> bytes | None:
        connection = self.connection
        if connection.closing:  # by a message before the bad one
            return reply
        if isinstance(error, LimitError):
            connection.count_limit(error.limit)
        connection.loop.log_limited(WARNING, "connection %s ended: %s", connection.peer, error)
        return (reply or b"") + self._last_words(error)

    def _last_words(self, error: LimitError | FramingError | IncompleteReadError) -> bytes:
        reply = self.on_bad_message(error)
        self.connection.close()
        return as_bytes(reply, self.on_bad_message) if reply else b""
