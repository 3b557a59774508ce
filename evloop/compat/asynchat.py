"""asynchat's interface, on epoll: ``import evloop.compat.asynchat as asynchat``. See `evloop.compat.asyncore`."""

from __future__ import annotations

from collections import deque

from evloop.compat import asyncore
from evloop.compat.watching import Touching, foreseen

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

    from evloop.compat.watching import SocketMap


class async_chat(asyncore.dispatcher):
    """A conversation: what comes is cut at a terminator, what goes is queued.

    Override ``collect_incoming_data`` and ``found_terminator``.

    Attributes:
        ac_in_buffer_size, ac_out_buffer_size: how many bytes are received, and sent, at once.
        use_encoding, encoding: whether text is encoded, and how; else only bytes can be sent.
        terminator: of bytes; a number of bytes; or None, to have all that comes collected. See `set_terminator`.
        producer_fifo: what is to be sent: bytes, producers, and None for an end after all that.
        incoming: what `_collect_incoming_data` has collected.
    """

    ac_in_buffer_size = 65536
    ac_out_buffer_size = 65536
    use_encoding: Any = 0
    encoding = "latin-1"

    terminator: Any
    producer_fifo: Any = Touching()

    def __init__(self, sock: Any = None, map: SocketMap | None = None) -> None:
        self.ac_in_buffer: Any = b""
        self.incoming: list[Any] = []
        self.producer_fifo = deque()
        super().__init__(sock, map)

    # ------------------------------------------------------------------ what comes

    def collect_incoming_data(self, data: Any) -> None:
        """Override: this came, and is not the terminator."""
        raise NotImplementedError("must be implemented in subclass")

    def found_terminator(self) -> None:
        """Override: the terminator came. May set another one, for what follows."""
        raise NotImplementedError("must be implemented in subclass")

    def _collect_incoming_data(self, data: Any) -> None:
        # To be called by a `collect_incoming_data` that just collects it.
        self.incoming.append(data)

    def _get_data(self) -> bytes:
        # What has been collected so, from then on begun anew.
        data = b"".join(self.incoming)
        self.incoming.clear()
        return data

    def set_terminator(self, term: Any) -> None:
        """Cut what comes at these bytes; or after that many bytes; or with None or nothing, never.

        Raises:
            ValueError: it is a negative number.
        """
        if isinstance(term, str) and self.use_encoding:
            term = term.encode(self.encoding)
        elif isinstance(term, int) and term < 0:
            raise ValueError("the number of received bytes must be positive")
        self.terminator = term

    def get_terminator(self) -> Any:
        """What is cut at."""
        return self.terminator

    def handle_read(self) -> None:
        try:
            data: Any = self.recv(self.ac_in_buffer_size)
        except BlockingIOError:
            return
        except OSError:
            self.handle_error()
            return
        if isinstance(data, str) and self.use_encoding:
            data = data.encode(self.encoding)
        self.ac_in_buffer = self.ac_in_buffer + data
        while self.ac_in_buffer and self._handle_piece(self.ac_in_buffer, self.get_terminator()):
            pass

    def _handle_piece(self, buffer: Any, terminator: Any) -> bool:
        # Hands over what stands before the next terminator, and tells of that; without one, what can't be part of one.
        found = False
        if not terminator:
            size = end = len(buffer)
        elif isinstance(terminator, int):
            size = end = min(terminator, len(buffer))
            found = size == terminator
            self.terminator = terminator - size
        elif (size := buffer.find(terminator)) >= 0:
            end = size + len(terminator)
            found = True
        else:
            size = end = len(buffer) - find_prefix_at_end(buffer, terminator)
        self.ac_in_buffer = buffer[end:]
        if size:
            self.collect_incoming_data(buffer[:size])
        if found:
            self.found_terminator()
        return found

    # ------------------------------------------------------------------ what goes

    def handle_write(self) -> None:
        self.initiate_send()

    def handle_close(self) -> None:
        self.close()

    def push(self, data: Any) -> None:
        """Send bytes, sooner or later.

        Raises:
            TypeError: they are none.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError("data argument must be byte-ish (%r)", type(data))
        size = self.ac_out_buffer_size
        if len(data) <= size:
            self.producer_fifo.append(data)
        else:
            self.producer_fifo.extend(data[start : start + size] for start in range(0, len(data), size))
        self.initiate_send()

    def push_with_producer(self, producer: Any) -> None:
        """Send what a producer's ``more()`` returns, again and again until that is nothing."""
        self.producer_fifo.append(producer)
        self.initiate_send()

    def close_when_done(self) -> None:
        """Close it when all that was pushed before is sent."""
        self.producer_fifo.append(None)

    @foreseen
    def readable(self) -> object:
        return True

    @foreseen
    def writable(self) -> object:
        return bool(vars(self)["producer_fifo"]) or not self.connected

    def initiate_send(self) -> None:
        """Send some of what is to be sent: one piece."""
        fifo = self.producer_fifo
        while fifo and self.connected:
            first = fifo[0]
            if not first:
                del fifo[0]
                if first is None:
                    self.handle_close()
                    return
                continue
            size = self.ac_out_buffer_size
            try:
                data = first[:size]
            except TypeError:  # a producer
                data = first.more()
                if data:
                    fifo.appendleft(data)
                else:
                    del fifo[0]
                continue
            if isinstance(data, str) and self.use_encoding:
                data = data.encode(self.encoding)
            try:
                sent = self.send(data)
            except OSError:
                self.handle_error()
                return
            if sent:
                if sent < len(data) or size < len(first):
                    fifo[0] = first[sent:]
                else:
                    del fifo[0]
            return

    def discard_buffers(self) -> None:
        """Forget what has come and was not handled, and what was pushed and is not sent."""
        self.ac_in_buffer = b""
        self.incoming.clear()
        self.producer_fifo.clear()


class simple_producer:
    """Bytes, in pieces of a size."""

    def __init__(self, data: Any, buffer_size: int = 512) -> None:
        self.data = data
        self.buffer_size = buffer_size

    def more(self) -> Any:
        """The next piece; nothing at its end."""
        piece, self.data = self.data[: self.buffer_size], self.data[self.buffer_size :]
        return piece


def find_prefix_at_end(haystack: Any, needle: Any) -> int:
    """How much of the beginning of ``needle`` stands at the end of ``haystack``, in which it is not as a whole."""
    return next((size for size in range(len(needle) - 1, 0, -1) if haystack.endswith(needle[:size])), 0)
