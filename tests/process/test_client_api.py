"""`CharCountClient` against the server as a process, and against servers that misbehave."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator

import pytest

from evloop import EvloopError
from evloop.charcount.client import (
    CharCountClient,
    ClientTimeoutError,
    ConnectionLostError,
    ReplyError,
    ReplyTooLongError,
)
from evloop.errors import ConnectError
from interpreters import frees_at_once
from processes import listening_socket


@pytest.fixture
def client(service) -> Iterator[CharCountClient]:
    with CharCountClient(*service.address, timeout_s=10) as client:
        yield client


# ---------------------------------------------------------------------- counting


def test_count(client):
    assert [client.count(text) for text in ("", "a", "日本語", "é", "x" * 100_000)] == [0, 1, 3, 1, 100_000]


def test_count_takes_bytes(client):
    assert client.count("é".encode()) == 1
    assert client.count(b"") == 0


def test_count_many_in_order(client):
    assert list(client.count_many("x" * (n % 300) for n in range(20_000))) == [n % 300 for n in range(20_000)]
    assert list(client.count_many([])) == []


def test_count_many_of_large_texts(client):
    sizes = [0, 1_000_000, 1, 3_000_000, 2]
    assert list(client.count_many("x" * size for size in sizes)) == sizes


def test_count_many_is_lazy(client):
    """Of an endless stream it reads a bounded number ahead, and the connection is usable after it was dropped."""
    taken = itertools.count()

    def endless() -> Iterator[str]:
        while True:
            yield "x" * (next(taken) % 10)

    counts = client.count_many(endless())
    assert next(taken) == 0  # nothing before it is asked for
    assert list(itertools.islice(counts, 20_000)) == [n % 10 for n in range(1, 20_001)]
    assert next(taken) - 20_000 < 10_000
    counts.close()
    assert client.count("four") == 4


@frees_at_once
def test_a_dropped_count_many_needs_no_close(client):
    for _ in range(50):
        assert next(client.count_many(itertools.repeat("abc"))) == 3
        assert client.count("ab") == 2


def test_leaving_with_replies_still_due(service):
    """The with block closes the connection first, the generator is dropped afterwards."""
    with CharCountClient(*service.address) as client:
        counts = client.count_many(itertools.repeat("abc"))
        assert next(counts) == 3
    counts.close()


def test_one_count_many_at_a_time(client):
    counts = client.count_many(["a", "bc"])
    assert next(counts) == 1
    with pytest.raises(RuntimeError, match="one count_many at a time"):
        client.count("x")
    assert list(counts) == [2]
    assert client.count("x") == 1


# ---------------------------------------------------------------------- errors of one message


def test_reply_error(client):
    with pytest.raises(ReplyError) as caught:
        client.count(b"ab\xff")
    assert (caught.value.reply, caught.value.index) == ("ERR invalid-utf8 at byte 2", 0)
    assert str(caught.value) == "message 1: the server answered 'ERR invalid-utf8 at byte 2'"
    assert isinstance(caught.value, EvloopError)
    assert client.count("abc") == 3


@pytest.mark.parametrize("index", [0, 1, 5000, 9999])
def test_reply_error_says_which_message(client, index):
    texts: list[str | bytes] = ["abc"] * 10_000
    texts[index] = b"\xff"
    counts = client.count_many(texts)
    assert list(itertools.islice(counts, index)) == [3] * index
    with pytest.raises(ReplyError) as caught:
        next(counts)
    assert caught.value.index == index
    assert client.count("after") == 5


def test_a_reply_that_is_no_number(spawn):
    with (
        CharCountClient(*spawn("--reply", "{count} characters").address) as client,
        pytest.raises(ReplyError) as caught,
    ):
        client.count("abc")
    assert caught.value.reply == "3 characters"


@pytest.mark.parametrize("text", ["two\nlines", "\n", "ends in CR\r", "\ud800"])
def test_what_line_framing_cannot_carry(client, text):
    with pytest.raises(ValueError):
        client.count(text)
    assert client.count("abc") == 3


def test_texts_before_a_bad_one_are_counted(client):
    counts = client.count_many(["a", "bc", "two\nlines", "d"])
    assert [next(counts), next(counts)] == [1, 2]
    with pytest.raises(ValueError, match="line break"):
        next(counts)
    assert client.count("abc") == 3


def test_error_of_the_iterable(client):
    def texts() -> Iterator[str]:
        yield from ["a"] * 10_000
        raise LookupError("no more")

    counts = client.count_many(texts())
    assert list(itertools.islice(counts, 10_000)) == [1] * 10_000
    with pytest.raises(LookupError, match="no more"):
        next(counts)
    assert client.count("abc") == 3


# ---------------------------------------------------------------------- replies that outgrow the messages


def test_no_deadlock_when_replies_are_longer_than_messages(client):
    """9 MB of messages, 5 MB of replies before the first is handed out: no buffer holds either."""
    errors = 0
    for reply in client.replies(b"\xff\n" for _ in range(200_000)):
        assert reply == b"ERR invalid-utf8 at byte 0"
        errors += 1
    assert errors == 200_000
    assert client.count("abc") == 3


def test_no_deadlock_with_a_long_template(spawn):
    with CharCountClient(*spawn("--reply", "{count:>500}").address) as client:
        assert sum(client.count_many(itertools.repeat("a", 100_000))) == 100_000


# ---------------------------------------------------------------------- servers that fail


def test_nobody_listens():
    with listening_socket() as sock:
        address = sock.getsockname()
    with pytest.raises(ConnectError, match="nothing listens there; start charcount-server"):
        CharCountClient(*address)


def test_name_that_does_not_exist():
    with pytest.raises(ConnectError, match=r"cannot resolve 'no-such-host\.invalid'"):
        CharCountClient("no-such-host.invalid", 1)


@pytest.fixture
def scripted() -> Iterator[tuple[tuple[str, int], list[bytes]]]:
    """A server that answers the first bytes of its one client with what the test puts in the list, and hangs up."""
    script: list[bytes] = []
    listener = listening_socket()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            try:
                for answer in script:
                    connection.sendall(answer)
            except ConnectionError:  # the client has enough
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname(), script
    thread.join(10)
    listener.close()


@pytest.mark.parametrize("answer", [b"", b"1", b"1\n2\n3\n4"], ids=["nothing", "half a reply", "some replies"])
def test_server_hangs_up(scripted, answer):
    address, script = scripted
    script.append(answer)
    with CharCountClient(*address) as client:
        counts = client.count_many(["a"] * 10)
        with pytest.raises(ConnectionLostError, match="before it had answered all"):
            list(counts)
        with pytest.raises(ConnectionLostError, match="the connection is closed"):
            client.count("a")


def test_server_killed_under_load(spawn):
    server = spawn()
    with CharCountClient(*server.address) as client:
        counts = client.count_many(itertools.repeat("abc"))
        assert list(itertools.islice(counts, 10_000)) == [3] * 10_000
        server.popen.kill()
        with pytest.raises(ConnectionLostError):
            list(counts)


def test_timeout(spawn):
    server = spawn()
    with CharCountClient(*server.address, timeout_s=0.2) as client:
        assert client.count("abc") == 3
        server.stop()
        with pytest.raises(ClientTimeoutError, match=r"no answer from the server in 0\.2 s") as caught:
            client.count("abc")
        assert isinstance(caught.value, TimeoutError)
        # A reply that came late would be taken for that of the next message.
        server.resume()
        with pytest.raises(ConnectionLostError, match="the connection is closed"):
            client.count("a")


def test_timeout_while_sending(spawn):
    server = spawn()
    server.stop()
    with CharCountClient(*server.address, timeout_s=0.2) as client, pytest.raises(ClientTimeoutError):
        client.count("x" * 100_000_000)  # more than any kernel buffers


@pytest.mark.parametrize("answer", [b"9" * 65_537 + b"\n", b"9" * 1_000_000], ids=["long", "without end"])
def test_a_reply_longer_than_any_is_not_held_in_memory(scripted, answer):
    address, script = scripted
    script.append(b"1\n")
    script.append(answer)
    with CharCountClient(*address) as client:
        counts = client.count_many(["a", "b"])
        assert next(counts) == 1
        with pytest.raises(ReplyTooLongError, match="more than 65536 bytes without a line end"):
            next(counts)
        with pytest.raises(ConnectionLostError, match="the connection is closed"):
            client.count("a")


def test_the_longest_reply(scripted):
    address, script = scripted
    script.extend([b"1\n", b" " * 65_534, b"2", b"3\n4\n"])
    with CharCountClient(*address) as client:
        assert list(client.count_many(["a", "b", "c"])) == [1, 23, 4]


def test_closing_twice(service):
    client = CharCountClient(*service.address)
    client.close()
    client.close()
    with pytest.raises(ConnectionLostError, match="the connection is closed"):
        client.count("a")


def test_sends_without_delay(client):
    sock = client._wire._socket
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
