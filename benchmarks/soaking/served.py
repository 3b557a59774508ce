"""Those who come to the server during a soak and behave well: each of their messages must get its right answer."""

from __future__ import annotations

import random
import socket

from benchmarks.soaking.shared import Soak, end, read_all
from benchmarks.soaking.target import MAX_MESSAGE_BYTES

_WORDS = ["a", "naïve", "字", "𝄞", "😀", "žluťoučký", " ", "", "plain text of some length", "\t", "e\u0301"]


def _message(chance: random.Random) -> tuple[bytes, bytes]:
    """A line and the reply it must get."""
    kind = chance.random()
    if kind < 0.04:
        return b"ok \xff no\n", b"ERR invalid-utf8 at byte 3\n"
    if kind < 0.05:
        return b"x" * (MAX_MESSAGE_BYTES + 1) + b"\n", b"ERR too-long limit %d\n" % MAX_MESSAGE_BYTES
    text = "".join(chance.choices(_WORDS, k=chance.randrange(8)))
    end = b"\r\n" if chance.random() < 0.2 else b"\n"
    return text.encode() + end, b"%d\n" % len(text)


class Refused(Exception):
    """The server had no room: that is its right, and said clearly."""


def ask(soak: Soak, sock: socket.socket, chance: random.Random, count: int, *, last: bool) -> None:
    """Ask ``count`` messages in pieces cut anywhere, and check each reply; with ``last`` half-close before reading."""
    messages = [_message(chance) for _ in range(count)]
    request = b"".join(line for line, _ in messages)
    expected = b"".join(reply for _, reply in messages)
    if last:
        request += "žádný konec".encode()
        expected += b"11\n"
    while request:
        cut = chance.choice([1, 10, 1000, len(request)])
        sock.sendall(request[:cut])
        request = request[cut:]
    if last:
        end(sock)
        got = read_all(sock)
    else:
        got = b""
        while len(got) < len(expected) and (part := sock.recv(65536)):
            got += part
    if got.startswith(b"ERR too-many-connections"):
        raise Refused
    if got != expected:
        at = next((i for i, pair in enumerate(zip(got, expected, strict=False)) if pair[0] != pair[1]), len(got))
        near = slice(max(at - 20, 0), at + 20)
        soak.problem(f"wrong reply at byte {at}: {got[near]!r} instead of {expected[near]!r}")
        raise ConnectionAbortedError("what follows would be wrong as well")
    soak.count("right answers", count + last)


def ordinary(soak: Soak, chance: random.Random) -> None:
    """Comes, asks, checks each answer, goes."""
    while not soak.over.is_set():
        served = False
        try:
            with soak.connect() as sock:
                for _ in range(chance.randrange(1, 5)):
                    ask(soak, sock, chance, chance.randrange(1, 30), last=False)
                    served = True
                ask(soak, sock, chance, chance.randrange(5), last=True)
        except Refused:
            soak.count("ordinary clients refused, with a reason")
        except (ConnectionResetError, BrokenPipeError):
            # One who is refused among many, and still sends, may miss the reason. One who has been served may not.
            if served:
                raise
            soak.count("ordinary clients refused in a crowd")
        soak.over.wait(0.01)


def resident(soak: Soak, chance: random.Random) -> None:
    """Stays connected all the time, whatever the others do."""
    with soak.connect() as sock:
        while not soak.over.is_set():
            ask(soak, sock, chance, chance.randrange(1, 20), last=False)
            soak.over.wait(0.02)
        ask(soak, sock, chance, 3, last=True)
