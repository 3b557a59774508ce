"""The size of a turn: it grows for who sends much, and stays small for who makes the server say much."""

from __future__ import annotations

import pytest

from evloop.charcount.session import LineSession, Replies
from evloop.net.receiving import (
    FIRST_RECV_BYTES,
    LARGE_RECV_BYTES,
    MAX_TURN_REPLY_BYTES,
    RECV_BYTES,
    WARY_RECV_BYTES,
    next_recv_bytes,
)


class Turns:
    """What a connection does with a peer that always has more to send."""

    def __init__(self) -> None:
        self.recv_bytes = FIRST_RECV_BYTES
        self.session = LineSession(Replies())
        self.replied: list[int] = []

    def flood(self, message: bytes, turns: int = 20) -> None:
        stream = message * (RECV_BYTES // len(message) + 1)
        for _ in range(turns):
            chunk = stream[: self.recv_bytes]
            reply = self.session.feed(chunk)
            self.replied.append(len(reply))
            large = len(chunk) > LARGE_RECV_BYTES and len(reply) > MAX_TURN_REPLY_BYTES
            if len(chunk) >= FIRST_RECV_BYTES and (len(chunk) == self.recv_bytes or large):
                self.recv_bytes = next_recv_bytes(self.recv_bytes, len(chunk), len(reply))


def test_one_long_message_gets_the_largest_receives_soon():
    turns = Turns()
    turns.flood(b"x" * RECV_BYTES, 3)
    assert turns.recv_bytes == RECV_BYTES


def test_many_messages_of_ordinary_size_get_large_receives():
    turns = Turns()
    turns.flood(b"x" * 31 + b"\n")
    assert turns.recv_bytes == RECV_BYTES


@pytest.mark.parametrize("message", [b"\n", b"a\n", b"\xff\n", b"abc\n"])
def test_the_replies_to_tiny_messages_stay_below_the_bound(message):
    turns = Turns()
    turns.flood(message)
    assert max(turns.replied) <= MAX_TURN_REPLY_BYTES
    assert turns.recv_bytes > WARY_RECV_BYTES  # nothing was exceeded, so it could still grow


def test_big_messages_and_then_tiny_ones_exceed_it_once():
    turns = Turns()
    turns.flood(b"x" * RECV_BYTES)
    assert turns.recv_bytes == RECV_BYTES
    turns.session.feed(b"\n")
    for _ in range(3):
        turns.flood(b"\xff\n")
        turns.flood(b"x" * 1000 + b"\n")
    assert sum(replied > MAX_TURN_REPLY_BYTES for replied in turns.replied) == 1
    assert turns.recv_bytes == WARY_RECV_BYTES


def test_what_arrived_is_what_counts_not_what_was_asked_for():
    assert next_recv_bytes(30656, 30655, 0) == 30656
    assert next_recv_bytes(30656, 30655, 30656) == 30656
    assert next_recv_bytes(30656, 30655, 32769) == WARY_RECV_BYTES
