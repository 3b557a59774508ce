"""The server of the lab exercise: one client at a time, and what a recv returns is taken for a message.

Its faults are kept on purpose: docs/analysis.md shows them. Usage: blocking_server.py [PORT], default 12345.
"""

import socket
import sys

port = int(sys.argv[1]) if len(sys.argv) > 1 else 12345
with socket.create_server(("127.0.0.1", port)) as listener:
    print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    while True:
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(1024):
                connection.send(f"Jumlah karakter: {len(data.decode())}".encode())
