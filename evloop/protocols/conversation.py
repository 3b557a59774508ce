"""How a task waits for a connection's data, and writes to it: what `evloop.protocols.streams.Stream` is built on.

Theory of operation
-------------------
A `Conversation` is a protocol whose callbacks are what its reader waits for. While a task waits for its data, the
``send`` of the task's generator is the connection's data handler: the chunk goes in, the task's code runs up to its
next wait, and what it has written by then comes out as the reply, which leaves at once. Nothing is between the two, so
a coroutine costs what a callback costs. While the task waits for something else, what arrives is kept, up to the
high-water mark, and then the connection is paused.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Generator

from evloop.core.loop import Loop
from evloop.errors import CallbackResultError, ConnectionLostError
from evloop.net.protocol import Protocol
from evloop.protocols.readbuffer import ReadBuffer
from evloop.protocols.tasks import DONE, Task, current_task, foreign, park

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

# Writes that are collected while a task runs, and how big each may be: more than that is handed on, so that the water
# marks see it.
_COLLECTED_WRITES = 64
_COLLECTED_BYTES = 1024


class Conversation(Protocol):
    """Both directions of a connection, for tasks. One of them may read at a time, any may write.

    Attributes:
        max_line_bytes: the longest line; a longer one is a `LimitError`. It is held in memory while it is unfinished.
    """

    __slots__ = ("_early", "_ended", "_high", "_lost", "_out", "_reader", "_unread", "_writers")

    message_end = b"\n"
    max_line_bytes = 65536

    def __init__(self) -> None:
        # What was written since data woke the reader: leaves as the reply to that data. None while it does not run so.
        self._out: list[bytes] | None = None
        self._unread = ReadBuffer(self.max_line_bytes)  # has arrived, and was not taken
        self._early: bytearray | None = None  # arrived while nobody was reading
        self._reader: Task | None = None
        self._writers: dict[Task, None] | None = None  # who waits until less is unsent
        self._high = False  # above the high-water mark, as the connection has said
        self._ended = False  # nothing more will arrive
        self._lost: Exception | bool = False  # why nothing more can be written, if that is so

    @property
    def peer(self) -> str:
        """The other end as text, for logs."""
        return self.connection.peer

    @property
    def loop(self) -> Loop:
        """The loop it lives in."""
        return self.connection.loop

    # ------------------------------------------------------------------ writing

    def write(self, data: bytes) -> Awaitable[None]:
        """Send ``data``. To await what this returns is to wait while too much is unsent (`Limits.high_water_bytes`).

        Ignored after `close` or `write_eof`.

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

    def _reply(self) -> bytes | None:
        """What was collected: taken out, as the reply to the data that woke the reader."""
        out, self._out = self._out, None
        return b"".join(out) if out else None

    def _hand_on(self) -> None:
        """Give what was collected to the connection."""
        out = self._out
        if out:
            self._out = []
            self.connection.write(b"".join(out))

    def _write_through(self, data: bytes) -> Awaitable[None]:
        self._check_lost()
        self._hand_on()
        connection = self.connection
        connection.write(data)
        if connection.batch is not None:
            return _Room(self)  # what is unsent is known when it is awaited
        done: Awaitable[None] = DONE
        high = connection.limits.high_water_bytes
        if connection.unsent_bytes <= high:
            return done
        connection.flush()  # so that what is unsent is what the kernel does not take
        return done if connection.unsent_bytes <= high else _Room(self)

    def _check_lost(self) -> None:
        lost = self._lost
        if lost:
            cause = lost if isinstance(lost, Exception) else None
            why = "is closed" if cause is None else f"was lost: {cause}"
            raise ConnectionLostError(f"the connection {why}") from cause

    async def _wait_for_room(self) -> None:
        task = current_task()
        connection = self.connection
        high = connection.limits.high_water_bytes
        while connection.unsent_bytes > high and not self._lost:
            if self._writers is None:
                self._writers = {}
            self._writers[task] = None
            # The kernel may not have been offered it: then what it does not take is known in the next pass only.
            timer = None if self._high else connection.loop.call_later(0, task.step, task.turn)
            try:
                await park(task)
            finally:
                del self._writers[task]
                if timer is not None:
                    timer.cancel()
        self._check_lost()

    # ------------------------------------------------------------------ reading

    @types.coroutine
    def _more(self) -> Generator[bytes | None, bytes, bytes]:
        """The next chunk, or nothing at the end."""
        task = current_task()
        task.check_cancelled()
        if self._early is not None:
            data, self._early = bytes(self._early), None
            if not self._ended:
                self.connection.resume_reading()
            return data
        if self._ended:
            return self._end()
        loop = self.connection.loop
        if self._reader is not task:
            self._attach(task)
        loop.task = None
        data = yield self._reply()
        loop.task = task
        if not data:
            return self._end()
        self._out = []
        return data

    def _end(self) -> bytes:
        if isinstance(self._lost, Exception):
            self._check_lost()
        return b""

    def _attach(self, task: Task) -> None:
        if self._reader is not None:
            raise RuntimeError("another task is reading this stream")
        if task.stream is not None:
            task.stream.detach()
        self._reader, task.stream = task, self
        self.connection.set_data_handler(task.send)

    def detach(self) -> None:
        """Its reader has ended, or waits for something else: what arrives is kept."""
        task, self._reader = self._reader, None
        if task is not None:
            task.stream = None
        self._hand_on()
        self._out = None
        if not self._lost:
            self.connection.set_data_handler(self._keep)

    def _keep(self, data: bytes) -> None:
        if self._early is None:
            self._early = bytearray()
        self._early += data
        if len(self._early) >= self.connection.limits.high_water_bytes:
            self.connection.pause_reading()

    # ------------------------------------------------------------------ the connection's callbacks

    def data_handler(self) -> Callable[[bytes], bytes | None]:
        return self._keep

    def held_bytes(self) -> int:
        return self._unread.held_bytes + len(self._early or b"")

    def message_in_progress(self) -> int | None:
        return self._unread.message_in_progress()

    def on_eof(self) -> bytes | None:
        self._ended = True
        reader = self._reader
        return None if reader is None else reader.send(b"")

    def on_drain(self) -> None:
        """The server stops: for the handler that is the end of what it reads."""
        self._ended = True
        self._wake_reader_soon()

    def on_high_water(self) -> None:
        self._high = True

    def on_low_water(self) -> None:
        self._high = False
        for task in self._writers or ():
            task.wake()

    def on_close(self, error: Exception | None) -> None:
        self._ended = True
        self._lost = error or True
        self._out = None
        reader = self._reader
        if isinstance(error, CallbackResultError) and reader is not None:
            # Nothing but what a task awaits comes out of it, so it awaits something that is not ours.
            self.connection.loop.call_soon(reader.throw, foreign(error.kind))
        else:
            self._wake_reader_soon()
        self.on_low_water()

    def _wake_reader_soon(self) -> None:
        if self._reader is not None:
            self.connection.loop.call_soon(self._wake_reader)

    def _wake_reader(self) -> None:
        reader = self._reader
        if reader is not None:
            reply = reader.send(b"")
            if reply:
                self.connection.write(reply)


class _Room:
    """To await it is to wait until less is unsent than the high-water mark."""

    __slots__ = ("_conversation",)

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    def __await__(self) -> Generator[Any, Any, None]:
        return self._conversation._wait_for_room().__await__()
