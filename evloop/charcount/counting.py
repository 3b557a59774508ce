"""Counting the characters of UTF-8 text that arrives in pieces.

A character is a Unicode code point. Counting needs constant memory: a piece is decoded, its characters are counted, and
all that is kept is a code point whose last bytes are still to come, three bytes at most.

Decoding is also the fastest way to count in CPython that notices invalid text: it runs at memory speed for
ASCII, and the decoder knows every rule (overlong forms, surrogates, the end of Unicode) that a count of lead bytes
would let pass.
"""

from __future__ import annotations

from codecs import utf_8_decode

# How much is decoded at once. Text may take four times the memory of its bytes, and together with a received chunk of
# 64 KiB that is more than malloc keeps at the end of the heap: it would give memory back and ask for it again with each
# chunk, which costs page faults, a quarter of the time for a long text.
_PIECE_BYTES = 4096


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
        begins_at = self.size
        self.size += len(data)
        if self.invalid_at is not None:
            return
        carry = self.carry
        if not carry and data.isascii():
            self.characters += len(data)
            return
        for start in range(0, len(data), _PIECE_BYTES):
            piece = carry + data[start : start + _PIECE_BYTES]
            try:
                text, used = utf_8_decode(piece, "strict", False)
            except UnicodeDecodeError as error:
                self.invalid_at = begins_at + start - len(carry) + error.start
                self.carry = b""
                return
            self.characters += len(text)
            carry = piece[used:]
        self.carry = carry

    def finish(self) -> None:
        """The text ends here: a code point that is still incomplete is invalid."""
        if self.carry:
            self.invalid_at = self.size - len(self.carry)
            self.carry = b""

    def dump(self) -> bytes:
        """All that it knows, as text for `restore`: four words."""
        invalid_at = "-" if self.invalid_at is None else self.invalid_at
        return f"{self.characters} {self.size} {invalid_at} {self.carry.hex() or '-'}".encode()

    def restore(self, state: bytes) -> None:
        """Go on where another one was when it was asked for this.

        Raises:
            ValueError: it is no such text.
        """
        characters, size, invalid_at, carry = state.decode().split(" ")
        self.characters, self.size = int(characters), int(size)
        self.invalid_at = None if invalid_at == "-" else int(invalid_at)
        self.carry = b"" if carry == "-" else bytes.fromhex(carry)
