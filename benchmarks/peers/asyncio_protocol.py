"""asyncio, callback style, with the project's session. With a certificate as second argument: by TLS."""

from __future__ import annotations

import asyncio

from benchmarks.peers.common import BACKLOG, RECV_BYTES, announce, listening_socket, new_session, tls_context


class CountProtocol(asyncio.Protocol):
    __slots__ = ("_feed", "_finish", "_transport")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        session = new_session()
        self._feed = session.feed
        self._finish = session.finish
        self._transport = transport
        if hasattr(transport, "max_size"):
            # asyncio reads up to 256 KiB at once, and malloc maps and unmaps memory for each buffer of that size:
            # 20 us a message instead of 7. (uvloop has buffers of its own.)
            transport.max_size = RECV_BYTES

    def data_received(self, data: bytes) -> None:
        reply = self._feed(data)
        if reply:
            self._transport.write(reply)

    def eof_received(self) -> None:
        self._transport.write(self._finish())

    # What a client that does not read would otherwise make us hold.

    def pause_writing(self) -> None:
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()


async def main() -> None:
    sock = listening_socket()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(CountProtocol, sock=sock, backlog=BACKLOG, ssl=tls_context())
    announce(sock)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
