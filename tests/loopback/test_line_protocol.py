"""`LineProtocol` over real sockets."""

from __future__ import annotations

import pytest

from evloop import LineProtocol
from harness import small_limits, wait_until


class Upper(LineProtocol):
    max_line_bytes = 20

    def on_line(self, line: bytes) -> bytes:
        return line.upper() + b"\n"

    def on_overlong_line(self) -> bytes:
        return b"TOO LONG\n"


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (b"one\ntwo\r\n\nthree\n", b"ONE\nTWO\n\nTHREE\n"),
        (b"no end", b"NO END\n"),
        (b"cr\r", b"CR\r\n"),
        (b"", b""),
        (b"a\n" + b"x" * 21 + b"\nb\n", b"A\nTOO LONG\nB\n"),
        (b"x" * 21 + b"\n" + b"y" * 50 + b"\r\nz", b"TOO LONG\nTOO LONG\nZ\n"),
        (b"x" * 100, b"TOO LONG\n"),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_lines_and_replies(start, sent, answered, step):
    client = start(Upper).connect()
    for place in range(0, len(sent), step):
        client.send(sent[place : place + step])
    client.half_close()
    assert client.receive_rest() == answered


def test_an_unterminated_line_waits(start):
    client = start(Upper).connect()
    client.send(b"wai")
    assert client.receives_nothing()
    assert client.ask(b"t\n", 5) == b"WAIT\n"


def test_batches_in_order_with_overlong_lines_between(start):
    batches: list[list[bytes]] = []

    class Batches(LineProtocol):
        max_line_bytes = 4

        def on_lines(self, lines: list[bytes]) -> bytes:
            batches.append(lines)
            return b"%d\n" % len(lines)

        def on_overlong_line(self) -> bytes:
            return b"!\n"

    client = start(Batches).connect()
    client.send(b"a\nb\nlonger\nlonger\nc\nd\ne\n")
    assert client.receive_exactly(8) == b"2\n!\n!\n3\n"
    assert batches == [[b"a", b"b"], [b"c", b"d", b"e"]]


def test_nothing_is_delivered_after_close(start):
    seen: list[bytes] = []

    class Quits(LineProtocol):
        max_line_bytes = 10

        def on_line(self, line: bytes) -> bytes:
            seen.append(line)
            if line == b"quit":
                self.connection.close()
                return b"bye\n"
            return b"ok\n"

        def on_overlong_line(self) -> bytes:
            seen.append(b"overlong")
            return b"overlong\n"

    client = start(Quits).connect()
    client.send(b"one\nquit\nthree\n" + b"x" * 20 + b"\nfour\n")
    client.half_close()
    assert client.receive_rest() == b"ok\nbye\n"
    assert seen == [b"one", b"quit"]


def test_overlong_lines_are_counted_as_a_limit(start):
    class Short(LineProtocol):
        max_line_bytes = 3

        def on_line(self, line: bytes) -> bytes:
            return b"done"

    server = start(Short)
    assert server.connect().ask(b"four\nfive!\nend\n", 4) == b"done"
    assert server.limit_hits("max-line") == 2


def test_writes_and_returned_replies_keep_their_order(start):
    class Both(LineProtocol):
        def on_line(self, line: bytes) -> bytes:
            self.connection.write(b"write " + line + b"\n")
            return b"return " + line + b"\n"

    client = start(Both).connect()
    client.send(b"1\n2\n")
    assert client.receive_exactly(34) == b"write 1\nreturn 1\nwrite 2\nreturn 2\n"


def test_each_connection_has_its_own_lines(start):
    server = start(Upper)
    one, two = server.connect(), server.connect()
    one.send(b"o")
    two.send(b"t")
    assert one.ask(b"ne\n", 4) == b"ONE\n"
    assert two.ask(b"wo\n", 4) == b"TWO\n"


def test_many_lines_in_one_go(start):
    client = start(Upper).connect()
    lines = [b"line %d" % number for number in range(20_000)]
    client.send(b"\n".join(lines) + b"\n")
    client.half_close()
    assert client.receive_rest() == b"\n".join(lines).upper() + b"\n"


def test_a_slow_line_is_ended_by_the_message_timeout(start):
    server = start(Upper, small_limits(message_timeout_s=0.08))
    client = server.connect()
    assert client.ask(b"quick\n", 6) == b"QUICK\n"
    client.send(b"slow")
    client.was_reset()  # ended, in one way or the other
    wait_until(lambda: server.limit_hits("message-timeout") == 1)
