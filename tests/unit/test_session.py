"""Sessions fed three ways (whole, byte by byte, random pieces), against oracles that are slow and obviously right."""

from __future__ import annotations

import re
import sys
from collections import Counter
from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from evloop.charcount.session import CLASSIC_TEMPLATE, LineSession, RawSession, Replies, TemplateError

replies_of = cache(Replies)  # each template's are made once, as by a server

# ---------------------------------------------------------------------- line framing


def line_oracle(data: bytes, limit: int | None, template: str = "{count}") -> bytes:
    """What a whole stream is answered with."""
    *ended, last = data.split(b"\n")
    messages = [line[:-1] if line.endswith(b"\r") else line for line in ended]
    if last:
        messages.append(last)
    return b"".join(line_reply(message, limit, template) for message in messages)


def line_reply(message: bytes, limit: int | None, template: str) -> bytes:
    if limit is not None and len(message) > limit:
        return f"ERR too-long limit {limit}\n".encode()
    try:
        return template.format(count=len(message.decode())).encode() + b"\n"
    except UnicodeDecodeError as error:
        return f"ERR invalid-utf8 at byte {error.start}\n".encode()


def converse(pieces: list[bytes], limit: int | None, template: str = "{count}") -> bytes:
    session = LineSession(replies_of(template), limit)
    replies = b"".join([*map(session.feed, pieces), session.finish()])
    assert session.finish() == b""
    assert session.message_in_progress() is None
    assert session.messages == replies.count(b"\n")
    assert session.errors == sum(line.startswith(b"ERR ") for line in replies.split(b"\n"))
    return replies


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """``data`` in pieces that end at ``cuts``, taken modulo its length; no piece is empty."""
    places = sorted({cut % len(data) for cut in cuts} - {0}) if data else []
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True) if start < end]


def byte_by_byte(data: bytes) -> list[bytes]:
    return [data[n : n + 1] for n in range(len(data))]


@pytest.mark.parametrize(
    ("data", "limit", "replies"),
    [
        (b"hello\n", None, b"5\n"),
        (b"\n", None, b"0\n"),
        (b"\r\n", None, b"0\n"),
        (b"hello\r\n", None, b"5\n"),
        (b"hello\r\r\n", None, b"6\n"),
        (b"a\rb\n", None, b"3\n"),
        (b"\r", None, b"1\n"),
        (b"a\r", None, b"2\n"),
        (b"\r\r", None, b"2\n"),
        (b"", None, b""),
        (b"last", None, b"4\n"),
        (b"one\nlast", None, b"3\n4\n"),
        (b"a\nbb\n\nccc\n", None, b"1\n2\n0\n3\n"),
        ("é€😀\n".encode(), None, b"3\n"),
        ("e\u0301\n".encode(), None, b"2\n"),  # code points, not what a reader sees as one
        ("\ufeffx\n".encode(), None, b"2\n"),  # a byte order mark is a character
        ("a\u2028b\x85c\x0bd\n".encode(), None, b"7\n"),  # no line break but LF
        (b"\0\0\n", None, b"2\n"),
        (b"\xff\nok\n", None, b"ERR invalid-utf8 at byte 0\n2\n"),
        (b"ok\nab\xc3\nok\n", None, b"2\nERR invalid-utf8 at byte 2\n2\n"),
        (b"ab\xe2\x82", None, b"ERR invalid-utf8 at byte 2\n"),
        (b"\xc3\r\n\xa9\n", None, b"ERR invalid-utf8 at byte 0\nERR invalid-utf8 at byte 0\n"),
        (b"12345\n", 5, b"5\n"),
        (b"12345\r\n", 5, b"5\n"),
        (b"123456\n", 5, b"ERR too-long limit 5\n"),
        (b"12345\r\r\n", 5, b"ERR too-long limit 5\n"),
        (b"12345\r", 5, b"ERR too-long limit 5\n"),
        ("éé\n".encode(), 4, b"2\n"),  # the limit is in bytes
        ("ééé\n".encode(), 5, b"ERR too-long limit 5\n"),
        (b"x" * 500 + b"\nok\n", 5, b"ERR too-long limit 5\n2\n"),
        (b"\xff23456\n\xff\n", 5, b"ERR too-long limit 5\nERR invalid-utf8 at byte 0\n"),  # too long comes first
        (b"123456\xff\n", 5, b"ERR too-long limit 5\n"),
        (b"\n", 1, b"0\n"),
    ],
)
def test_line_framing_by_example(data, limit, replies):
    assert line_oracle(data, limit) == replies
    assert converse([data] if data else [], limit) == replies
    assert converse(byte_by_byte(data), limit) == replies
    for place in range(1, len(data)):
        assert converse([data[:place], data[place:]], limit) == replies


# Streams in which everything that matters happens often.
streams = st.lists(
    st.one_of(
        st.sampled_from([b"\n", b"\n", b"\r\n", b"\r", b"a", b"bcd", b"x" * 9, b"\0"]),
        st.sampled_from(["é", "€", "😀", "\u2028"]).map(str.encode),
        st.sampled_from([b"\xff", b"\x80", b"\xc3", b"\xe2\x82", b"\xed\xa0\x80", b"\xf0\x9f"]),
    ),
    max_size=60,
).map(b"".join)
limits = st.one_of(st.none(), st.integers(1, 12))
templates = st.sampled_from(["{count}", CLASSIC_TEMPLATE, "é{count:04d}"])


@given(streams, limits, st.lists(st.integers(0, 1000), max_size=30), templates)
@example(b"12345\r\n", 5, [6], "{count}")
@example(b"12345\r\r\n", 5, [6, 7], "{count}")
@example(b"\xc3\r\n", None, [1, 2], "{count}")
def test_line_framing_in_random_pieces(data: bytes, limit: int | None, cuts: list[int], template: str):
    assert converse(cut(data, cuts), limit, template) == line_oracle(data, limit, template)


@given(streams, limits)
def test_line_framing_whole_and_byte_by_byte(data: bytes, limit: int | None):
    expected = line_oracle(data, limit)
    assert converse([data] if data else [], limit) == expected
    assert converse(byte_by_byte(data), limit) == expected


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=40), max_size=20))
def test_the_count_is_the_length_of_the_text(texts: list[str]):
    data = "".join(text + "\n" for text in texts).encode()
    assert converse([data] if data else [], None) == "".join(f"{len(text)}\n" for text in texts).encode()


@given(streams, st.integers(0, 1000))
def test_each_message_is_answered_with_the_piece_that_ends_it(data: bytes, place: int):
    place = place % (len(data) + 1)
    session = LineSession(replies_of())
    assert session.feed(data[:place]).count(b"\n") == data[:place].count(b"\n")


def test_a_message_in_progress_keeps_its_number_until_it_ends():
    session = LineSession(Replies())
    assert session.message_in_progress() is None
    session.feed(b"a")
    first = session.message_in_progress()
    assert first is not None
    session.feed(b"b")
    session.feed(b"\r")
    assert session.message_in_progress() == first
    session.feed(b"\nnext")
    second = session.message_in_progress()
    assert second not in (None, first)
    session.feed(b"\n")
    assert session.message_in_progress() is None


def test_a_long_message_is_counted_in_constant_memory():
    session = LineSession(Replies())
    piece = "é€😀a".encode() * 1000
    session.feed(piece)
    tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy cannot count memory so")
    measured = []
    for _ in range(3):  # the least counts: other threads of the test runner's allocate, too
        tracemalloc.start()
        try:
            for _ in range(200):
                assert session.feed(piece[:4999]) == b""
                assert session.feed(piece[4999:]) == b""
            measured.append(tracemalloc.get_traced_memory())
        finally:
            tracemalloc.stop()
    held, peak = min(measured)
    assert held < 1000
    assert peak < 10 * len(piece)
    assert session.feed(b"\n") == b"%d\n" % (601 * 4000)


def test_an_idle_session_holds_nothing():
    session = LineSession(Replies())
    session.feed(b"x" * 100_000)
    session.feed(b"\nhello\n")
    assert session._counter is None


def test_sessions_share_replies_and_nothing_else():
    replies = Replies()
    one, two = LineSession(replies), LineSession(replies)
    assert one.feed(b"abc") == b""
    assert two.feed(b"de\n") == b"2\n"
    assert one.feed(b"d\n") == b"4\n"


# ---------------------------------------------------------------------- raw framing


def raw_oracle(chunks: list[bytes], limit: int | None, template: str = "{count}") -> list[bytes]:
    """The reply to each chunk, and to the end of input."""
    replies = []
    carry = b""
    for chunk in chunks:
        message, carry = carry + chunk, b""
        if limit is not None and len(message) > limit:
            replies.append(f"ERR too-long limit {limit}".encode())
            continue
        try:
            text = message.decode()
        except UnicodeDecodeError as error:
            # A surrogate in UTF-8 is invalid from its second byte on; the decoder waits for the third.
            surrogate = re.fullmatch(rb"\xed[\xa0-\xbf]", message[error.start :])
            if error.reason != "unexpected end of data" and not surrogate:
                replies.append(f"ERR invalid-utf8 at byte {error.start}".encode())
                continue
            text, carry = message[: error.start].decode(), message[error.start :]
        replies.append(template.format(count=len(text)).encode() if text else b"")
    replies.append(b"ERR invalid-utf8 at byte 0" if carry else b"")
    return replies


def converse_raw(chunks: list[bytes], limit: int | None, template: str = "{count}") -> list[bytes]:
    session = RawSession(replies_of(template, end=""), limit)
    replies = [*map(session.feed, chunks), session.finish()]
    assert session.finish() == b""
    assert session.message_in_progress() is None
    assert session.messages == sum(1 for reply in replies if reply)
    assert session.errors == sum(reply.startswith(b"ERR ") for reply in replies)
    return replies


@pytest.mark.parametrize(
    ("chunks", "limit", "replies"),
    [
        ([b"hello"], None, [b"5", b""]),
        ([b"hello\n"], None, [b"6", b""]),  # here LF and CR are characters like others
        ([b"a\r\nb\n"], None, [b"5", b""]),
        ([b"a", b"bc"], None, [b"1", b"2", b""]),
        (["é€😀".encode()], None, [b"3", b""]),
        ([b"a\xc3", b"\xa9b"], None, [b"1", b"2", b""]),
        ([b"\xf0", b"\x9f", b"\x98", b"\x80"], None, [b"", b"", b"", b"1", b""]),
        ([b"a\xc3"], None, [b"1", b"ERR invalid-utf8 at byte 0"]),
        ([b"a\xc3", b"b", b"c"], None, [b"1", b"ERR invalid-utf8 at byte 0", b"1", b""]),
        ([b"ab\xffc", b"d"], None, [b"ERR invalid-utf8 at byte 2", b"1", b""]),
        ([b"12345", b"123456", b"1"], 5, [b"5", b"ERR too-long limit 5", b"1", b""]),
        ([b"\xff23456"], 5, [b"ERR too-long limit 5", b""]),
        ([], None, [b""]),
    ],
)
def test_raw_framing_by_example(chunks, limit, replies):
    assert raw_oracle(chunks, limit) == replies
    assert converse_raw(chunks, limit) == replies


@given(streams, limits, st.lists(st.integers(0, 1000), max_size=30), templates)
def test_raw_framing_in_random_chunks(data: bytes, limit: int | None, cuts: list[int], template: str):
    chunks = cut(data, cuts)
    assert converse_raw(chunks, limit, template) == raw_oracle(chunks, limit, template)
    assert converse_raw(byte_by_byte(data), limit, template) == raw_oracle(byte_by_byte(data), limit, template)


@given(st.text(st.characters(codec="utf-8")), st.lists(st.integers(0, 1000), max_size=30))
def test_raw_counts_add_up_however_text_is_cut(text: str, cuts: list[int]):
    replies = converse_raw(cut(text.encode(), cuts), None)
    assert sum(int(reply) for reply in replies if reply) == len(text)


def test_a_raw_message_is_in_progress_while_a_character_is_incomplete():
    session = RawSession(Replies(end=""))
    assert session.message_in_progress() is None
    session.feed(b"a\xf0")
    first = session.message_in_progress()
    assert first is not None
    session.feed(b"\x9f")
    assert session.message_in_progress() == first
    session.feed(b"\x98\x80 and the next one \xc3")
    assert session.message_in_progress() not in (None, first)
    session.feed(b"\xa9")
    assert session.message_in_progress() is None


def test_the_classic_reply():
    session = RawSession(Replies(CLASSIC_TEMPLATE, end=""))
    assert session.feed("halo dunia é".encode()) == b"Jumlah karakter: 12"


# ---------------------------------------------------------------------- replies


@pytest.mark.parametrize(
    ("template", "reply"),
    [
        ("{count}", b"42\n"),
        (CLASSIC_TEMPLATE, b"Jumlah karakter: 42\n"),
        ("{count:>5}|", b"   42|\n"),
        ("{count:_}", b"42\n"),
        ("{count:x}", b"2a\n"),
        ("{{{count}}}", b"{42}\n"),
        ("{count} é", "42 é\n".encode()),
        ("{count} of {count}", b"42 of 42\n"),
        ("100 %% of %s, %d: {count}", b"100 %% of %s, %d: 42\n"),
    ],
)
def test_good_templates(template, reply):
    replies = Replies(template)
    assert replies[42] == replies.ready[42] == reply
    assert replies[10**12] == (template.format(count=10**12) + "\n").encode()


@pytest.mark.parametrize(
    "template",
    [
        "",
        "no count",
        "{{count}}",
        "{}",
        "{0}",
        "{number}",
        "{count",
        "count}",
        "{count!x}",
        "{count:y}",
        "{count.nothing}",
        "{count[0]}",
        "{count:c}",  # a character with that number: some of them are line breaks, or none at all
        "{count.__class__}",
        "{count}\n",
        "{count}\r",
        "\ud800{count}",
        "{count:\ud800>5}",
        "{count:05000}",  # the ready-made replies would take megabytes
        "{count:099999999999999999999}",
    ],
)
def test_bad_templates(template):
    with pytest.raises(TemplateError) as caught:
        Replies(template)
    assert repr(template) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_error_of_a_huge_template_is_short():
    with pytest.raises(TemplateError) as caught:
        Replies("x" * 100_000 + "{count}")
    assert len(str(caught.value)) < 200
    whole = "{count" + "x" * 74  # malformed, and as long as is shown
    with pytest.raises(TemplateError, match=re.escape(repr(whole))):
        Replies(whole)
    with pytest.raises(TemplateError, match=re.escape(repr(whole[:77] + "..."))):
        Replies(whole + "x")


def test_a_reply_may_have_4096_characters():
    assert len(Replies("{count:04096}")[1]) == 4097  # with its LF
    with pytest.raises(TemplateError, match="more than 4096 characters"):
        Replies("{count:04097}")


@pytest.mark.parametrize("bad", [b"\xff", b"ab\xff", "字".encode()[:2], "é字\udcff".encode(errors="surrogatepass")])
def test_bad_messages_among_good_ones_say_where(bad):
    session = LineSession(Replies(), 8)
    with pytest.raises(UnicodeDecodeError) as caught:
        bad.decode()
    wanted = b"1\nERR invalid-utf8 at byte %d\nERR too-long limit 8\n2\n" % caught.value.start
    assert session.feed(b"a\n" + bad + b"\n" + b"\xff" * 9 + b"\nbc\n") == wanted
    assert (session.messages, session.errors) == (4, 2)


@pytest.mark.parametrize("session_class", [LineSession, RawSession])
def test_messages_over_the_limit_are_counted(session_class):
    limits_hit: Counter[str] = Counter()
    session = session_class(Replies(), 3, limits_hit)
    for message in (b"123", b"1234", b"12", b"12345"):
        session.feed(message + b"\n" if session_class is LineSession else message)
    assert limits_hit["max-message"] == session.errors == 2


@pytest.mark.parametrize("size", [1023, 1024, 5000, 32768, 100_000])  # ready-made, kept from now on, made each time
def test_long_messages_alone_and_among_others(size):
    session = LineSession(Replies())
    for _ in range(2):
        assert session.feed(b"x" * size + b"\n") == b"%d\n" % size
        assert session.feed(b"a\n" + b"x" * size + b"\nbc\n") == b"1\n%d\n2\n" % size
        assert session.feed(("字\n" + "字" * size + "\n").encode()) == b"1\n%d\n" % size
    assert session.messages == 12


def test_line_breaks_are_fine_where_they_end_no_reply():
    assert Replies("{count}\r\n", end="")[3] == b"3\r\n"


def test_replies_are_ready_made_for_short_messages_and_not_kept_for_others():
    replies = Replies()
    assert replies[5] is replies[5]
    for count in (10**5, 10**9, sys.maxsize):
        assert replies[count] == b"%d\n" % count
    assert len(replies) == 1


@given(st.integers(0, sys.maxsize))
def test_no_default_reply_looks_like_an_error(count: int):
    assert not Replies()[count][:1].isalpha()
