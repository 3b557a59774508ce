"""A WebSocket server that echoes messages, by wsproto, which knows the protocol and no sockets.

Teaches: a second sans-IO library, whose events are a list; a task beside the reader, that pings a client which is
silent; a limit on what is put together from pieces.

    python examples/websocket.py 8765
    python -m websockets ws://127.0.0.1:8765/
"""

import sys

import wsproto
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import RemoteProtocolError

from evloop import LimitError, Stream, TaskGroup, serve, sleep

PING_EVERY_S = 30
MAX_MESSAGE_BYTES = 1024 * 1024


class Conversation:
    """One client's messages."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.websocket = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        self.pieces: list[str | bytes] = []
        self.size = 0

    async def send(self, event: Event) -> None:
        await self.stream.write(self.websocket.send(event))

    async def take(self, event: Event) -> bool:
        """Deal with what the client said. False if that was the last."""
        if isinstance(event, Request):
            await self.send(AcceptConnection())
        elif isinstance(event, Message):
            await self.take_piece(event)
        elif isinstance(event, Ping):
            await self.send(event.response())
        elif isinstance(event, CloseConnection):
            await self.send(event.response())
            return False
        return True

    async def take_piece(self, event: Message) -> None:
        """Put a message together, and send it back when it is whole."""
        self.pieces.append(event.data if isinstance(event.data, str) else bytes(event.data))
        self.size += len(event.data)
        if self.size > MAX_MESSAGE_BYTES:
            await self.send(CloseConnection(code=1009, reason="too long"))
            raise LimitError("message", f"a message of more than {MAX_MESSAGE_BYTES} bytes")
        if event.message_finished:
            if isinstance(event, TextMessage):
                await self.send(TextMessage(data="".join(self.pieces)))
            else:
                await self.send(BytesMessage(data=b"".join(self.pieces)))
            self.pieces, self.size = [], 0

    async def ping(self) -> None:
        while True:
            await sleep(PING_EVERY_S)
            if self.websocket.state is wsproto.connection.ConnectionState.OPEN:
                await self.send(Ping())

    async def converse(self) -> None:
        while data := await self.stream.read():
            self.websocket.receive_data(data)
            for event in self.websocket.events():
                if not await self.take(event):
                    return


async def websocket(stream: Stream) -> None:
    conversation = Conversation(stream)
    try:
        async with TaskGroup() as group:
            group.create_task(conversation.ping())
            await conversation.converse()
            group.cancel()
    except* RemoteProtocolError as errors:
        await refuse(stream, conversation, errors.exceptions[0])


async def refuse(stream: Stream, conversation: Conversation, error: BaseException) -> None:
    """Say what was wrong, in the way that is right for where it was."""
    answer = error.event_hint if isinstance(error, RemoteProtocolError) else None
    if isinstance(answer, RejectConnection):
        await stream.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    elif isinstance(answer, CloseConnection):
        await conversation.send(answer)


if __name__ == "__main__":
    serve(websocket, port=int(sys.argv[1]) if len(sys.argv) > 1 else 8765)
