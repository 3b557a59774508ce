"""Who comes to the server during a soak: ordinary clients (see `served`), and those here, who behave badly.

Each role is a function that runs in a thread until it is told that it is over.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable

from benchmarks.soaking.overtls import (
    changes_keys,
    cuts_handshakes,
    ordinary_by_tls,
    proxy_says_nothing,
    resident_by_tls,
    speaks_no_tls,
)
from benchmarks.soaking.served import ordinary, resident
from benchmarks.soaking.shared import TIMEOUT_S, Soak, end, read_all, reset
from benchmarks.soaking.target import LIMITS, MAX_CONNECTIONS, MAX_CONNECTIONS_PER_ADDRESS


def churn(soak: Soak, chance: random.Random) -> None:
    """Connects and closes, with and without a byte."""
    while not soak.over.is_set():
        with soak.connect() as sock:
            if chance.random() < 0.5:
                sock.send(b"abc\n")
        soak.count("connected and closed")


def resets(soak: Soak, chance: random.Random) -> None:
    """Resets at once, in mid-message, and with replies unread."""
    while not soak.over.is_set():
        sock = soak.connect()
        with contextlib.suppress(OSError):
            sock.send(chance.choice([b"", b"half a mess", b"abc\n" * chance.randrange(2000)]) or b"\n")
        reset(sock)
        soak.count("resets")
        soak.over.wait(0.002)


def flood(soak: Soak, chance: random.Random) -> None:
    """Sends one endless message, or nothing but line ends, as fast as it can."""
    while not soak.over.is_set():
        block = chance.choice([b"x", "字".encode(), b"\xff", b"\n"]) * 20_000
        sock = soak.connect()
        sock.settimeout(0.5)  # a flood of line ends comes to a halt, as nobody reads the answers
        with contextlib.suppress(OSError):
            for _ in range(chance.randrange(50, 400)):
                soak.count("flooded MB", sock.send(block))
        reset(sock) if chance.random() < 0.5 else sock.close()


def flood_and_read(soak: Soak, chance: random.Random) -> None:
    """Sends nothing but tiny messages, as fast as it can, and reads the answers, which are much longer."""
    while not soak.over.is_set():
        message, reply = chance.choice(
            [
                (b"\xff\n", b"ERR invalid-utf8 at byte 0\n"),
                (b"a\xff\r\n", b"ERR invalid-utf8 at byte 1\n"),
                (b"\n", b"0\n"),
            ]
        )
        count = chance.randrange(10_000, 60_000)
        _pipeline(soak, message, reply, count, "tiny messages answered")


def never_reads(soak: Soak, chance: random.Random) -> None:
    """Pipelines for ever and does not read, until the server gives it up."""
    while not soak.over.is_set():
        with soak.connect(receive_buffer=4096) as sock:
            sock.settimeout(5)
            try:
                while not soak.over.is_set():
                    sock.send(b"\n" * 65536)
            except TimeoutError:
                soak.problem("a client that never reads was not given up in 5 s")
            except ConnectionError:
                soak.count("given up: never read")


def reads_slowly(soak: Soak, chance: random.Random) -> None:
    """Pipelines a lot and reads slowly, but reads: it must get everything."""
    while not soak.over.is_set():
        count = chance.randrange(20_000, 60_000)
        _pipeline(soak, b"ab\n", b"2\n", count, "messages of slow readers answered", slowly=True)


def _pipeline(soak: Soak, message: bytes, reply: bytes, count: int, what: str, *, slowly: bool = False) -> None:
    """Send so many messages at once, and check every reply; who is refused goes without."""
    size, at = count * len(reply), 0
    with soak.connect(receive_buffer=8192 if slowly else None) as sock:
        sender = threading.Thread(target=_send_quietly, args=(sock, message * count))
        sender.start()
        refused = False
        while at < size:
            try:
                part = sock.recv(4096 if slowly else 65536)
            except ConnectionError:
                part = b""
            refused = refused or (at == 0 and part.startswith(b"ERR too-many"))
            if not part or refused:
                break
            shift = at % len(reply)
            if part != (reply * (len(part) // len(reply) + 2))[shift : shift + len(part)]:
                soak.problem(f"wrong reply to {message!r} among {part[:100]!r}")
            at += len(part)
            if slowly:
                soak.over.wait(0.002)
        if refused or not at:  # one who is refused and sends on may miss the reason
            soak.count("pipelines refused")
        elif at < size:
            soak.problem(f"one who sent {message!r} {count} times and read lacks {size - at} of {size} bytes")
        else:
            soak.count(what, count)
    sender.join(TIMEOUT_S)


def _send_quietly(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)


def dribbles(soak: Soak, chance: random.Random) -> None:
    """Sends a message byte by byte and never ends it, until the server gives it up."""
    while not soak.over.is_set():
        with soak.connect() as sock:
            sent = 0
            try:
                while sent < 500 and not soak.over.is_set():
                    sent += sock.send(b"x")
                    soak.over.wait(0.01)
            except ConnectionError:
                soak.count("given up: dribbled")
        if sent >= 500:
            soak.problem("a client that dribbles was not given up in 5 s")


def half_closes(soak: Soak, chance: random.Random) -> None:
    """Ends its side at once or after an unfinished message, and then reads, or goes without."""
    while not soak.over.is_set():
        with soak.connect() as sock, contextlib.suppress(ConnectionError):
            text = chance.choice([b"", b"abc", b"abc\ndefg"])
            sock.sendall(text)
            end(sock)
            if chance.random() < 0.8:
                got = read_all(sock)
                wanted = {b"": b"", b"abc": b"3\n", b"abc\ndefg": b"3\n4\n"}[text]
                if got != wanted and not got.startswith(b"ERR too-many"):
                    soak.problem(f"half-close: {got!r} instead of {wanted!r}")
            soak.count("half-closes")


def bad_bytes(soak: Soak, chance: random.Random) -> None:
    """Sends rubbish; each line of it must get exactly one line."""
    while not soak.over.is_set():
        rubbish = chance.randbytes(chance.randrange(20_000))
        with soak.connect() as sock, contextlib.suppress(ConnectionError):
            sock.sendall(rubbish + b"\n")
            end(sock)
            got = read_all(sock)
            lines, replies = rubbish.count(b"\n") + 1, got.count(b"\n")
            if not got.startswith(b"ERR too-many") and replies != lines:
                soak.problem(f"{replies} replies to {lines} lines of rubbish")
            soak.count("loads of rubbish")
        soak.over.wait(0.005)


def silent(soak: Soak, chance: random.Random) -> None:
    """Asks once, or never, and says nothing more until the server gives it up."""
    while not soak.over.is_set():
        with soak.connect() as sock:
            sock.settimeout(0.1)
            sock.sendall(chance.choice([b"", b"abc\n"]))
            began, got = time.monotonic(), b""
            while not soak.over.is_set():
                with contextlib.suppress(TimeoutError):
                    part = sock.recv(100)
                    got += part
                    if not part:
                        soak.count("refused: silent" if got.startswith(b"ERR") else "given up: silent")
                        break
                if time.monotonic() - began > 2 * (LIMITS.idle_timeout_s or 0) + 5:
                    soak.problem("a silent client was not given up")
                    return


def amplifies(soak: Soak, chance: random.Random) -> None:
    """Earns full receives by a big message; then they are full of tiny ones, whose answers it does not read."""
    while not soak.over.wait(0.2):
        with soak.connect(receive_buffer=4096) as sock:
            sock.sendall(b"x" * 400_000 + b"\n")
            if sock.recv(12, socket.MSG_WAITALL) != b"ERR too-long":
                continue  # refused
            try:
                while not soak.over.is_set():
                    sock.sendall(b"\xff\n" * 32_768)
            except ConnectionError:
                soak.count("given up: amplified")


def crowd(soak: Soak, chance: random.Random) -> None:
    """Comes in a crowd that is more than the server takes, stays for a while, goes at once."""
    together = True  # from one address, and the next time from so many that only their sum is too much
    while not soak.over.wait(chance.uniform(0.5, 2.0)):
        sources = ["127.0.0.2"] if together else [f"127.0.0.{number}" for number in range(2, 8)]
        size = (MAX_CONNECTIONS_PER_ADDRESS if together else MAX_CONNECTIONS) + 50
        socks = []
        with contextlib.suppress(OSError):
            for number in range(size):
                socks.append(soak.connect(source=sources[number % len(sources)]))
        for sock in socks[-50:]:  # who are being refused, most of them; one sends on for as long as it can
            sock.settimeout(0.05)
            with contextlib.suppress(OSError):
                sock.sendall(bytes(2 * LIMITS.linger_bytes))
                break
        soak.over.wait(chance.uniform(1.2, 2) * LIMITS.linger_timeout_s)
        for sock in socks:
            reset(sock) if chance.random() < 0.3 else sock.close()
        soak.count("crowds")
        together = not together


def squeezes(soak: Soak, chance: random.Random) -> None:
    """Not a client: takes the server its descriptors for a moment. Who comes then has to wait, and is served."""
    while not soak.over.wait(chance.uniform(1.0, 3.0)):
        with soak.few_descriptors():
            soak.over.wait(0.3)
        soak.count("times out of descriptors")


Role = Callable[[Soak, random.Random], None]

# How many of each there are at the same time.
ROLES: dict[Role, int] = {
    ordinary: 6,
    resident: 4,
    churn: 2,
    resets: 1,
    flood: 2,
    flood_and_read: 2,
    never_reads: 1,
    amplifies: 1,
    reads_slowly: 2,
    dribbles: 4,
    silent: 2,
    half_closes: 1,
    bad_bytes: 1,
    crowd: 1,
    squeezes: 1,
    ordinary_by_tls: 3,
    resident_by_tls: 2,
    cuts_handshakes: 2,
    speaks_no_tls: 1,
    changes_keys: 1,
    proxy_says_nothing: 1,
}
