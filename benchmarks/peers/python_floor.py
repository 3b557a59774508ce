"""The floor: the least loop over epoll that CPython can run, with the project's session.

It is no server. It shows what any loop in pure Python can at best reach, so that the distance to it is what a real one
pays for being one. It lacks

- limits, time-outs, counters, logging, an orderly stop;
- states of a connection: it is there, or it isn't;
- a way to write other than to answer, and a queue for what the kernel does not take: descriptors are blocking, so one
  client that does not read stops it all;
- portability: Linux only, and descriptors instead of socket objects, as ``os.read`` and ``os.write`` parse their
  arguments faster than the methods of a socket.

A second argument, ``edge-triggered``, has epoll report only what is new. Then what a read left behind must be asked
for: after one that was filled, and where the end came together with data.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Callable

from benchmarks.peers.common import RECV_BYTES, announce, listening_socket, new_session

# With its header this is the most that CPython's own allocator handles, which is quicker than malloc.
_FIRST_READ_BYTES = 479


def serve(listener: socket.socket, edge_triggered: bool) -> None:
    """Serve until killed."""
    feeds: dict[int, Callable[[bytes], bytes]] = {}
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    data_only = select.EPOLLIN
    wanted = data_only | select.EPOLLRDHUP | select.EPOLLET if edge_triggered else data_only
    # Locals, as looking up a global or an attribute for each message costs more than using it.
    poll, register, modify = epoll.poll, epoll.register, epoll.modify
    read, write, close = os.read, os.write, os.close
    accept = listener._accept  # type: ignore[attr-defined]  # what `accept` wraps: it gives a descriptor, not a socket
    size = _FIRST_READ_BYTES
    while True:
        for fd, events in poll():
            try:
                feed = feeds[fd]
            except KeyError:  # the listener; a try costs nothing where nothing is raised
                fd, _ = accept()
                feeds[fd] = new_session().feed
                register(fd, wanted)
                continue
            try:
                reply = feed(data := read(fd, size))
                if reply:
                    write(fd, reply)
                elif not data:
                    write(fd, feed.__self__.finish())  # type: ignore[attr-defined]
                    del feeds[fd]
                    close(fd)
                    continue
                if len(data) == size or events != data_only:
                    size = RECV_BYTES  # for all from now on: to know it of each connection would cost a look-up
                    modify(fd, wanted)  # have it reported again if there is more
            except OSError:
                del feeds[fd]
                close(fd)


def main() -> None:
    listener = listening_socket()
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted connections have it, too
    announce(listener)
    serve(listener, edge_triggered=sys.argv[2:] == ["edge-triggered"])


if __name__ == "__main__":
    main()
