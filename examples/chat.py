"""Chat: rooms and names, in lines. `/join ROOM`, `/who`, `/quit`; anything else is said to the room.

Teaches: writing to the streams of others, without waiting for any of them. Who does not read misses lines and is told
how many, instead of making the server remember them. `finally` is where one leaves, however it ends.

    python examples/chat.py 9000
    nc 127.0.0.1 9000
"""

import sys

from evloop import ConnectionLostError, Limits, Stream, serve, timeout

# What may wait for one member. Above it lines are dropped for that member.
BACKLOG_BYTES = 32 * 1024
NAME_TIMEOUT_S = 60


class Member:
    """Somebody who has said their name."""

    def __init__(self, name: str, stream: Stream) -> None:
        self.name = name
        self.room = ""
        self.missed = 0
        self._stream = stream

    def tell(self, text: str) -> None:
        """Send a line, unless too many wait already. Never waits."""
        if self._stream.connection.unsent_bytes > BACKLOG_BYTES:
            self.missed += 1
            return
        if self.missed:
            text = f"* you have missed {self.missed} lines\n{text}"
            self.missed = 0
        try:
            self._stream.write(text.encode() + b"\n")
        except ConnectionLostError:
            pass  # its own handler is about to notice


class Chat:
    """All members, by name."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}

    def say(self, room: str, text: str) -> None:
        for member in self.members.values():
            if member.room == room:
                member.tell(text)

    def enter(self, member: Member, room: str) -> None:
        before, member.room = member.room, room
        if before:
            self.say(before, f"* {member.name} leaves")
        if room:
            self.say(room, f"* {member.name} joins {room}")

    async def handler(self, stream: Stream) -> None:
        member = await self.welcome(stream)
        if member is None:
            return
        self.members[member.name] = member
        try:
            self.enter(member, "lobby")
            async for line in stream.lines():
                text = line.decode(errors="replace").strip()
                command, _, argument = text.partition(" ")
                if command == "/quit":
                    break
                if command == "/join" and argument:
                    self.enter(member, argument)
                elif command == "/who":
                    names = sorted(other.name for other in self.members.values() if other.room == member.room)
                    member.tell("* " + ", ".join(names))
                elif command.startswith("/"):
                    member.tell("* commands: /join ROOM, /who, /quit")
                elif text:
                    self.say(member.room, f"{member.name}: {text}")
        finally:
            del self.members[member.name]
            self.enter(member, "")

    async def welcome(self, stream: Stream) -> Member | None:
        """Ask for a name until it is one that nobody has. None if they left, or took too long."""
        lines = stream.lines()
        stream.write(b"* your name?\n")
        try:
            async with timeout(NAME_TIMEOUT_S):
                async for line in lines:
                    name = line.decode(errors="replace").strip()
                    if name.isalnum() and len(name) <= 20 and name not in self.members:
                        return Member(name, stream)
                    stream.write(b"* letters and digits, at most 20, that nobody has yet\n")
        except TimeoutError:
            stream.write(b"* too late\n")
        return None


if __name__ == "__main__":
    serve(Chat().handler, port=int(sys.argv[1]) if len(sys.argv) > 1 else 9000, limits=Limits(message_timeout_s=60))
