"""The client of the lab exercise: one send without a line end, one recv. Usage: blocking_client.py [PORT]."""

import socket
import sys

port = int(sys.argv[1]) if len(sys.argv) > 1 else 12345
with socket.create_connection(("127.0.0.1", port)) as connection:
    text = input()
    connection.send(text.encode())
    print(connection.recv(1024).decode())
