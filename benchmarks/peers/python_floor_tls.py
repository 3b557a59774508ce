"""The floor with TLS: the least loop over epoll and `ssl.SSLObject` that CPython can run, with the project's session.

It is no server, for all the reasons in `benchmarks.peers.python_floor`; and a handshake blocks everybody else. It shows
what OpenSSL and Python's way to it cost. The second argument is a certificate with its key.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from ssl import MemoryBIO, SSLContext, SSLWantReadError

from benchmarks.peers.common import announce, listening_socket, new_session, tls_context

# A record with all that it can have around it: fits the batches of all scenarios.
_RECV_BYTES = 16645


def accept(listener: socket.socket, context: SSLContext) -> tuple[socket.socket, Callable[[], bool]]:
    """Take a connection through its handshake.

    Returns:
        its socket, and what answers what has come: False at the end.
    """
    sock, _ = listener.accept()
    incoming, outgoing = MemoryBIO(), MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)
    # As locals of the function below: nothing is looked up for a message.
    recv, send, put, take, read, write = sock.recv, sock.send, incoming.write, outgoing.read, tls.read, tls.write
    feed = new_session().feed
    while True:
        put(recv(_RECV_BYTES))
        try:
            tls.do_handshake()
            break
        except SSLWantReadError:
            send(take())
    while left := incoming.pending:  # the first messages came together with the end of the handshake
        write(feed(read(left)))
    send(take())  # and the tickets

    def answer() -> bool:
        sealed = recv(_RECV_BYTES)
        size = len(sealed)
        put(sealed)
        try:
            data = read(size)
            while left := incoming.pending:
                data += read(left)
        except SSLWantReadError:
            return bool(sealed)
        reply = feed(data)
        if reply:
            write(reply)
            send(take())
        return data != b""

    return sock, answer


def serve(listener: socket.socket, context: SSLContext) -> None:
    """Serve until killed."""
    sockets: dict[int, socket.socket] = {}
    answers: dict[int, Callable[[], bool]] = {}
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    while True:
        for fd, _ in epoll.poll():
            try:
                answer = answers[fd]
            except KeyError:  # the listener
                try:
                    sock, answer = accept(listener, context)
                except OSError:
                    continue  # gone in its handshake
                sockets[sock.fileno()] = sock
                answers[sock.fileno()] = answer
                epoll.register(sock.fileno(), select.EPOLLIN)
                continue
            try:
                goes_on = answer()
            except OSError:  # an SSLError is one
                goes_on = False
            if not goes_on:
                del answers[fd]
                sockets.pop(fd).close()


def main() -> None:
    context = tls_context()
    if context is None:
        raise SystemExit("give a port and a certificate")
    listener = listening_socket()
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted connections have it, too
    announce(listener)
    serve(listener, context)


if __name__ == "__main__":
    main()
