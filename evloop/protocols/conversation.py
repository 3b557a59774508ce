"""How a task waits for a connection's data, and writes to it: what `evloop.protocols.streams.Stream` is built on.

Theory of operation
-------------------
A `Conversation` is a protocol whose data handler goes on with the task that reads. The chunk that has arrived is put
down, the task's code runs up to its next wait, and what it has written by then is the reply, which leaves at once. No
scheduler is between the two, so a coroutine costs what a callback costs. While the task waits for something else, what
arrives is kept, up to the high-water mark, and then the connection is paused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator

from evloop.core.loop import Loop
from evloop.errors import CannotMoveError, ConnectionLostError
from evloop.net.protocol import Protocol
from evloop.protocols.readbuffer import ReadBuffer
from evloop.protocols.tasks import DONE, Cancelled, Task, current_task, park

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

    from evloop.net.tlsinfo import TLSInfo

# Writes that are collected while a task runs, and how big each may be: more than that is handed on, so that the water
# marks see it.
_COLLECTED_WRITES = 64
_COLLECTED_BYTES = 1024

# What a task waits by that waits for data: an iterator over this, which ends when it is resumed.
_ONCE = (None,)


class Conversation(Protocol):
    """Both directions of a connection, for tasks. One of them may read at a time, any may write.

    Attributes:
        max_line_bytes: the longest line; a longer one is a `LimitError`. It is held in memory while it is unfinished.
    """

    __slots__ = ("_arrived", "_ended", "_high", "_lost", "_out", "_reader", "_unread", "_writers")

    message_end = b"\n"
    max_line_bytes = 65536

    def __init__(self) -> None:
        # What was written since data woke the reader: leaves as the reply to that data. None while it does not run so.
        self._out: list[bytes] | None = None
        self._unread = ReadBuffer(self.max_line_bytes)  # has arrived, and was not taken
        # What has just arrived, empty at the end (bytes); what has arrived while nobody was reading (bytearray).
        self._arrived: bytes | bytearray | None = None
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
    def tls(self) -> TLSInfo | None:
        """What was agreed on with TLS, the peer's certificate too; None on a connection without."""
        return self.connection.tls

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
            return DONE
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
        high = connection.limits.high_water_bytes
        if connection.unsent_bytes <= high:
            return DONE
        connection.flush()  # so that what is unsent is what the kernel does not take
        return DONE if connection.unsent_bytes <= high else _Room(self)

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

    def __await__(self) -> Generator[Any, Any, None]:
        """To await a stream is to wait until something has arrived that was not taken yet, or the end."""
        loop = self.connection.loop
        task = loop.task
        if task is None:
            task = current_task()
        if task.cancelled:
            raise Cancelled
        if self._arrived is not None or self._ended:
            return iter(())  # type: ignore[return-value]
        if self._reader is not task:
            self._attach(task)
        loop.task = None
        return iter(_ONCE)  # type: ignore[return-value]

    def _take_arrived(self) -> bytes:
        """What has arrived, after a wait for it; nothing at the end."""
        data, self._arrived = self._arrived, None
        if data:
            if type(data) is bytes:
                return data
            if not self._ended:
                self.connection.resume_reading()
            return bytes(data)
        if isinstance(self._lost, Exception):
            self._check_lost()
        return b""

    def _attach(self, task: Task) -> None:
        if self._reader is not None:
            raise RuntimeError("another task is reading this stream")
        if task.stream is not None:
            task.stream.detach()
        self._reader, task.stream = task, self

    def detach(self) -> None:
        """Its reader has ended, or waits for something else: what arrives is kept."""
        task, self._reader = self._reader, None
        if task is not None:
            task.stream = None
        self._hand_on()
        self._out = None

    def _feed(self, data: bytes) -> bytes | None:
        """The connection's data handler."""
        reader = self._reader
        if reader is None:
            self._keep(data)
            return None
        self._arrived = data
        self._out = []
        reader.resume()
        out, self._out = self._out, None
        return b"".join(out) if out else None

    def _collected(self) -> bytes | None:
        """What was written since the reader was woken: the reply."""
        out, self._out = self._out, None
        return b"".join(out) if out else None

    def _keep(self, data: bytes) -> None:
        held = self._arrived
        if type(held) is not bytearray:
            held = self._arrived = bytearray(held or b"")
        held += data
        if len(held) >= self.connection.limits.high_water_bytes:
            self.connection.pause_reading()

    # ------------------------------------------------------------------ the connection's callbacks

    def data_handler(self) -> Callable[[bytes], bytes | None]:
        return self._feed

    def dump(self) -> bytes | None:
        raise CannotMoveError("a coroutine can't go on in another process")

    def held_bytes(self) -> int:
        return self._unread.held_bytes + len(self._arrived or b"")

    def message_in_progress(self) -> int | None:
        return self._unread.message_in_progress()

    def on_eof(self) -> bytes | None:
        self._ended = True
        return None if self._reader is None else self._feed(b"")

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
        self._wake_reader_soon()
        self.on_low_water()

    def _wake_reader_soon(self) -> None:
        if self._reader is not None:
            self.connection.loop.call_soon(self._wake_reader)

    def _wake_reader(self) -> None:
        if self._reader is not None:
            reply = self._feed(b"")
            if reply:
                self.connection.write(reply)


class _Room:
    """To await it is to wait until less is unsent than the high-water mark."""

    __slots__ = ("_conversation",)

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    def __await__(self) -> Generator[Any, Any, None]:
        return self._conversation._wait_for_room().__await__()
