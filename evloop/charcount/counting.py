"""Counting the characters of UTF-8 text that arrives in pieces.

A character is a Unicode code point. Counting needs constant memory: a piece is decoded, its characters are counted, and
all that is kept is a code point whose last bytes are still to come, three bytes at most.

Decoding is also the fastest way to count in CPython that notices invalid text: it runs at memory speed for
ASCII, and the decoder knows every rule (overlong forms, surrogates, the end of Unicode) that a count of lead bytes
would let pass.
"""

from __future__ import annotations

from codecs import utf_8_decode


class Utf8Counter:
    """Counts the code points of one text, fed in pieces.

    Attributes:
        characters: complete code points so far.
        size: bytes so far.
        invalid_at: offset in bytes of the first invalid sequence, as ``bytes.decode`` would report it; None if there is
            none so far. After it nothing is counted any more, but ``size`` goes on.
        carry: the bytes of a code point that is not complete yet; three at most.
    """

    __slots__ = ("carry", "characters", "invalid_at", "size")

    def __init__(self) -> None:
        self.characters = 0
        self.size = 0
        self.invalid_at: int | None = None
        self.carry = b""

    def feed(self, data: bytes) -> None:
        """Count one more piece."""
        self.size += len(data)
        if self.invalid_at is not None:
            return
        if self.carry:
            data = self.carry + data
        elif data.isascii():
            self.characters += len(data)
            return
        try:
            text, used = utf_8_decode(data, "strict", False)
        except UnicodeDecodeError as error:
            self.invalid_at = self.size - len(data) + error.start
            self.carry = b""
            return
        self.characters += len(text)
        self.carry = data[used:]

    def finish(self) -> None:
        """The text ends here: a code point that is still incomplete is invalid."""
        if self.carry:
            self.invalid_at = self.size - len(self.carry)
            self.carry = b""
