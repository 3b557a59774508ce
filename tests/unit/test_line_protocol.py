"""`LineProtocol`, in memory: the network adds nothing but other cuts, which are made here."""

from __future__ import annotations

import pytest

from evloop import LineProtocol
from evloop.testing import MemoryLoop, MemoryStream


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
def test_lines_and_replies(sent, answered, step):
    stream = MemoryStream(Upper())
    for place in range(0, len(sent), step):
        stream.feed(sent[place : place + step])
    stream.eof()
    assert stream.sent == answered
    assert stream.closed


def test_an_unterminated_line_waits():
    stream = MemoryStream(Upper())
    assert stream.feed(b"wai") == b""
    assert stream.advance(3600) == b""
    assert stream.feed(b"t\n") == b"WAIT\n"


def test_batches_in_order_with_overlong_lines_between():
    batches: list[list[bytes]] = []

    class Batches(LineProtocol):
        max_line_bytes = 4

        def on_lines(self, lines: list[bytes]) -> bytes:
            batches.append(lines)
            return b"%d\n" % len(lines)

        def on_overlong_line(self) -> bytes:
            return b"!\n"

    assert MemoryStream(Batches()).feed(b"a\nb\nlonger\nlonger\nc\nd\ne\n") == b"2\n!\n!\n3\n"
    assert batches == [[b"a", b"b"], [b"c", b"d", b"e"]]


def test_nothing_is_delivered_after_close():
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

    stream = MemoryStream(Quits())
    stream.feed(b"one\nquit\nthree\n" + b"x" * 20 + b"\nfour\n")
    stream.eof()
    assert stream.sent == b"ok\nbye\n"
    assert stream.closed
    assert seen == [b"one", b"quit"]


def test_overlong_lines_are_counted_as_a_limit():
    class Short(LineProtocol):
        max_line_bytes = 3

        def on_line(self, line: bytes) -> bytes:
            return b"done"

    stream = MemoryStream(Short())
    assert stream.feed(b"four\nfive!\nend\n") == b"done"
    assert stream.limits_hit == {"max-line": 2}


def test_writes_and_returned_replies_keep_their_order():
    class Both(LineProtocol):
        def on_line(self, line: bytes) -> bytes:
            self.connection.write(b"write " + line + b"\n")
            return b"return " + line + b"\n"

    assert MemoryStream(Both()).feed(b"1\n2\n") == b"write 1\nreturn 1\nwrite 2\nreturn 2\n"


def test_each_connection_has_its_own_lines():
    loop = MemoryLoop()
    one, two = MemoryStream(Upper(), loop=loop), MemoryStream(Upper(), loop=loop)
    assert one.feed(b"o") == two.feed(b"t") == b""
    assert one.feed(b"ne\n") == b"ONE\n"
    assert two.feed(b"wo\n") == b"TWO\n"


def test_many_lines_in_one_go():
    stream = MemoryStream(Upper())
    lines = [b"line %d" % number for number in range(20_000)]
    assert stream.feed(b"\n".join(lines) + b"\n") == b"\n".join(lines).upper() + b"\n"
