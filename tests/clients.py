"""Clients that are blocking sockets, on which every call has a deadline."""

from __future__ import annotations

import socket
import struct

from waiting import DEADLINE_S


class Client:
    """A blocking client socket on which every call has a deadline.

    Args:
        address: host and port.
        receive_buffer: SO_RCVBUF in bytes, for a reader that is soon full.
        source: the local address to bind to.
    """

    def __init__(
        self, address: tuple[str, int], *, receive_buffer: int | None = None, source: tuple[str, int] | None = None
    ) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            if receive_buffer is not None:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.settimeout(DEADLINE_S)
            if source is not None:
                self.socket.bind(source)
            self.socket.connect(address)
        except BaseException:
            self.socket.close()
            raise

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.socket.sendall(data)

    def send_until_full(self, piece: bytes = bytes(65536)) -> int:
        """Send again and again until the kernels hold all they can: the peer has stopped reading. Returns how much."""
        sent = 0
        self.socket.settimeout(0.05)
        try:
            while sent < 1 << 30:
                sent += self.socket.send(piece)
        except TimeoutError:
            return sent
        finally:
            self.socket.settimeout(DEADLINE_S)
        raise AssertionError("the peer never stopped reading")

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        self.socket.shutdown(socket.SHUT_WR)

    def receive_exactly(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        parts: list[bytes] = []
        left = size
        while left:
            part = self.socket.recv(min(left, 1 << 20))
            assert part, f"end of stream after {size - left} of {size} bytes: {b''.join(parts)[-80:]!r}"
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def receive_line(self) -> bytes:
        """The next line, with its LF. Reads byte by byte, so that nothing after it is lost."""
        line = b""
        while not line.endswith(b"\n"):
            byte = self.socket.recv(1)
            assert byte, f"end of stream after {line!r}"
            line += byte
        return line

    def receive_rest(self) -> bytes:
        """All bytes up to the end of the stream."""
        parts: list[bytes] = []
        while part := self.socket.recv(1 << 20):
            parts.append(part)
        return b"".join(parts)

    def ask(self, data: bytes, reply_size: int) -> bytes:
        """Send and take a reply of a known size."""
        self.send(data)
        return self.receive_exactly(reply_size)

    def receives_nothing(self, for_s: float = 0.05) -> bool:
        """True if neither a byte nor an end arrives within a time. Only for what can never arrive by mistake later."""
        self.socket.settimeout(for_s)
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(DEADLINE_S)
        return False

    def was_reset(self) -> bool:
        """Read to the end of the stream; True if that is a reset, False if it is in order."""
        try:
            self.receive_rest()
        except ConnectionError:
            return True
        return False

    def reset(self) -> None:
        """Close so that the peer sees a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        """Close the socket. Safe to call twice."""
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
