"""How much to receive at once: the size of a turn.

Theory of operation
-------------------
A connection is given one receive for each turn, so the size of a receive decides two things. The larger, the fewer
system calls for who sends much. And the larger, the longer everybody else waits: 64 KiB can be one message or 65,536
empty ones, nanoseconds of work or tens of milliseconds. What stands for the work is how much is said in reply.

So a connection begins small, and what it may send in one turn grows while it makes use of that, but stops before the
replies to a turn would exceed a bound. A peer that gets there all the same, by sending big messages first and tiny ones
then, is received in small portions from then on.
"""

from __future__ import annotations

# The most. The result of a receive is cut to what arrived, so an idle connection holds nothing. From 128 KiB on, malloc
# would map and unmap memory for each call: 12 us.
RECV_BYTES = 65536
# The least, to begin with. With its header this is just what CPython's own allocator handles (512 bytes), which makes a
# receive 0.1 us cheaper than malloc does; most messages are short.
FIRST_RECV_BYTES = 479
# How much more the next one takes when one was filled.
_GROWTH = 8
# A receive that got no more than this, and not all that was asked for, is not looked at: it takes a long reply to each
# byte to make that much work.
LARGE_RECV_BYTES = 2048
# What the replies to one receive should not exceed: a millisecond of work where it is ten nanoseconds for a byte.
MAX_TURN_REPLY_BYTES = 32768
# For who exceeded it: never enough to be considered for growth again.
WARY_RECV_BYTES = FIRST_RECV_BYTES - 1


def next_recv_bytes(asked: int, received: int, replied: int) -> int:
    """What the next receive takes.

    To be called where it can matter: when at least `FIRST_RECV_BYTES` were received, and these were all that was asked
    for; or when more than `LARGE_RECV_BYTES` were, and the replies are over the bound.

    Args:
        asked: what this one took at most.
        received: how much it got.
        replied: how much was said in reply.
    """
    if replied > MAX_TURN_REPLY_BYTES:
        return WARY_RECV_BYTES
    if received == asked and replied * _GROWTH <= MAX_TURN_REPLY_BYTES:
        return min(asked * _GROWTH, RECV_BYTES)
    return asked
