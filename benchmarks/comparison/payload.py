"""The messages that are sent, and the replies that are right for them."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from pathlib import Path

_ASCII = string.ascii_letters + string.digits + "     ,.-"
_LATIN = _ASCII[:30] + "àáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿ"
_CJK = "".join(map(chr, range(0x4E00, 0x5000)))
_EMOJI = "".join(map(chr, range(0x1F600, 0x1F640)))

ALPHABETS = {
    "ascii": _ASCII,
    "latin": _LATIN,
    "cjk": _CJK,
    "emoji": _EMOJI,
    "mixed": _ASCII + _LATIN + _CJK[:60] + _EMOJI[:40],
}

_TOTAL_BYTES = 2 * 1024 * 1024
_MAX_MESSAGES = 1024


@dataclass(frozen=True, slots=True)
class Payload:
    """Two files of as many lines: messages, and their replies. ``mean_bytes`` is a message's mean size, LF included."""

    messages: Path
    replies: Path
    mean_bytes: float


def make_texts(kind: str, size_bytes: int, depth: int, seed: int = 1) -> list[str]:
    """Messages of about ``size_bytes`` encoded bytes, LF included.

    Sizes vary by an eighth either way, so that replies differ from one message to the next: a lost, repeated or
    reordered reply then can't pass for the right one.

    Args:
        kind: a key of `ALPHABETS`.
        depth: there are at least this many.
    """
    rng = random.Random(f"{kind} {size_bytes} {seed}")
    alphabet = ALPHABETS[kind]
    widest = max(len(character.encode()) for character in alphabet)
    narrowest = min(len(character.encode()) for character in alphabet)
    count = max(min(_MAX_MESSAGES, _TOTAL_BYTES // size_bytes), 16, depth)
    texts = []
    for _ in range(count):
        room = round(size_bytes * rng.uniform(0.875, 1.125)) - 1
        text = "".join(rng.choices(alphabet, k=room // narrowest))
        if widest > narrowest:
            text = text.encode()[:room].decode(errors="ignore")
        texts.append(text)
    return texts


def write_payload(directory: Path, kind: str, size_bytes: int, depth: int) -> Payload:
    """Write the two files into ``directory``."""
    texts = make_texts(kind, size_bytes, depth)
    name = f"{kind}-{size_bytes}-{depth}"
    messages, replies = directory / f"{name}.messages", directory / f"{name}.replies"
    body = "".join(text + "\n" for text in texts).encode()
    messages.write_bytes(body)
    replies.write_text("".join(f"{len(text)}\n" for text in texts))
    return Payload(messages, replies, len(body) / len(texts))
