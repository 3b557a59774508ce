"""A character-count server with a fault: ``faulty_server.py PORT FAULT [N]``. With N, every Nth message shows it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import socket
import struct

from evloop import LineProtocol, serve

PORT, FAULT = int(sys.argv[1]), sys.argv[2]
EVERY = int(sys.argv[3]) if len(sys.argv) > 3 else 1
seen = 0


class Faulty(LineProtocol):
    """Counts, but for the message that is due."""

    def on_line(self, line: bytes) -> bytes | None:
        global seen
        seen += 1
        right = b"%d\n" % len(line.decode())
        if seen % EVERY:
            return right
        if FAULT == "miscount":
            return b"%d\n" % (len(line.decode()) + 1)
        if FAULT == "twice":
            return right * 2
        if FAULT == "close":
            self.connection.close()
        if FAULT == "reset":
            self.connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.abort()
        return None  # mute


serve(Faulty, port=PORT)
