"""Tornado's IOStream: what a user of it would write. An unterminated last line is not answered."""

from __future__ import annotations

import asyncio

from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpserver import TCPServer

from benchmarks.peers.common import announce, listening_socket, reply_to


class CountServer(TCPServer):
    async def handle_stream(self, stream: IOStream, address: tuple[str, int]) -> None:
        stream.set_nodelay(True)
        try:
            while True:
                line = await stream.read_until(b"\n")
                await stream.write(reply_to(line))
        except StreamClosedError:
            pass


async def main() -> None:
    sock = listening_socket()
    sock.setblocking(False)
    CountServer().add_socket(sock)
    announce(sock)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
