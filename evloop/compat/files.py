"""A descriptor of a pipe, a terminal or a file, with as much of a socket's interface as asyncore needs."""

from __future__ import annotations

import os
import socket
import warnings


class file_wrapper:
    """A duplicate of a descriptor, which it owns. The original stays open.

    Attributes:
        fd: the duplicate; -1 when it is closed.
    """

    def __init__(self, fd: int) -> None:
        self.fd = -1  # for __del__, if dup raises
        self.fd = os.dup(fd)

    def __del__(self) -> None:
        if self.fd >= 0:
            warnings.warn(f"unclosed file {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def recv(self, *args: int) -> bytes:
        """As ``os.read``."""
        return os.read(self.fd, *args)

    def send(self, *args: bytes) -> int:
        """As ``os.write``."""
        return os.write(self.fd, *args)

    read = recv
    write = send

    def getsockopt(self, level: int, optname: int, buflen: int | None = None) -> int:
        """Only whether there is an error: there is none.

        Raises:
            NotImplementedError: another option was asked for.
        """
        if (level, optname) == (socket.SOL_SOCKET, socket.SO_ERROR) and not buflen:
            return 0
        raise NotImplementedError("a file has no options of sockets")

    def close(self) -> None:
        """Close the duplicate. Safe to call twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def fileno(self) -> int:
        """The duplicate."""
        return self.fd
