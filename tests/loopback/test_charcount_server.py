"""The character-count service over real sockets."""

from __future__ import annotations

import logging
import random
import re
import threading

import pytest

from evloop.charcount.session import CLASSIC_TEMPLATE, TemplateError
from servers import small_limits
from waiting import wait_until


def test_lines(counting):
    client = counting().connect()
    assert client.ask(b"hello\n", 2) == b"5\n"
    assert client.ask(b"hello\r\n", 2) == b"5\n"
    assert client.ask(b"\n", 2) == b"0\n"
    assert client.ask("é€😀\n".encode(), 2) == b"3\n"
    client.send(b"the last one has no end")
    client.half_close()
    assert client.receive_rest() == b"23\n"


def test_errors_leave_the_next_message_in_sync(counting):
    client = counting(max_message_bytes=10).connect()
    client.send(b"abc\xff\nok\n" + b"x" * 11 + b"\nok\n\xff" + b"x" * 10 + b"\nok\n\xc3")
    client.half_close()
    assert client.receive_rest().decode().splitlines() == [
        "ERR invalid-utf8 at byte 3",
        "2",
        "ERR too-long limit 10",
        "2",
        "ERR too-long limit 10",
        "2",
        "ERR invalid-utf8 at byte 0",
    ]


def test_a_message_in_many_segments(counting):
    client = counting().connect()
    message = "a é € 😀 and so on".encode()
    for place in range(len(message)):
        client.send(message[place : place + 1])
    client.send(b"\r")
    client.send(b"\n")
    assert client.receive_line() == b"17\n"


def test_a_long_message_is_counted_and_not_held(counting):
    server = counting()
    client = server.connect()
    piece = "é€😀a".encode() * 10_000
    for _ in range(40):  # 4 MB, of which nothing remains but a count
        client.send(piece)
    client.send(b"\n")
    assert client.receive_line() == b"%d\n" % (40 * 40_000)


def test_pipelined_messages_of_many_clients_against_the_oracle(counting):
    server = counting()
    dice = random.Random(1)
    conversations = []
    for _ in range(10):
        texts = ["".join(dice.choices("aé€😀 \r", k=dice.choice((0, 1, 7, 300)))) + "." for _ in range(400)]
        client = server.connect()
        client.send("".join(text + "\n" for text in texts).encode())
        client.half_close()
        conversations.append((client, texts))
    for client, texts in conversations:
        assert client.receive_rest().split() == [b"%d" % len(text) for text in texts]


def test_raw(counting):
    client = counting(framing="raw").connect()
    assert client.ask(b"hello", 1) == b"5"
    assert client.ask(b"hello\n", 1) == b"6"
    assert client.ask("😀".encode(), 1) == b"1"
    client.send("😀".encode()[:3])
    assert client.receives_nothing()
    assert client.ask("😀".encode()[3:] + b"ab", 1) == b"3"
    assert client.ask(b"\xff", 26) == b"ERR invalid-utf8 at byte 0"
    client.send(b"abc\xf0")
    client.half_close()
    assert client.receive_rest() == b"3ERR invalid-utf8 at byte 0"


def test_raw_with_a_limit(counting):
    client = counting(framing="raw", max_message_bytes=5).connect()
    assert client.ask(b"12345", 1) == b"5"
    assert client.ask(b"123456", 20) == b"ERR too-long limit 5"
    assert client.ask(b"1", 1) == b"1"


def test_classic(counting):
    client = counting(framing="raw", template=CLASSIC_TEMPLATE).connect()
    assert client.ask(b"halo dunia", 19) == b"Jumlah karakter: 10"
    assert client.ask("é\n".encode(), 18) == b"Jumlah karakter: 2"
    client.half_close()
    assert client.receive_rest() == b""


def test_a_template_in_line_framing(counting):
    client = counting(template="{count} characters").connect()
    assert client.ask(b"abc\n", 13) == b"3 characters\n"


def test_a_bad_template_is_refused_when_the_server_is_made(counting):
    with pytest.raises(TemplateError):
        counting(template="none")


def test_a_message_that_begins_and_does_not_end(counting):
    server = counting(small_limits(message_timeout_s=0.06))
    slow, fine = server.connect(), server.connect()
    slow.send(b"begun")
    assert slow.receive_rest() == b""
    assert server.limit_hits("message-timeout") == 1
    assert fine.ask(b"x\n", 2) == b"1\n"


def test_each_connect_and_disconnect_is_logged(counting, caplog):
    caplog.set_level(logging.DEBUG, "charcount")
    server = counting()
    client = server.connect()
    host, port = client.socket.getsockname()
    client.send(b"one\ntwo\n\xff\n")
    assert client.receive_exactly(31) == b"3\n3\nERR invalid-utf8 at byte 0\n"
    client.close()
    server.wait_empty()
    other = server.connect()
    wait_until(server.connections)
    other.reset()
    server.wait_empty()
    records = [record for record in caplog.records if record.name == "charcount"]
    lines = [record.getMessage() for record in records]
    assert lines[0] == f"connect {host}:{port}"
    expected = rf"disconnect {host}:{port} messages=3 errors=1 received=10 sent=31 seconds=\d+\.\d{{3}}"
    assert re.fullmatch(expected, lines[1])
    # Without a byte from it, it may have been a health check: not worth a line of the ordinary log.
    assert re.fullmatch(r"disconnect .* messages=0 .* reason=ConnectionResetError: .*", lines[2])
    assert [record.levelname for record in records] == ["INFO", "INFO", "DEBUG"]


@pytest.mark.parametrize("framing", ["line", "raw"])
def test_too_long_messages_are_counted_as_a_limit(counting, framing):
    server = counting(framing=framing, max_message_bytes=3)
    client = server.connect()
    assert client.ask(b"xxxx" + b"\n" * (framing == "line"), 20) == b"ERR too-long limit 3"
    assert server.limit_hits("max-message") == 1


def test_a_flood_of_connections_does_not_flood_the_log(counting, caplog, logged):
    logged.allow("lines like these left out")
    caplog.set_level(logging.INFO, "charcount")
    server = counting()
    for _ in range(200):
        client = server.connect()
        assert client.ask(b"x\n", 2) == b"1\n"
        client.close()
    wait_until(lambda: server.server.stats.closed == 200)
    lines = [record for record in caplog.records if record.name == "charcount"]
    assert len(lines) < 200


def test_draining_answers_and_leaves_a_partial_message(counting):
    server = counting()
    client = server.connect()
    assert client.ask(b"x\n", 2) == b"1\n"
    client.send(b"one\npartial")
    server.call(server.server.drain)
    assert client.receive_rest() == b"3\n"
    client.close()
    server.wait_empty()


@pytest.mark.parametrize(
    ("sent", "hinted"), [(b"Halo dunia", True), (b"Halo", True), (b"one\ntwo", False), (b"", False)], ids=repr
)
def test_a_client_that_sends_no_line_end_is_explained_in_the_log(counting, caplog, monkeypatch, sent, hinted):
    monkeypatch.setattr("evloop.charcount.server._HINT_AFTER_S", 0.02)
    caplog.set_level("INFO", "charcount")
    server = counting()
    timers = server.call(lambda: server.loop.timers)
    client = server.connect()
    client.send(sent)
    over = threading.Event()
    server.connection()
    server.call(server.loop.call_later, 0.1, over.set)
    assert over.wait(10)
    assert (f"has sent {len(sent)} bytes and no line end" in caplog.text) == hinted
    # Who ends the line in time, or leaves, is not told, and leaves no timer.
    hasty, leaver = server.connect(), server.connect()
    hasty.send(b"ab")
    leaver.send(b"cd")
    assert hasty.ask(b"c\n", 2) == b"3\n"
    for one in (client, hasty, leaver):
        one.close()
    server.wait_empty()
    assert server.call(lambda: server.loop.timers) <= timers + 1  # the log's own
