"""Echo: sends back what it gets. The smallest handler there is.

Teaches: a handler and its stream; that `await stream.write` is all that flow control needs. A client that sends and
never reads is not read any more, and costs a bounded amount of memory.

    python examples/echo.py 9000
"""

import sys

from evloop import Stream, serve


async def echo(stream: Stream) -> None:
    while data := await stream.read():
        await stream.write(data)


if __name__ == "__main__":
    serve(echo, port=int(sys.argv[1]) if len(sys.argv) > 1 else 9000)
