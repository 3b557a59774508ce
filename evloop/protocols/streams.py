"""What a coroutine reads from a connection: lines, batches of them, or bytes.

Theory of operation
-------------------
Lines are cut from a chunk all at once (`evloop.protocols.readbuffer`), and ``async for`` goes over them in an
asynchronous generator, which costs least for each. What was cut and not taken is turned back into bytes when
somebody reads bytes, so ``break`` out of `Stream.lines` loses nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Generator

from evloop.errors import IncompleteReadError, LimitError
from evloop.protocols.conversation import Conversation
from evloop.protocols.tasks import DONE

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Self

    from evloop.protocols.framings import Framing


class Stream(Conversation):
    """Both directions of a connection, for tasks. One of them may read at a time, any may write.

    ``async with`` closes it at the end, or aborts it if something was raised.
    """

    __slots__ = ()

    def lines(self) -> AsyncIterator[bytes]:
        """``async for line in stream.lines():`` each line without its LF or CR LF, an unterminated last one too.

        For one line after another, with a time-out for each say, there is ``anext(stream.lines())``.

        Raises:
            LimitError: a line is longer than `max_line_bytes`. What comes after it can't be read as lines.
            ConnectionLostError: by each kind of reading, when the connection ended otherwise than by the peer's end.
        """
        return _Lines(self)

    def batches(self) -> AsyncIterator[list[bytes]]:
        """As `lines`, but all lines that are there at once, in a list: the fastest way to answer many."""
        return _Batches(self)

    def messages(self, framing: Framing, limit_bytes: int = 65536) -> AsyncIterator[bytes]:
        """``async for message in stream.messages(LengthPrefix(4)):`` each message that says how long it is.

        To answer, ``stream.write(framing.wrap(reply))``. One after another, as with `lines`: ``anext``.

        Raises:
            LimitError: a message is longer than ``limit_bytes``.
            FramingError: what comes is none.
            IncompleteReadError: the stream ended in the middle of one.
        """
        return _Messages(self, framing, limit_bytes)

    async def read(self, at_most: int = 65536) -> bytes:
        """What has arrived, at least one byte; empty at the end of the stream."""
        if at_most < 1:
            raise ValueError(f"at_most must be at least 1, got {at_most}")
        held = self._unread.as_bytes()
        if not held:
            await self
            data = self._take_arrived()
            if len(data) <= at_most:
                return data
            held += data
        return _take(held, at_most)

    async def read_exactly(self, size: int) -> bytes:
        """So many bytes.

        Raises:
            IncompleteReadError: the stream ended before.
        """
        if size < 0:
            raise ValueError(f"size must not be negative, got {size}")
        held = self._unread.as_bytes()
        while len(held) < size:
            await self._more_onto(held)
        return _take(held, size)

    async def read_until(self, end: bytes, limit_bytes: int = 65536) -> bytes:
        """Everything up to ``end``, with it.

        Raises:
            LimitError: it does not end within so many bytes, not counting ``end``.
            IncompleteReadError: the stream ended before.
        """
        held, start = self._unread.as_bytes(), 0
        while (at := held.find(end, start)) < 0 and len(held) < limit_bytes + len(end):
            start = max(0, len(held) - len(end) + 1)
            await self._more_onto(held)
        if not 0 <= at <= limit_bytes:
            raise LimitError("read-until", f"no {end!r} after at most {limit_bytes} bytes")
        return _take(held, at + len(end))

    async def _more_onto(self, held: bytearray) -> None:
        await self
        data = self._take_arrived()
        if not data:
            raise IncompleteReadError(_take(held, len(held)))
        held += data

    def _cut_again(self) -> bool:
        """Cut a line of what was left as bytes. False if there is none, and more is needed."""
        return not self._unread.nothing() and self._unread.cut_again()

    def _cut(self) -> bool:
        """Cut what has arrived. False at the end."""
        data = self._arrived
        if data and type(data) is bytes:
            self._arrived = None
        else:
            data = self._take_arrived()
        if data:
            self._unread.cut(data)
            return True
        return self._unread.cut_last()

    # ------------------------------------------------------------------ as a context

    def __aenter__(self) -> _Entered:
        return _Entered(self)

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Awaitable[None]:
        if kind is None:
            self.close()
        else:
            self.abort()
        return DONE


class _Entered:
    """To await it gives the stream, without a wait."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __await__(self) -> Generator[Any, Any, Stream]:
        return self._stream
        yield


def _take(held: bytearray, size: int) -> bytes:
    data = bytes(held[:size])
    del held[:size]
    return data


class _Lines:
    """What `Stream.lines` returns. It holds nothing: another one goes on where this one was left.

    ``async for`` takes the generator, which costs less for a line; ``anext`` takes the method, which can be called
    again after it was cancelled.
    """

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _each_line(self._stream)

    async def __anext__(self) -> bytes:
        stream = self._stream
        while True:
            for line in stream._unread.lines:
                return line
            if not stream._cut_again():
                await stream
                if not stream._cut():
                    raise StopAsyncIteration


async def _each_line(stream: Stream) -> AsyncIterator[bytes]:
    unread = stream._unread
    while True:
        lines = unread.lines
        for line in lines:
            yield line
        if unread.lines is not lines:
            continue  # the one who goes over them has read by other ways, too, and left some
        del lines  # a wait may be long, and there may be many who wait
        if unread.nothing() or not unread.cut_again():
            await stream
            if not stream._cut():
                return


class _Batches:
    """What `Stream.batches` returns: as `_Lines`."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[list[bytes]]:
        return _each_batch(self._stream)

    async def __anext__(self) -> list[bytes]:
        stream = self._stream
        while True:
            lines = list(stream._unread.lines)
            if lines:
                return lines
            del lines  # as in `_each_line`
            if not stream._cut_again():
                await stream
                if not stream._cut():
                    raise StopAsyncIteration


async def _each_batch(stream: Stream) -> AsyncIterator[list[bytes]]:
    unread = stream._unread
    while True:
        lines = list(unread.lines)
        if lines:
            yield lines
            continue
        del lines  # as in `_each_line`
        if unread.nothing() or not unread.cut_again():
            await stream
            if not stream._cut():
                return


class _Messages:
    """What `Stream.messages` returns. It holds nothing of the stream, as `_Lines`."""

    __slots__ = ("_framing", "_limit_bytes", "_stream")

    def __init__(self, stream: Stream, framing: Framing, limit_bytes: int) -> None:
        self._stream = stream
        self._framing = framing
        self._limit_bytes = limit_bytes

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        stream = self._stream
        held = stream._unread.as_bytes()
        if not held:
            await stream
            data = stream._take_arrived()
            if not data:
                raise StopAsyncIteration
            held += data
        while True:
            start, end, after = self._framing.locate(held, 0, self._limit_bytes)
            if after <= len(held):
                break
            while len(held) < after:
                await stream._more_onto(held)
        message = bytes(held[start:end])
        del held[:after]
        return message
