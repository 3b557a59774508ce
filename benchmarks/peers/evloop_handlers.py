"""evloop as a user would write it: a coroutine that reads lines, or batches of them; or the callbacks for the same.

Which of them is the second argument.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.peers.common import announce, listening_socket, reply_to
from evloop import EventLoop, Limits, LineProtocol, Server, Stream


async def lines(stream: Stream) -> None:
    async for line in stream.lines():
        stream.write(reply_to(line))


async def batches(stream: Stream) -> None:
    async for some in stream.batches():
        await stream.write(b"".join([reply_to(line) for line in some]))


class OnLine(LineProtocol):
    def on_line(self, line: bytes) -> bytes:
        return reply_to(line)


class OnLines(LineProtocol):
    def on_lines(self, lines: list[bytes]) -> bytes:
        return b"".join([reply_to(line) for line in lines])


Stream.max_line_bytes = LineProtocol.max_line_bytes = 1024 * 1024

KINDS: dict[str, Any] = {"lines": lines, "batches": batches, "on-line": OnLine, "on-lines": OnLines}


def main() -> None:
    with EventLoop() as loop:
        sock = listening_socket()
        sock.setblocking(False)
        limits = Limits(idle_timeout_s=600, message_timeout_s=60, max_connections=15_000)
        server = Server(loop, KINDS[sys.argv[2]], limits)
        server.add_listener(sock)
        announce(sock)
        loop.run()


if __name__ == "__main__":
    main()
