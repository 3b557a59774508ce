"""Control messages as bytes."""

from __future__ import annotations

import struct

import pytest

from evloop.program.workers.messages import HEADER_BYTES, MessageError, body_size, decode, encode


@pytest.mark.parametrize("payload", [b"", b"\0\xff" * 1000])
def test_a_message_comes_out_as_it_went_in(payload):
    fields = {"slot": 3, "names": ["a", "ü\n"], "nothing": None}
    data = encode("serve", fields, payload, 2)
    header, body = data[:HEADER_BYTES], data[HEADER_BYTES:]
    assert body_size(header) == len(body)
    message = decode(header, body, [7, 8])
    assert (message.kind, message.fields, message.payload, message.descriptors) == ("serve", fields, payload, [7, 8])


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"5", b"null", b'{"kind":"x"}', b"\xff"], ids=lambda text: text.decode("latin-1")
)
def test_what_makes_no_sense_is_said_to(text):
    with pytest.raises(MessageError):
        decode(struct.pack("!IHH", len(text), len(text), 0), text, [])


def test_a_length_that_cannot_be_is_not_waited_for():
    with pytest.raises(MessageError):
        body_size(b"GET / HT")
