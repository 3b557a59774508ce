"""How much to receive at once, and how much of that to deal with in one turn.

Theory of operation
-------------------
A connection has one turn in each pass of the loop, and everybody else waits until it is over. The number of bytes does
not tell what a turn costs: 64 KiB can be a piece of one message or 65,536 empty ones, nanoseconds of work or tens of
milliseconds. So three things bound it:

* A receive begins small and grows while the peer fills it. So a peer that sends much needs few system calls, and one
  that does not needs little memory.
* What was received is given to the protocol in pieces (`piece_end`), each so small that even the worst input is little
  work.
* After each piece the turn is over if it has taken `TURN_S`, or if the replies to it are more than
  `MAX_TURN_REPLY_BYTES`. The rest of what was received waits for the next pass; meanwhile nothing is received.

A long message is not cut up: bytes without the end of a message in them are cheap, so a protocol that names what ends
its messages gets all of a long one at once.
"""

from __future__ import annotations

# The most. The result of a receive is cut to what arrived, so an idle connection holds nothing. From 128 KiB on, malloc
# would map and unmap memory for each call: 12 us.
RECV_BYTES = 65536
# The least, to begin with. With its header this is just what CPython's own allocator handles (512 bytes), which makes a
# receive 0.1 us cheaper than malloc does; most messages are short.
FIRST_RECV_BYTES = 479
# The factor by which the next one is larger when one was filled, and smaller when one turn was not enough for it.
_GROWTH = 8

# What is handled without looking at the clock: so little that even the worst input takes some tenths of a millisecond.
PIECE_BYTES = 4096
# A piece takes in a rest of up to this, as each one costs 2 us: 256 messages of 32 bytes are one piece.
_REST_BYTES = PIECE_BYTES * 3 // 2
MAX_PIECE_BYTES = PIECE_BYTES + _REST_BYTES
# A turn that has taken longer than this is over.
TURN_S = 0.00025
# A turn with more bytes to be sent than this is over.
MAX_TURN_REPLY_BYTES = 16384


def larger_recv_bytes(asked: int) -> int:
    """What the next receive takes at most, after one that took all it was allowed to."""
    return min(asked * _GROWTH, RECV_BYTES)


def smaller_recv_bytes(asked: int) -> int:
    """What the next receive takes at most, after a turn that was over before all was handled."""
    return max(asked // _GROWTH, FIRST_RECV_BYTES)


def piece_end(data: bytes, start: int, message_end: bytes) -> int:
    """Where the piece of ``data`` ends that begins at ``start``.

    It has `PIECE_BYTES`, or up to `MAX_PIECE_BYTES` if that is all there is, and what belongs to the message in which
    it would end.

    Args:
        message_end: what ends a message; empty if pieces may be cut anywhere.
    """
    end = start + PIECE_BYTES
    if message_end and end < len(data):
        end = data.find(message_end, end - len(message_end)) + len(message_end)
        if end < len(message_end):  # not found
            return len(data)
    return end if end + _REST_BYTES < len(data) else len(data)
