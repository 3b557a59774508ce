"""curio, line by line: what its documentation teaches."""

from __future__ import annotations

import curio

from benchmarks.peers.common import announce, listening_socket, reply_to


async def serve(client: curio.io.Socket, address: object) -> None:
    stream = client.as_stream()
    try:
        async for line in stream:
            await stream.write(reply_to(line))
    except OSError:
        pass
    finally:
        await stream.close()


async def main() -> None:
    sock = listening_socket()
    listener = curio.io.Socket(sock)
    announce(sock)
    await curio.network.run_server(listener, serve)


if __name__ == "__main__":
    curio.run(main)
