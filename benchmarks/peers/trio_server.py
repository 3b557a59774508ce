"""trio: a task for each connection, with the project's session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from benchmarks.peers.common import RECV_BYTES, announce, listening_socket, new_session


async def serve(stream: trio.SocketStream) -> None:
    session = new_session()
    try:
        while data := await stream.receive_some(RECV_BYTES):
            reply = session.feed(data)
            if reply:
                await stream.send_all(reply)
        await stream.send_all(session.finish())
    except trio.BrokenResourceError:
        pass


async def serve_with(serve: Callable[[trio.SocketStream], Awaitable[object]]) -> None:
    """Serve that on a new listening socket."""
    sock = listening_socket()
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    announce(sock)
    await trio.serve_listeners(serve, [listener])


if __name__ == "__main__":
    trio.run(serve_with, serve)
