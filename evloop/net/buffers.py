"""What is still to be sent on one connection.

Theory of operation
-------------------
A socket takes as much as it likes of what it is offered, so a sender keeps a queue of chunks and the offset of the
first unsent byte in the first of them. Three traps are avoided:

* Dropping sent bytes by slicing them off the front (``data = data[sent:]``) copies the whole rest for each little
  piece that leaves: quadratic with a slow reader. Here a sent byte moves an integer, and a chunk is dropped when
  the offset reaches its end.
* A system call for each of a thousand three-byte replies. Small pieces are collected in a tail that becomes one chunk.
* A thousand three-byte objects. Each costs ten times what it carries, so a limit in bytes would not bound the memory.
  The tail is a bytearray; the memory of a queue is its bytes plus a constant.

A byte is copied at most twice (into the tail, and out of it), whatever the sizes of the sends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from evloop.errors import CallbackResultError

# How much one send is offered; a socket rarely takes more at once while its reader is slow. A piece of at least this
# size is queued as it is, without a copy.
BLOCK_BYTES = 65536

# How often `SendQueue.send_to` sends at most.
_SENDS = 4


class SendQueue:
    """A first-in first-out queue of bytes. Each operation costs O(1), not counting the copies named above.

    ``len(queue)`` is the number of unsent bytes.
    """

    __slots__ = ("_bytes", "_chunks", "_offset", "_tail")

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._tail = bytearray()  # comes after all chunks
        self._offset = 0  # of the first unsent byte in the first chunk
        self._bytes = 0  # unsent, in all of it

    def __len__(self) -> int:
        return self._bytes

    def append(self, data: bytes) -> None:
        """Add bytes at the end. A large one is kept by reference, so ``data`` must be immutable."""
        self._bytes += len(data)
        if len(data) < BLOCK_BYTES:
            self._tail += data
            if len(self._tail) >= BLOCK_BYTES:
                self._seal_tail()
        else:
            if self._tail:
                self._seal_tail()
            self._chunks.append(data)

    def peek(self) -> memoryview:
        """The next bytes to send: at least one unless the queue is empty. They stay queued until `advance`."""
        if not self._chunks and self._tail:
            self._seal_tail()
        if not self._chunks:
            return memoryview(b"")
        return memoryview(self._chunks[0])[self._offset : self._offset + BLOCK_BYTES]

    def advance(self, sent: int) -> None:
        """Drop the first ``sent`` bytes.

        Raises:
            ValueError: ``sent`` is negative or more than the last `peek` offered.
        """
        offered = min(len(self._chunks[0]) - self._offset, BLOCK_BYTES) if self._chunks else 0
        if not 0 <= sent <= offered:
            raise ValueError(f"cannot drop {sent} of {offered} offered bytes")
        self._bytes -= sent
        self._offset += sent
        if self._chunks and self._offset == len(self._chunks[0]):
            self._chunks.popleft()
            self._offset = 0

    def send_to(self, send: Callable[[memoryview], int]) -> None:
        """Give ``send`` the next bytes and drop what it took, a few times at most, until it takes less than all.

        What ``send`` raises passes; what was taken before is dropped all the same.
        """
        # More than once, for a block is smaller than what a fast reader takes; but bounded, for fairness.
        for _ in range(_SENDS):
            block = self.peek()
            sent = send(block)
            self.advance(sent)
            if not self._bytes or sent < len(block):
                return

    def _seal_tail(self) -> None:
        self._chunks.append(bytes(self._tail))
        self._tail.clear()


class NothingMore(SendQueue):
    """What a closed connection has to send: nothing, but it is true.

    So a reply that comes from a callback which aborted its own connection takes the path of one that has to wait, which
    drops it, and the hot path need not ask for the state.
    """

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


NOTHING_MORE = NothingMore()


def as_bytes(data: object, callback: Callable[..., object] | None = None) -> bytes:
    """Bytes that don't change any more.

    Args:
        callback: what returned them.

    Raises:
        CallbackResultError: ``callback`` returned something else than bytes.
        TypeError: it is something else than bytes, and was not returned by a callback.
    """
    if type(data) is bytes:
        return data
    try:
        return memoryview(data).tobytes()  # type: ignore[arg-type]
    except TypeError:
        if callback is not None:
            raise CallbackResultError(callback, data) from None
        raise TypeError(f"bytes can be written, not {type(data).__name__}: encode text first") from None
