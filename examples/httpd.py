"""A web server: HTTP/1.1 by h11, which knows the protocol and no sockets.

Teaches: how a sans-IO library is married to a stream: `next_event` until it needs more, then `read`, `receive_data`.
Keep-alive, pipelining, chunked bodies and `Expect: 100-continue` come with it. A head that does not come is waited for
only so long.

    python examples/httpd.py 8080
    curl http://127.0.0.1:8080/
    curl --data-binary @file http://127.0.0.1:8080/length
"""

import sys
from collections.abc import AsyncIterator

import h11

from evloop import Stream, serve, timeout

HEAD_TIMEOUT_S = 60
MAX_BODY_BYTES = 100 * 1024 * 1024


class Exchange:
    """A connection's requests, one after another."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.http = h11.Connection(h11.SERVER)
        self.method = b""

    async def event(self) -> h11.Event | type[h11.PAUSED]:
        """What the client says next."""
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self.http.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            self.http.receive_data(await self.stream.read())

    async def send(self, event: h11.Event) -> None:
        data = self.http.send(event)
        if data:
            await self.stream.write(data)

    async def body(self) -> AsyncIterator[bytes]:
        """The body of the request, as it comes."""
        while isinstance(event := await self.event(), h11.Data):
            yield bytes(event.data)

    async def respond(self, status: int, body: bytes) -> None:
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        await self.send(h11.Response(status_code=status, headers=headers))
        if self.method != b"HEAD":
            await self.send(h11.Data(data=body))
        await self.send(h11.EndOfMessage())


async def page(exchange: Exchange, request: h11.Request) -> None:
    """What this server has to offer."""
    size = 0
    async for piece in exchange.body():
        size += len(piece)
        if size > MAX_BODY_BYTES:
            await exchange.respond(413, b"too long\n")
            return
    if request.target == b"/":
        await exchange.respond(200, b"hello\n")
    elif request.target == b"/length":
        await exchange.respond(200, b"%d\n" % size)
    else:
        await exchange.respond(404, b"there is no such page\n")


async def http(stream: Stream) -> None:
    exchange = Exchange(stream)
    try:
        while True:
            async with timeout(HEAD_TIMEOUT_S):
                request = await exchange.event()
            if not isinstance(request, h11.Request):
                return  # the client has left
            exchange.method = request.method
            await page(exchange, request)
            if exchange.http.our_state is not h11.DONE or exchange.http.their_state is not h11.DONE:
                return  # one of the two wants to end it
            exchange.http.start_next_cycle()
    except TimeoutError:
        return
    except h11.RemoteProtocolError as error:
        if exchange.http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await exchange.respond(error.error_status_hint, f"{error}\n".encode())


if __name__ == "__main__":
    serve(http, port=int(sys.argv[1]) if len(sys.argv) > 1 else 8080)
