"""A server that answers what nobody asked, or never quite answers: noticed at once, in bounded memory."""

from __future__ import annotations

import os
import socket
import threading
import tracemalloc

import pytest

from evloop.charcount.client import (
    CharCountClient,
    ReplyError,
    UnexpectedReplyError,
)
from process.commands import UNASKED, answering, one_line, run_client, serving, until_closed
from waiting import DEADLINE_S, wait_until

# ---------------------------------------------------------------------- more replies than messages


@pytest.mark.parametrize("how", ["pipe", "arguments"])
@pytest.mark.parametrize("replies", [b"1\n2\n3\n4\n", b"1\n2\n3", b"1\n2\n\n"], ids=ascii)
def test_more_replies_than_messages(how, replies):
    with answering(replies) as port:
        done = run_client(
            port, *(("a", "bc") if how == "arguments" else ()), input=b"a\nbc\n" if how == "pipe" else b""
        )
    # None of them is shown: which of them answers which message is unknown.
    assert (done.returncode, done.stdout) == (6, b"")
    assert one_line(done.stderr) == UNASKED + ("'3'" if b"3" in replies else "''")


def test_an_unasked_reply_while_the_pipe_is_silent(start):
    """At once, not when the next line comes."""

    def behave(connection: socket.socket) -> None:
        assert connection.recv(100) == b"abc\n"
        connection.sendall(b"3\n")
        asked.wait(DEADLINE_S)
        connection.sendall(b"7\n")
        until_closed(connection)

    asked = threading.Event()
    with serving(behave) as port:
        client = start(port, bufsize=0)
        client.stdin.write(b"abc\n")
        assert client.stdout.readline() == b"3\n"
        asked.set()
        assert client.wait(DEADLINE_S) == 6
        assert one_line(client.stderr.read()) == UNASKED + "'7'"


def test_a_reply_before_its_message_was_sent_whole(start):
    with serving(
        lambda connection: (connection.recv(100), connection.sendall(b"2\n"), until_closed(connection))
    ) as port:
        client = start(port, bufsize=0)
        client.stdin.write(b"half a line")
        assert client.wait(DEADLINE_S) == 6


@pytest.mark.parametrize("how", ["pipe", "arguments", "classic"])
def test_an_endless_server(how, tmp_path):
    """Neither memory nor the disk fills up."""
    arguments = {"pipe": (), "arguments": ("a",), "classic": ("--classic", "a", "b")}[how]
    path = tmp_path / "replies"
    with answering(b"1\n" * 10_000, forever=True) as port, open(path, "wb") as stdout:
        done = run_client(port, *arguments, input=b"a\n" if how == "pipe" else b"", stdout=stdout)
    # A chunk is one reply in raw framing: no telling that it is more, unless it is there before the next message.
    assert done.returncode in ((6, 0) if how == "classic" else (6,))
    assert path.stat().st_size <= (65_537 if how == "classic" else 0)


def test_an_endless_server_while_a_message_is_sent():
    """It takes nothing, so that all replies come while there is still something to send."""

    def behave(connection: socket.socket) -> None:
        connection.recv(1)
        for _ in range(2_000):
            connection.sendall(b"1\n" * 10_000)

    with serving(behave) as port:
        text = "x" * 50_000_000
        tracemalloc.start()
        try:
            with CharCountClient("127.0.0.1", port) as client, pytest.raises(UnexpectedReplyError):
                client.count(text)
            assert tracemalloc.get_traced_memory()[1] < 2.5 * len(text)  # the message as bytes, and sent as a batch
        finally:
            tracemalloc.stop()


def test_the_api_does_not_take_a_stale_reply_for_the_next_one():
    def behave(connection: socket.socket) -> None:
        assert connection.recv(100) == b"a\n"
        connection.sendall(b"1\n")
        asked.wait(DEADLINE_S)
        connection.sendall(b"7\n")
        until_closed(connection)

    asked = threading.Event()
    with serving(behave) as port, CharCountClient("127.0.0.1", port) as client:
        assert client.count("a") == 1
        asked.set()
        wait_until(lambda: readable(client), "the stray reply is here")
        with pytest.raises(UnexpectedReplyError, match="no message asked for: '7'") as caught:
            client.count("bcd")
        assert caught.value.reply == b"7"
        with pytest.raises(Exception, match="the connection is closed"):
            client.count("a")


def readable(client: CharCountClient) -> bool:
    try:
        return len(client._wire._socket.recv(1, socket.MSG_PEEK)) == 1
    except BlockingIOError:
        return False


def test_a_stray_reply_is_shown_in_one_short_line():
    with answering(b"\x1b[2J" + b"x" * 1000) as port:
        done = run_client(port, input=b"")
    assert done.returncode == 6
    assert one_line(done.stderr) == UNASKED + repr("\x1b[2J" + "x" * 56) + " ..."


def test_a_refusal_is_no_stray_reply(start):
    """What a server says unasked that begins with ERR is its reason."""
    with serving(lambda connection: (connection.sendall(b"ERR too-many\n"), until_closed(connection))) as port:
        client = start(port)
        assert client.wait(DEADLINE_S) == 1
        assert one_line(client.stderr.read()) == UNASKED + "'ERR too-many'"


def test_an_error_is_shown_whatever_stderr_can_encode():
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with answering("ERR trop é\n".encode()) as port:
        done = run_client(port, "a", env={**os.environ, **ascii_only})
    assert done.returncode == 1
    assert one_line(done.stderr) == "charcount-client: message 1: the server answered 'ERR trop \\xe9'"


@pytest.mark.parametrize("last", [False, True], ids=["before another message", "at the end"])
def test_classic_does_not_take_a_stale_reply_for_the_next_one(start, last):
    def behave(connection: socket.socket) -> None:
        assert connection.recv(100) == b"a"
        connection.sendall(b"Jumlah karakter: 1")
        asked.wait(DEADLINE_S)
        connection.sendall(b"Jumlah karakter: 7")
        connection.shutdown(socket.SHUT_WR)
        sent.set()
        until_closed(connection)

    asked, sent = threading.Event(), threading.Event()
    with serving(behave) as port:
        client = start(port, "--classic", bufsize=0)
        client.stdin.write(b"a\n")
        assert client.stdout.readline() == b"Jumlah karakter: 1\n"
        asked.set()
        assert sent.wait(DEADLINE_S)
        if last:
            client.stdin.close()
        else:
            client.stdin.write(b"bcd\n")
        assert client.wait(DEADLINE_S) == 6
        assert one_line(client.stderr.read()) == (
            UNASKED + "'Jumlah karakter: 7'; in raw framing a long message may be answered in pieces"
        )


# ---------------------------------------------------------------------- what is no number


@pytest.mark.parametrize(
    "reply", [b" -1_0 ", b"1_0", b"-1", b"+1", b"", b" ", b"\t1", b"1 2", "١".encode(), b"\xb2", b"1" * 5000], ids=ascii
)
def test_what_is_no_number(reply):
    with (
        answering(reply + b"\n") as port,
        CharCountClient("127.0.0.1", port) as client,
        pytest.raises(ReplyError) as caught,
    ):
        client.count("a")
    assert caught.value.reply == reply.decode("utf-8", "replace")


@pytest.mark.parametrize("reply", [b"10", b"    10", b"10  ", b"00010"], ids=ascii)
def test_what_a_template_may_make_of_a_number(reply):
    with answering(reply + b"\r\n") as port, CharCountClient("127.0.0.1", port) as client:
        assert client.count("a") == 10


def test_half_a_reply_is_not_shown():
    """It may be the beginning of another number."""
    with answering(b"1\n12") as port:
        done = run_client(port, input=b"a\nb\n")
    assert (done.returncode, done.stdout) == (3, b"1\n")
    assert one_line(done.stderr) == (
        "charcount-client: the server closed the connection in the middle of a reply; messages answered: 1"
    )
