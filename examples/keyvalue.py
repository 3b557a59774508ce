"""A key-value server that speaks RESP, the protocol of Redis: use it with redis-cli.

Teaches: callbacks, where they are the better way. A request is short, never waits for anything, and many come at once:
so all that are there are answered in one go, and what `on_data` returns leaves in one piece.

    python examples/keyvalue.py 6379
    redis-cli set greeting hello
"""

import sys

from evloop import Protocol, serve

MAX_REQUEST_BYTES = 1024 * 1024
MAX_ARGUMENTS = 1024
MAX_LINE_BYTES = 64 * 1024  # as what has no end yet is looked at again with each piece

store: dict[bytes, bytes] = {}


class RespError(Exception):
    """What came is no RESP. The text is for the client."""


def parse(data: bytes, at: int) -> tuple[list[bytes] | None, int]:
    """The request that begins there, and where it ends. None if more is needed, and how much there must be at least."""
    end = data.find(b"\r\n", at)
    if end < 0:
        if len(data) - at > MAX_LINE_BYTES:
            raise RespError("too long a line")
        return None, len(data) + 1
    if data[at] != ord("*"):  # "inline": a line of words
        return data[at:end].split(), end + 2
    request: list[bytes] = []
    count, at = number(data[at + 1 : end], MAX_ARGUMENTS), end + 2
    for _ in range(count):
        end = data.find(b"\r\n", at)
        if end < 0:
            if len(data) - at > 12:  # no length takes more
                raise RespError("invalid length")
            return None, len(data) + 1
        if data[at] != ord("$"):
            raise RespError(f"expected '$', got '{chr(data[at])}'")
        size, at = number(data[at + 1 : end], MAX_REQUEST_BYTES), end + 2
        if len(data) < at + size + 2:
            return None, at + size + 2
        request.append(data[at : at + size])
        at += size + 2
    return request, at


def number(text: bytes, largest: int) -> int:
    if not text.isdigit() or len(text) > 9 or int(text) > largest:
        raise RespError("invalid length")
    return int(text)


def bulk(value: bytes | None) -> bytes:
    return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


def array(values: list[bytes | None]) -> bytes:
    return b"*%d\r\n" % len(values) + b"".join(map(bulk, values))


def integer(value: int) -> bytes:
    return b":%d\r\n" % value


def set_(key: bytes, value: bytes) -> bytes:
    store[key] = value
    return b"+OK\r\n"


def increase(key: bytes, by: bytes = b"1") -> bytes:
    try:
        value = int(store.get(key, b"0")) + int(by)
    except ValueError:
        return b"-ERR value is not an integer or out of range\r\n"
    store[key] = b"%d" % value
    return integer(value)


def flush() -> bytes:
    store.clear()
    return b"+OK\r\n"


COMMANDS = {
    b"GET": lambda key: bulk(store.get(key)),
    b"SET": set_,
    b"MGET": lambda *keys: array([store.get(key) for key in keys]),
    b"DEL": lambda *keys: integer(sum(store.pop(key, None) is not None for key in keys)),
    b"EXISTS": lambda *keys: integer(sum(key in store for key in keys)),
    b"INCR": lambda key: increase(key),
    b"INCRBY": lambda key, by: increase(key, by),
    b"DBSIZE": lambda: integer(len(store)),
    b"FLUSHALL": flush,
    b"PING": lambda text=b"": bulk(text) if text else b"+PONG\r\n",
    b"ECHO": bulk,
    b"CONFIG": lambda *what: array([]),
    b"COMMAND": lambda *what: array([]),
    b"CLIENT": lambda *what: b"+OK\r\n",
}


def answer(request: list[bytes]) -> bytes:
    command = COMMANDS.get(request[0].upper())
    if command is None:
        return b"-ERR unknown command '%b'\r\n" % request[0][:50].replace(b"\r", b"").replace(b"\n", b"")
    try:
        return command(*request[1:])
    except TypeError:
        return b"-ERR wrong number of arguments for '%b' command\r\n" % request[0].lower()


class KeyValue(Protocol):
    def __init__(self) -> None:
        self.rest = bytearray()  # the beginning of a request
        self.needed = 0  # how long it must be before it is worth looking at

    def on_data(self, data: bytes) -> bytes | None:
        if self.rest:
            self.rest += data
            if len(self.rest) < self.needed:
                return None
            data, self.rest = bytes(self.rest), bytearray()
        replies: list[bytes] = []
        at = 0
        try:
            while at < len(data):
                request, end = parse(data, at)
                if request is None:
                    self.rest += data[at:]
                    self.needed = end - at
                    break
                if request:
                    replies.append(answer(request))
                at = end
            if self.needed > 2 * MAX_REQUEST_BYTES:
                raise RespError("too big a request")
        except RespError as error:
            replies.append(b"-ERR Protocol error: %b\r\n" % str(error).encode())
            self.connection.close()
        return b"".join(replies)


if __name__ == "__main__":
    serve(KeyValue, port=int(sys.argv[1]) if len(sys.argv) > 1 else 6379)
