"""A TCP proxy: what a client sends goes to a server, and the other way.

Teaches: two tasks for one connection; `connect`; flow control both ways, as `await write` of the one side keeps the
other from being read; half-close both ways, so that an answer after the end of the question gets through.

    python examples/proxy.py 9000 example.org:80
    python examples/proxy.py 9000 unix:/run/service.sock
"""

import sys
from functools import partial

from evloop import ConnectError, ConnectionLostError, Stream, TaskGroup, connect, serve


async def copy(source: Stream, target: Stream) -> None:
    """Everything up to the end, and the end."""
    while data := await source.read():
        await target.write(data)
    target.write_eof()


async def proxy(target: str, client: Stream) -> None:
    try:
        server = await connect(target)
    except ConnectError as error:
        print(f"{client.peer}: {error}", file=sys.stderr)
        client.abort()
        return
    try:
        async with server, TaskGroup() as group:
            group.create_task(copy(client, server))
            group.create_task(copy(server, client))
    except* ConnectionLostError:
        client.abort()  # one side broke off: let the other one know that this was not the end


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: proxy.py PORT HOST:PORT")
    serve(partial(proxy, sys.argv[2]), port=int(sys.argv[1]))
