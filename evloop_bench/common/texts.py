"""Messages of a wanted size, made of characters of a wanted kind."""

from __future__ import annotations

import random
from collections.abc import Callable

_ASCII = [chr(code) for code in range(0x20, 0x7F)]
_LATIN = [chr(code) for code in range(0xC0, 0x180)]
_CJK = [chr(code) for code in range(0x4E00, 0xA000)]
# With a zero-width joiner and a skin tone: a sequence that looks like one character is several code points.
_EMOJI = [chr(code) for code in range(0x1F300, 0x1F650)] + ["\u200d", "\U0001f3fd", "❤", "\ufe0f"]

# Kinds of text. A character stands as often in its list as it is likelier than others.
ALPHABETS: dict[str, list[str]] = {
    "ascii": _ASCII,
    "latin": _ASCII * 2 + _LATIN,
    "cjk": _CJK,
    "emoji": _EMOJI,
    "mixed": _ASCII * 30 + _LATIN * 10 + _CJK[:1000] + _EMOJI,
}

# Messages are cut from a text of so many characters, and one that is longer repeats it from where it begins.
_CORPUS_CHARACTERS = 65536
_OVERLAP_CHARACTERS = 4096


def make_texts(
    next_size: Callable[[], int], kind: str, count: int, rng: random.Random, *, fill: bytes = b"x"
) -> list[bytes]:
    """Messages in UTF-8 without a terminator.

    Args:
        next_size: draws a size in bytes.
        kind: a key of `ALPHABETS`.
        count: how many.
        fill: what is put where no whole character fits any more, so that each message has exactly the size drawn for
            it. Nothing: only characters of that kind, up to three bytes less.
    """
    # Drawing each character of each message anew would take seconds for large ones: they are cut from one long text.
    corpus = "".join(rng.choices(ALPHABETS[kind], k=_CORPUS_CHARACTERS))
    corpus += corpus[:_OVERLAP_CHARACTERS]
    texts = []
    for _ in range(count):
        size = next_size()
        start = rng.randrange(_CORPUS_CHARACTERS)
        if size <= _OVERLAP_CHARACTERS:
            piece = corpus[start : start + size]
        else:
            piece = (corpus[start:] * (size // _OVERLAP_CHARACTERS + 1))[:size]
        whole = piece.encode()[:size].decode(errors="ignore").encode()
        texts.append(whole + fill * (size - len(whole)))
    return texts
