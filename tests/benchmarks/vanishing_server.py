"""A server that answers a few connections, vanishes, and leaves to clients no port but its own: ``... PORT COUNT``.

Only in a network namespace of its own, as the range of local ports is the machine's. From then on every connect to its
port comes from its port: the kernel connects the socket to itself.
"""

from __future__ import annotations

import socket
import struct
import sys
from pathlib import Path

port, count = map(int, sys.argv[1:])
listener = socket.create_server(("127.0.0.1", port))
for _ in range(count):
    connection, _ = listener.accept()
    # No TIME_WAIT here: it would keep the port from being chosen.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    while data := connection.recv(65536):
        connection.sendall(b"%d\n" % (len(data) - 1))
    connection.close()
Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(f"{port} {port}")
