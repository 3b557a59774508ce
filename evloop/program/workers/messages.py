"""What a supervisor and its workers say to each other, as bytes. No I/O.

A message is a *kind*, one word, and fields by name; it may have a payload, bytes that are nobody's business on the way;
and descriptors, which travel beside the bytes (see `evloop.program.workers.channel`). On the wire::

    4 bytes   how long the rest is
    2 bytes   how much of the rest is JSON: the fields, the kind as "is" among them
    2 bytes   how many descriptors belong to it
    JSON, then the payload

Both ends are processes of one service. They may be of different versions of it while it is upgraded, so who reads a
message takes the fields that it knows, and ignores kinds that it does not know.
"""

from __future__ import annotations

import json
import struct

from evloop.errors import EvloopError

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

_HEADER = struct.Struct("!IHH")
HEADER_BYTES = _HEADER.size

# The kernel passes no more at once (SCM_MAX_FD).
MAX_DESCRIPTORS = 253

# More than a state of a connection can be. What says that it is longer is no message.
_MAX_BYTES = 256 * 1024 * 1024


class MessageError(EvloopError):
    """These bytes are no message."""


class Message:
    """One message.

    Attributes:
        kind: what it is, in one word.
        fields: what it says: anything that JSON has.
        payload: bytes.
        descriptors: open ones, which belong to whoever takes the message. Fewer than were sent if this process had no
            descriptor left for them.
    """

    __slots__ = ("descriptors", "fields", "kind", "payload")

    def __init__(self, kind: str, fields: dict[str, Any], payload: bytes, descriptors: list[int]) -> None:
        self.kind = kind
        self.fields = fields
        self.payload = payload
        self.descriptors = descriptors


def encode(kind: str, fields: dict[str, Any], payload: bytes = b"", descriptors: int = 0) -> bytes:
    """A message as bytes.

    Args:
        descriptors: how many belong to it.
    """
    text = json.dumps({"is": kind, **fields}, separators=(",", ":")).encode()
    assert descriptors <= MAX_DESCRIPTORS
    return _HEADER.pack(len(text) + len(payload), len(text), descriptors) + text + payload


def body_size(header: bytes) -> int:
    """How many bytes follow these first `HEADER_BYTES` ones.

    Raises:
        MessageError: it can't be the beginning of a message.
    """
    size: int = _HEADER.unpack(header)[0]
    if size > _MAX_BYTES:
        raise MessageError(f"a message of {size} bytes")
    return size


def decode(header: bytes, body: bytes, descriptors: list[int]) -> Message:
    """The message.

    Args:
        header: its first `HEADER_BYTES`.
        body: all the rest.
        descriptors: those that have come with it.

    Raises:
        MessageError: it is none.
    """
    text_size = _HEADER.unpack(header)[1]
    try:
        fields = json.loads(body[:text_size])
        kind = fields.pop("is")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise MessageError(f"a message that makes no sense: {error}") from None
    return Message(kind, fields, body[text_size:], descriptors)
