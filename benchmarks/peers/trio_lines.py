"""trio, line by line: what its tutorial teaches, with a buffer for lines. One send for each line, or for each chunk.

Which of the two is the second argument, ``line`` or ``chunk``.
"""

from __future__ import annotations

import sys

import trio

from benchmarks.peers.common import reply_to
from benchmarks.peers.trio_server import serve_with


async def serve(stream: trio.SocketStream) -> None:
    send_each = sys.argv[2] == "line"
    rest = bytearray()
    try:
        async for data in stream:
            rest += data
            *lines, tail = bytes(rest).split(b"\n")
            rest[:] = tail
            if send_each:
                for line in lines:
                    await stream.send_all(reply_to(line + b"\n"))
            elif lines:
                await stream.send_all(b"".join([reply_to(line + b"\n") for line in lines]))
        if rest:
            await stream.send_all(reply_to(bytes(rest)))
    except trio.BrokenResourceError:
        pass


if __name__ == "__main__":
    trio.run(serve_with, serve)
