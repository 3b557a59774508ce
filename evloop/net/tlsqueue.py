"""What is still to be sent on a TLS connection: ciphertext, and plaintext that has yet to be sealed."""

from __future__ import annotations

from collections.abc import Callable

from evloop.net.buffers import SendQueue

# The most plaintext in a record.
RECORD_BYTES = 16384

# Ciphertext that is made ahead of the sends that take it: so much that a send is worth its system call.
_SEALED_BYTES = 3 * RECORD_BYTES


class SealingQueue(SendQueue):
    """Ciphertext that the kernel did not take, and after it plaintext that is sealed when it comes near.

    ``len(queue)`` counts both.

    Args:
        write: what takes plaintext, a record at a time.
        take: what returns the ciphertext that came of it.
    """

    __slots__ = ("_plain", "_take", "_write")

    def __init__(self, write: Callable[[bytes], object], take: Callable[[], bytes]) -> None:
        super().__init__()
        self._plain = bytearray()
        self._write = write
        self._take = take

    def __len__(self) -> int:
        return self._bytes + len(self._plain)

    @property
    def sealed_bytes(self) -> int:
        """How much can be sent as it is."""
        return self._bytes

    def append(self, data: bytes) -> None:
        """Add plaintext at the end."""
        self._plain += data

    def append_sealed(self, data: bytes) -> None:
        """Add ciphertext, which goes before all plaintext."""
        super().append(data)

    def seal(self) -> None:
        """Have ciphertext ready for the next send.

        Raises:
            ssl.SSLError: nothing can be written any more.
        """
        plain = self._plain
        while plain and self._bytes < _SEALED_BYTES:
            self._write(bytes(plain[:RECORD_BYTES]))
            del plain[:RECORD_BYTES]  # moves no byte: a bytearray can begin later than its memory does
            super().append(self._take())

    def send_to(self, send: Callable[[memoryview], int]) -> None:
        if self._bytes:
            super().send_to(send)
