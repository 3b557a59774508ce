"""Sans-IO framing of messages that say how long they are: bytes in, messages out.

Theory of operation
-------------------
Such a message has a head that says how long it is, so nothing has to be searched, and it may hold any bytes. How a head
looks, and whether something follows the message, is a `Framing`; the rest is the same for all of them.

A `MessageFramer` cuts whole messages from the chunk in which they came. The beginning of one that is not complete is
kept, together with the number of bytes without which there is no use in looking again. Until that many are there, what
arrives is only added at the end. So each byte is copied a fixed number of times, however a message is dribbled, and
nobody glues the rest to each new chunk.

A length is an untrusted number. It is compared with the limit as soon as it is known, before anything is kept for it,
and memory is used for bytes that have come, never for bytes that were promised.
"""

from __future__ import annotations

from evloop.errors import FramingError, IncompleteReadError, LimitError

_MAX_PREFIX_BYTES = 8
# A varint carries 7 bits a byte: this is enough for 64.
_MAX_VARINT_BYTES = 10

# Nothing that comes is shown in an error at greater length.
_SHOWN_BYTES = 12


class Framing:
    """How messages stand in a stream. Make a subclass for a protocol that has a way of its own; it holds no state.

    One object can be shared by all connections.
    """

    __slots__ = ()

    def locate(self, data: bytes | bytearray, at: int, limit_bytes: int) -> tuple[int, int, int]:
        """Where the message begins and ends whose head begins at ``at``, and where the next head begins.

        If that last place is beyond the end of ``data``, not all has come yet. This is called again when ``data``
        reaches that far, so it must not be farther than what is known to be needed. There is at least one byte.

        Raises:
            LimitError: its size is over ``limit_bytes``.
            FramingError: this is no head, or what follows the message isn't what must.
        """
        raise NotImplementedError

    def wrap(self, message: bytes) -> bytes:
        """The message as it is to be sent.

        Raises:
            ValueError: it is longer than a head can say.
        """
        raise NotImplementedError


class LengthPrefix(Framing):
    """A message after its length in bytes, which is an unsigned integer of fixed size.

    Args:
        size: how many bytes the length takes: 1 to 8, most often 1, 2, 4 or 8.
        byteorder: "big", the order of networks, or "little".
    """

    __slots__ = ("_byteorder", "_size")

    def __init__(self, size: int, byteorder: str = "big") -> None:
        if not 1 <= size <= _MAX_PREFIX_BYTES:
            raise ValueError(f"a length takes 1 to {_MAX_PREFIX_BYTES} bytes, not {size}")
        if byteorder not in ("big", "little"):
            raise ValueError(f'byteorder is "big" or "little", not {byteorder!r}')
        self._size = size
        self._byteorder = byteorder

    def locate(self, data: bytes | bytearray, at: int, limit_bytes: int) -> tuple[int, int, int]:
        start = at + self._size
        if len(data) < start:
            return at, at, start
        size = int.from_bytes(data[at:start], self._byteorder)  # type: ignore[arg-type]
        if size > limit_bytes:
            raise _too_long(limit_bytes)
        end = start + size
        return start, end, end

    def wrap(self, message: bytes) -> bytes:
        try:
            return len(message).to_bytes(self._size, self._byteorder) + message  # type: ignore[arg-type]
        except OverflowError:
            raise ValueError(f"a length of {self._size} bytes can't say {len(message)}") from None


class VarintPrefix(Framing):
    """A message after its length as a varint: seven bits a byte, the lowest first, the eighth bit set in all but the
    last. What Protocol Buffers call "delimited". A length may be written with more bytes than it needs, up to ten.
    """

    __slots__ = ()

    def locate(self, data: bytes | bytearray, at: int, limit_bytes: int) -> tuple[int, int, int]:
        size = shift = 0
        for start, byte in enumerate(data[at : at + _MAX_VARINT_BYTES], at + 1):
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                if size > limit_bytes:
                    raise _too_long(limit_bytes)
                return start, start + size, start + size
            shift += 7
        if shift == 7 * _MAX_VARINT_BYTES:
            raise FramingError(f"a length of more than {_MAX_VARINT_BYTES} bytes is no varint")
        return at, at, len(data) + 1

    def wrap(self, message: bytes) -> bytes:
        head = bytearray()
        size = len(message)
        while size > 0x7F:
            head.append(size & 0x7F | 0x80)
            size >>= 7
        head.append(size)
        return bytes(head) + message


class Netstring(Framing):
    """``5:hello,`` is a message: its length in decimal digits, a colon, its bytes, a comma."""

    __slots__ = ()

    def locate(self, data: bytes | bytearray, at: int, limit_bytes: int) -> tuple[int, int, int]:
        most = len(str(limit_bytes))  # digits
        colon = data.find(b":", at, at + most + 1)
        digits = data[at : at + most + 1] if colon < 0 else data[at:colon]
        if not digits.isdigit() or (len(digits) > 1 and digits[0] == 48):
            shown = bytes(data[at : at + _SHOWN_BYTES])
            raise FramingError(f"expected the length of a netstring, and got {shown!r}")
        if colon < 0:
            if len(digits) > most:
                raise _too_long(limit_bytes)
            return at, at, len(data) + 1
        size = int(digits)
        if size > limit_bytes:
            raise _too_long(limit_bytes)
        start = colon + 1
        end = start + size
        if data[end : end + 1] not in (b",", b""):
            raise FramingError(f"expected a comma after a netstring, and got {bytes(data[end : end + 1])!r}")
        return start, end, end + 1

    def wrap(self, message: bytes) -> bytes:
        return b"%d:%b," % (len(message), message)


class MessageFramer:
    """Cuts a stream of bytes into messages.

    Args:
        framing: how they stand in it.
        limit_bytes: the longest message that is delivered, without its head. No value suits everyone, but there must be
            one, for a message is held in memory until it is complete.

    Attributes:
        error: why nothing more can be cut, once that is so: a `LimitError` or a `FramingError`. There is no way back,
            as nobody knows where the next message begins.
    """

    __slots__ = ("_framing", "_held", "_limit", "_needed", "error")

    def __init__(self, framing: Framing, limit_bytes: int) -> None:
        if limit_bytes < 0:
            raise ValueError(f"limit_bytes must not be negative, got {limit_bytes}")
        self._framing = framing
        self._limit = limit_bytes
        self._held = bytearray()  # the beginning of a message
        self._needed = 0  # how long that must be before it is worth looking at
        self.error: LimitError | FramingError | None = None

    @property
    def in_message(self) -> bool:
        """True when a message has begun and is not complete."""
        return len(self._held) > 0

    @property
    def held_bytes(self) -> int:
        """How much is held of a message that is not complete."""
        return len(self._held)

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that end in ``data``, in order. Look at `error` afterwards: it says why no more will come.

        Raises:
            LimitError, FramingError: the `error` from before.
        """
        if self.error is not None:
            raise self.error
        held = self._held
        if held:
            held += data
            if len(held) < self._needed:
                return []
            data = bytes(held)
            held.clear()
        messages: list[bytes] = []
        locate, limit = self._framing.locate, self._limit
        at, size = 0, len(data)
        try:
            while at < size:
                start, end, after = locate(data, at, limit)
                if after > size:
                    held += data[at:] if at else data
                    self._needed = after - at
                    break
                messages.append(data[start:end])
                at = after
        except (LimitError, FramingError) as error:
            self.error = error.with_traceback(None)  # which leads here, and so to what it is kept in
        return messages

    def dump(self) -> bytes:
        """What another one must be fed to go on from here."""
        return bytes(self._held)

    def finish(self) -> None:
        """The stream has ended.

        Raises:
            IncompleteReadError: in the middle of a message.
        """
        if self._held:
            partial = bytes(self._held)
            self._held.clear()
            raise IncompleteReadError(partial)


def _too_long(limit_bytes: int) -> LimitError:
    return LimitError("max-message", f"a message of more than {limit_bytes} bytes")
