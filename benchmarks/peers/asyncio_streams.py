"""asyncio, streams: what its documentation teaches."""

from __future__ import annotations

import asyncio

from benchmarks.peers.common import BACKLOG, announce, listening_socket, reply_to

_LINE_LIMIT_BYTES = 1024 * 1024


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while line := await reader.readline():
            writer.write(reply_to(line))
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def main() -> None:
    sock = listening_socket()
    server = await asyncio.start_server(serve, sock=sock, backlog=BACKLOG, limit=_LINE_LIMIT_BYTES)
    announce(sock)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
