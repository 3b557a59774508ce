"""gevent: a greenlet for each connection, with the project's session."""

from __future__ import annotations

import socket
import sys

from gevent.server import StreamServer

from benchmarks.peers.common import BACKLOG, RECV_BYTES, announce, new_session, prepare


def serve(sock: socket.socket, address: tuple[str, int]) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    session = new_session()
    try:
        while data := sock.recv(RECV_BYTES):
            reply = session.feed(data)
            if reply:
                sock.sendall(reply)
        sock.sendall(session.finish())
    except ConnectionError:
        pass


def main() -> None:
    prepare()
    server = StreamServer(("127.0.0.1", int(sys.argv[1])), serve, backlog=BACKLOG)
    server.start()
    announce(server.socket)
    server.serve_forever()


if __name__ == "__main__":
    main()
