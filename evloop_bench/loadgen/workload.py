"""What is sent and what must come back: messages made from a seed, each with the reply that is right.

Everything is made before the run. A connection walks through the pool in a circle from a starting point of its own, so
that a server that mixes up its clients gives itself away; what it sends next, and what it must receive next, are slices
of two long byte strings. Checking a chunk of replies is then one comparison in C, whatever number of replies it holds.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evloop_bench.common.texts import make_texts

# How many different messages a pool has, if they are small, and how many bytes if they are not.
POOL_MESSAGES = 4096
POOL_BYTES = 4 * 1024 * 1024

# How much may be made ready in advance for each window of messages.
_MADE_TURNS_BYTES = 16 * 1024 * 1024

# The longest message a lognormal distribution may ask for: its tail has no end, memory has.
LOGNORMAL_MAX_BYTES = 1024 * 1024


class SizeError(ValueError):
    """A size specification that can't be used. The text says why."""


@dataclass(frozen=True)
class Sizes:
    """Message sizes in bytes, without the terminator: fixed, uniform or lognormal. Made by `parse_sizes`."""

    kind: str
    low_bytes: int
    high_bytes: int
    sigma: float = 0.0

    def sampler(self, rng: random.Random) -> Callable[[], int]:
        """A function that gives one size after the other."""
        low, high, sigma = self.low_bytes, self.high_bytes, self.sigma
        if self.kind == "uniform":
            return lambda: rng.randint(low, high)
        if self.kind == "lognormal":
            return lambda: min(round(low * rng.lognormvariate(0, sigma)), high)
        return lambda: low


def parse_sizes(text: str) -> Sizes:
    """Sizes from ``32``, ``uniform:8-200`` or ``lognormal:MEDIAN,SIGMA`` (bytes; sigma of the logarithm).

    Raises:
        SizeError: it is none of them, or a number makes no sense.
    """
    kind, colon, rest = text.partition(":")
    try:
        if not colon:
            size = int(text)
            sizes = Sizes("fixed", size, size)
        elif kind == "uniform":
            low, _, high = rest.partition("-")
            sizes = Sizes("uniform", int(low), int(high))
        elif kind == "lognormal":
            median, _, sigma = rest.partition(",")
            sizes = Sizes("lognormal", int(median), LOGNORMAL_MAX_BYTES, float(sigma or 1.0))
        else:
            raise ValueError
    except ValueError:
        raise SizeError(f"{text!r} is not a size: give 32, uniform:8-200 or lognormal:64,1.0 (bytes)") from None
    if not 0 <= sizes.low_bytes <= sizes.high_bytes <= 64 * 1024 * 1024 or not 0 <= sizes.sigma <= 5:
        raise SizeError(f"{text!r} is not a size: from 0 to 64 MiB, the smaller number first, sigma from 0 to 5")
    return sizes


class Pool:
    """Messages, and the replies they must get.

    Args:
        texts: the messages, without terminator.
        reply_to: the right reply to a message, with its terminator. Default: the number of its code points and LF.

    Attributes:
        size: how many messages there are.
        requests, replies: all of them one after the other, twice, so that no slice has to be put together at the end.
        request_at, reply_at: where the message of each position begins in them; positions up to twice the size.
    """

    def __init__(self, texts: list[bytes], reply_to: Callable[[bytes], bytes] | None = None) -> None:
        if reply_to is None:
            reply_to = count_reply
        self.size = len(texts)
        replies = [reply_to(text) for text in texts]
        self.requests = b"\n".join([*texts, *texts, b""])
        self.replies = b"".join(replies * 2)
        self.request_at = list(itertools.accumulate((len(text) + 1 for text in texts * 2), initial=0))
        self.reply_at = list(itertools.accumulate(map(len, replies * 2), initial=0))

    def requests_from(self, position: int, count: int) -> bytes:
        """The next ``count`` messages, terminated, from a position below the pool's size."""
        at = self.request_at
        return self.requests[at[position] : at[position + count]]

    def replies_from(self, position: int, count: int) -> bytes:
        """The replies to them."""
        at = self.reply_at
        return self.replies[at[position] : at[position + count]]


# Of a window of messages in flight: the replies that must come; what to send then; what follows, or None: ask `Turns`.
Turn = tuple[bytes, bytes, Any]


class Turns:
    """What a closed loop goes through, window after window.

    Made before the run where that doesn't take much memory: then a turn leads to the next one, round in a circle, and
    nothing has to be cut from the pool for each message.

    Args:
        window: messages in a turn.
    """

    def __init__(self, pool: Pool, window: int) -> None:
        self._pool = pool
        self._window = window
        self._made: list[Any] = []
        if (len(pool.requests) + len(pool.replies)) // 2 * window <= _MADE_TURNS_BYTES:
            self._made = [list(self._cut(position)) for position in range(pool.size)]
            for position, turn in enumerate(self._made):
                turn[2] = self._made[(position + window) % pool.size]

    def at(self, position: int) -> Turn:
        """The turn that begins with the message at a position."""
        return self._made[position] if self._made else self._cut(position)

    def _cut(self, position: int) -> Turn:
        pool, window = self._pool, self._window
        return pool.replies_from(position, window), pool.requests_from((position + window) % pool.size, window), None


def count_reply(text: bytes) -> bytes:
    """The right reply to a message: how many code points it has."""
    return b"%d\n" % len(text.decode())


def null_reply(text: bytes) -> bytes:
    """What the null server of `--calibrate` replies to everything."""
    return b"0\n"


def make_pool(sizes: Sizes, text: str, window: int, seed: int, *, null: bool = False) -> Pool:
    """A pool that suits the message sizes.

    Args:
        window: how many messages one connection may have in flight; the pool has at least as many.
        seed: the same seed gives the same messages.
        null: expect what the null server replies.
    """
    rng = random.Random(seed)
    next_size = sizes.sampler(random.Random(seed))
    typical_bytes = sum(next_size() for _ in range(64)) // 64 + 1
    count = max(min(POOL_MESSAGES, POOL_BYTES // typical_bytes), 16, window)
    return Pool(make_texts(sizes.sampler(rng), text, count, rng), null_reply if null else None)
