"""The messages that are sent, and the replies that are right for them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from evloop_bench.common.texts import make_texts

_TOTAL_BYTES = 2 * 1024 * 1024
_MAX_MESSAGES = 1024


@dataclass(frozen=True, slots=True)
class Payload:
    """Two files of as many lines: messages, and their replies. ``mean_bytes`` is a message's mean size, LF included."""

    messages: Path
    replies: Path
    mean_bytes: float


def make_messages(kind: str, size_bytes: int, depth: int, seed: int = 1) -> list[bytes]:
    """Messages of about ``size_bytes``, LF included, without it.

    Sizes vary by an eighth either way, so that replies differ from one message to the next: a lost, repeated or
    reordered reply then can't pass for the right one.

    Args:
        kind: a key of `evloop_bench.common.texts.ALPHABETS`.
        depth: there are at least this many.
    """
    rng = random.Random(f"{kind} {size_bytes} {seed}")
    count = max(min(_MAX_MESSAGES, _TOTAL_BYTES // size_bytes), 16, depth)
    return make_texts(lambda: round(size_bytes * rng.uniform(0.875, 1.125)) - 1, kind, count, rng, fill=b"")


def write_payload(directory: Path, kind: str, size_bytes: int, depth: int) -> Payload:
    """Write the two files into ``directory``."""
    lines = make_messages(kind, size_bytes, depth)
    name = f"{kind}-{size_bytes}-{depth}"
    messages, replies = directory / f"{name}.messages", directory / f"{name}.replies"
    body = b"".join(line + b"\n" for line in lines)
    messages.write_bytes(body)
    replies.write_text("".join(f"{len(line.decode())}\n" for line in lines))
    return Payload(messages, replies, len(body) / len(lines))
