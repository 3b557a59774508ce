"""A service manager that hears what it is told, as systemd does."""

from __future__ import annotations

import socket

from waiting import DEADLINE_S, wait_until


class Manager:
    """Hears what it is told at an address.

    Args:
        address: a path, or ``@`` and a name in the abstract namespace.

    Attributes:
        text: the address, as ``NOTIFY_SOCKET`` has it.
        heard: all that it was told and that somebody has asked for.
    """

    def __init__(self, address: str) -> None:
        self.text = address
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def told(self) -> list[str]:
        """What it was told since the last time."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                self.heard += found
                return found

    def wait_for(self, text: str, timeout_s: float = DEADLINE_S) -> list[str]:
        """Wait until something that begins so has come; all that came until then."""
        found: list[str] = []

        def has_come() -> bool:
            found.extend(self.told())
            return any(one.startswith(text) for one in found)

        wait_until(has_come, f"{text!r}, told to the manager", timeout_s)
        return found

    def close(self) -> None:
        """It hears no more."""
        self._socket.close()
