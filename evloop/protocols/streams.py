"""A conversation written down from top to bottom: what a coroutine reads and writes.

Theory of operation
-------------------
A `Stream` is a protocol whose callbacks are what its reader waits for. While a task waits for the stream's data, the
``send`` of the task's generator is the connection's data handler: the chunk goes in, the handler's code runs up to its
next wait, and what it has written by then comes out as the reply, which leaves at once. Nothing is between the two, so
a coroutine costs what a callback costs. While the task waits for something else, what arrives is kept, up to the
high-water mark, and then the connection is paused.

Lines are cut from a chunk all at once. What was cut and not taken yet is turned back into bytes when somebody reads
bytes, so ``break`` out of `Stream.lines` loses nothing.

A served connection's task is what its connection owes (`Connection.hold`): after the client's half-close, and in a
drain, it goes on until it ends, within the server's time-outs.
"""

from __future__ import annotations

import types
from collections.abc import AsyncIterator, Awaitable, Callable, Generator

from evloop.core.loop import Loop
from evloop.errors import ConnectionLostError, IncompleteReadError, LimitError
from evloop.net.protocol import Protocol
from evloop.protocols.readbuffer import ReadBuffer
from evloop.protocols.tasks import DONE, Task, current_task, park

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    pass


# Writes that are collected while a task runs, and how big each may be: more than that is handed on, so that the water
# marks see it.
_COLLECTED_WRITES = 64
_COLLECTED_BYTES = 1024


class Stream(Protocol):
    """Both directions of a connection, for tasks. One of them may read at a time, any may write.

    Attributes:
        max_line_bytes: the longest line; a longer one is a `LimitError`. It is held in memory while it is unfinished.
    """

    __slots__ = (
        "_early",
        "_ended",
        "_lost",
        "_out",
        "_reader",
        "_unread",
        "_writers",
    )

    message_end = b"\n"
    max_line_bytes = 65536

    def __init__(self) -> None:
        # What was written since data woke the reader: leaves as the reply to that data. None while it does not run so.
        self._out: list[bytes] | None = None
        self._unread = ReadBuffer(self.max_line_bytes)  # has arrived, and was not taken
        self._early: list[bytes] | None = None  # arrived while nobody was reading
        self._reader: Task | None = None
        self._writers: dict[Task, None] | None = None  # who waits for the low-water mark
        self._ended = False  # nothing more will arrive
        self._lost: Exception | bool = False  # why nothing more can be written, if that is so

    # ------------------------------------------------------------------ what a task uses

    @property
    def peer(self) -> str:
        """The other end as text, for logs."""
        return self.connection.peer

    @property
    def loop(self) -> Loop:
        """The loop it lives in."""
        return self.connection.loop

    def lines(self) -> AsyncIterator[bytes]:
        """``async for line in stream.lines():`` each line without its LF or CR LF, an unterminated last one too.

        For one line after another, with a time-out for each say, there is ``anext(stream.lines())``.

        Raises:
            LimitError: a line is longer than `max_line_bytes`.
            ConnectionLostError: by each kind of reading, when the connection ended otherwise than by the peer's end.
        """
        return _Lines(self)

    def batches(self) -> AsyncIterator[list[bytes]]:
        """As `lines`, but all lines that are there at once, in a list: the fastest way to answer many."""
        return _Batches(self)

    async def read(self, at_most: int = 65536) -> bytes:
        """What has arrived, at least one byte; empty at the end of the stream."""
        held = self._unread.as_bytes()
        if not held:
            data = await self._more()
            if len(data) <= at_most:
                return data
            held += data
        return _take(held, at_most)

    async def read_exactly(self, size: int) -> bytes:
        """So many bytes.

        Raises:
            IncompleteReadError: the stream ended before.
        """
        held = self._unread.as_bytes()
        while len(held) < size:
            data = await self._more()
            if not data:
                raise IncompleteReadError(_take(held, len(held)))
            held += data
        return _take(held, size)

    async def read_until(self, end: bytes, limit_bytes: int = 65536) -> bytes:
        """Everything up to ``end``, with it.

        Raises:
            LimitError: it is not in so many bytes.
            IncompleteReadError: the stream ended before.
        """
        held, start = self._unread.as_bytes(), 0
        while (at := held.find(end, start)) < 0:
            if len(held) > limit_bytes:
                raise LimitError("read-until", f"no {end!r} in {limit_bytes} bytes")
            start = max(0, len(held) - len(end) + 1)
            data = await self._more()
            if not data:
                raise IncompleteReadError(_take(held, len(held)))
            held += data
        return _take(held, at + len(end))

    def write(self, data: bytes) -> Awaitable[None]:
        """Send ``data``. To await what this returns is to wait while too much is unsent (`Limits.high_water_bytes`).

        Raises:
            ConnectionLostError: the connection is gone.
        """
        out = self._out
        if out is not None and type(data) is bytes and len(data) < _COLLECTED_BYTES and len(out) < _COLLECTED_WRITES:
            out.append(data)
            done: Awaitable[None] = DONE
            return done
        return self._write_through(data)

    def write_eof(self) -> None:
        """Say that nothing more will be written, when all that was has left."""
        self._hand_on()
        self.connection.write_eof()

    def close(self) -> None:
        """Send what was written, then close."""
        self._hand_on()
        self.connection.close()

    def abort(self) -> None:
        """Close at once, and drop what is unsent."""
        self._out = None
        self.connection.abort()

    # ------------------------------------------------------------------ reading

    @types.coroutine
    def _more(self) -> Generator[bytes | None, bytes, bytes]:
        """The next chunk, or nothing at the end."""
        if self._early is not None:
            current_task().check_cancelled()
            data, self._early = b"".join(self._early), None
            if not self._ended:
                self.connection.resume_reading()
            return data
        if self._ended:
            return self._end()
        loop = self.connection.loop
        task = current_task()
        if self._reader is not task:
            self._attach(task)
        task.check_cancelled()
        out, self._out = self._out, None
        data = yield b"".join(out) if out else None
        loop.task = task
        if not data:
            return self._end()
        self._out = []
        return data

    def _end(self) -> bytes:
        if isinstance(self._lost, Exception):
            raise ConnectionLostError(f"the connection was lost: {self._lost}") from self._lost
        return b""

    def _attach(self, task: Task) -> None:
        if self._reader is not None:
            raise RuntimeError("another task is reading this stream")
        if task.stream is not None:
            task.stream._detach()
        self._reader, task.stream = task, self
        self.connection.set_data_handler(task.send)

    def _detach(self) -> None:
        """Its reader is done, or waits for something else: what arrives is kept."""
        task, self._reader = self._reader, None
        if task is not None:
            task.stream = None
        self._hand_on()
        self._out = None
        if not self._lost:
            self.connection.set_data_handler(self._keep)

    def _keep(self, data: bytes) -> None:
        if self._early is None:
            self._early = []
        self._early.append(data)
        if sum(map(len, self._early)) >= self.connection.limits.high_water_bytes:
            self.connection.pause_reading()

    def message_in_progress(self) -> int | None:
        return self._unread.message_in_progress()

    # ------------------------------------------------------------------ writing

    def _hand_on(self) -> None:
        """Give what was collected to the connection."""
        out = self._out
        if out:
            self._out = []
            self.connection.write(b"".join(out))

    def _write_through(self, data: bytes) -> Awaitable[None]:
        if self._lost:
            raise ConnectionLostError("the connection is closed") from (
                self._lost if isinstance(self._lost, Exception) else None
            )
        self._hand_on()
        connection = self.connection
        connection.write(data)
        done: Awaitable[None] = DONE
        high = connection.limits.high_water_bytes
        if connection.unsent_bytes <= high:
            return done
        if connection.batch is None:
            connection.flush()  # so that what is unsent is what the kernel does not take
        return done if connection.unsent_bytes <= high else self._wait_for_low_water()

    async def _wait_for_low_water(self) -> None:
        task = current_task()
        if self._writers is None:
            self._writers = {}
        self._writers[task] = None
        try:
            await park(task)
        finally:
            self._writers.pop(task, None)
        if self._lost:
            self._write_through(b"")

    # ------------------------------------------------------------------ the connection's callbacks

    def data_handler(self) -> Callable[[bytes], bytes | None]:
        return self._keep

    def on_eof(self) -> bytes | None:
        self._ended = True
        reader = self._reader
        return None if reader is None else reader.send(b"")

    def on_drain(self) -> None:
        """The server stops: for the handler that is the end of what it reads."""
        self._ended = True
        self._wake_reader_soon()

    def on_low_water(self) -> None:
        for task in self._writers or ():
            task.wake()

    def on_close(self, error: Exception | None) -> None:
        self._ended = True
        self._lost = error or True
        self._out = None
        self._wake_reader_soon()
        self.on_low_water()

    def _wake_reader_soon(self) -> None:
        if self._reader is not None:
            self.connection.loop.call_soon(self._wake_reader)

    def _wake_reader(self) -> None:
        reader = self._reader
        if reader is not None and not reader.done:
            reply = reader.send(b"")
            if reply:
                self.connection.write(reply)


def _take(held: bytearray, size: int) -> bytes:
    data = bytes(held[:size])
    del held[:size]
    return data


class _Lines:
    """What `Stream.lines` returns: ``async for`` takes the generator, which costs less for a line; ``anext`` takes the
    method, which can be called again after it was cancelled.
    """

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        stream = self._stream
        while True:
            for line in stream._unread.lines:
                yield line
            try:
                await _next_lines(stream)
            except _NothingMore:
                return

    async def __anext__(self) -> bytes:
        stream = self._stream
        while True:
            for line in stream._unread.lines:
                return line
            try:
                await _next_lines(stream)
            except _NothingMore:
                raise StopAsyncIteration from None


class _Batches(_Lines):
    """What `Stream.batches` returns."""

    __slots__ = ()

    async def __aiter__(self) -> AsyncIterator[list[bytes]]:  # type: ignore[override]
        stream = self._stream
        while True:
            lines = list(stream._unread.lines)
            if lines:
                yield lines
            try:
                await _next_lines(stream)
            except _NothingMore:
                return

    async def __anext__(self) -> list[bytes]:  # type: ignore[override]
        async for lines in self:
            return lines
        raise StopAsyncIteration


class _NothingMore(Exception):
    """There are no lines any more."""


@types.coroutine
def _next_lines(stream: Stream) -> Generator[bytes | None, bytes, None]:
    """Wait for what comes next, and cut it.

    Raises:
        _NothingMore: nothing comes any more.
    """
    unread = stream._unread
    if unread.cut_again():  # bytes were read in between, and what they left has lines in it
        return
    loop = stream.connection.loop
    task = loop.task
    if stream._reader is not task or stream._early is not None or stream._ended or task is None or task.cancelled:
        data = yield from stream._more()
    else:
        # The same without a frame below this one, for the case that is nearly always so: the task that waited for this
        # stream last waits for it again.
        out, stream._out = stream._out, None
        unread.nothing()
        data = yield b"".join(out) if out else None
        loop.task = task
        if data:
            stream._out = []
        else:
            stream._end()
    try:
        if data:
            unread.cut(data)
        elif not unread.cut_last():
            raise _NothingMore
    except LimitError:
        stream.connection.count_limit("max-line")
        raise
