"""The send queue against a plain bytes object, and its costs: bounded memory, linear work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evloop.net.buffers import BLOCK_BYTES, SendQueue


def drain(queue: SendQueue, step: int) -> bytes:
    """Send everything, at most ``step`` bytes at a time."""
    out = bytearray()
    while queue:
        piece = bytes(queue.peek()[:step])
        assert piece, "a queue that is not empty offers something"
        out += piece
        queue.advance(len(piece))
    return bytes(out)


def test_an_empty_queue():
    queue = SendQueue()
    assert len(queue) == 0
    assert bytes(queue.peek()) == b""
    queue.advance(0)


def test_peek_does_not_take():
    queue = SendQueue()
    queue.append(b"abc")
    assert bytes(queue.peek()) == b"abc"
    assert bytes(queue.peek()) == b"abc"
    assert len(queue) == 3


def test_order_across_small_and_large_pieces():
    queue = SendQueue()
    pieces = [b"small", b"L" * BLOCK_BYTES, b"", b"x", b"y" * (BLOCK_BYTES - 1), b"z" * (3 * BLOCK_BYTES + 1), b"end"]
    for piece in pieces:
        queue.append(piece)
    assert len(queue) == sum(map(len, pieces))
    assert drain(queue, 10_000) == b"".join(pieces)


def test_appending_between_peek_and_advance():
    queue = SendQueue()
    queue.append(b"one")
    offered = queue.peek()
    queue.append(b"two")
    assert bytes(offered) == b"one"
    queue.advance(2)
    assert drain(queue, 100) == b"etwo"


def test_small_pieces_leave_together():
    queue = SendQueue()
    for _ in range(1000):
        queue.append(b"42\n")
    assert len(queue.peek()) == 3000


def test_a_large_piece_is_not_copied():
    large = bytes(BLOCK_BYTES * 4)
    queue = SendQueue()
    queue.append(large)
    assert queue.peek().obj is large
    queue.advance(BLOCK_BYTES)
    assert queue.peek().obj is large


def test_one_offer_is_bounded():
    queue = SendQueue()
    queue.append(bytes(BLOCK_BYTES * 4))
    assert len(queue.peek()) == BLOCK_BYTES


@pytest.mark.parametrize("sent", [-1, 4, BLOCK_BYTES])
def test_advance_refuses_what_was_not_offered(sent):
    queue = SendQueue()
    queue.append(b"abc")
    queue.peek()
    with pytest.raises(ValueError, match="cannot drop"):
        queue.advance(sent)
    assert drain(queue, 100) == b"abc"


def test_advance_refuses_on_an_empty_queue():
    with pytest.raises(ValueError, match="cannot drop"):
        SendQueue().advance(1)


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=20),
            st.integers(BLOCK_BYTES - 2, 2 * BLOCK_BYTES + 2).map(lambda size: b"%08d" % size + bytes(size - 8)),
            st.integers(0, BLOCK_BYTES),  # send so many bytes of what is offered
        ),
        max_size=40,
    )
)
def test_model_bytes(steps: list[bytes | int]):
    queue = SendQueue()
    model = b""
    for step in steps:
        if isinstance(step, int):
            offered = bytes(queue.peek())
            assert model.startswith(offered)
            assert bool(offered) == bool(model)
            sent = min(step, len(offered))
            queue.advance(sent)
            model = model[sent:]
        else:
            queue.append(step)
            model += step
        assert len(queue) == len(model)
        assert bool(queue) == bool(model)
    assert drain(queue, BLOCK_BYTES) == model


def test_memory_of_many_tiny_pieces_is_their_bytes():
    # Kept as an object each they would cost over ten times that.
    queue = SendQueue()
    pieces = [b"%02d\n" % (n % 100) for n in range(100)]
    tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy cannot count memory so")
    tracemalloc.start()
    try:
        for _ in range(3000):
            for piece in pieces:
                queue.append(piece)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(queue) == 900_000
    assert held < 1.2 * 900_000 + 2 * BLOCK_BYTES


def test_bytes_that_left_give_their_memory_back():
    queue = SendQueue()
    tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy cannot count memory so")
    tracemalloc.start()
    try:
        for n in range(64):
            queue.append(b"%02d" % n * (BLOCK_BYTES // 2))
        for _ in range(63):
            queue.advance(len(queue.peek()))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(queue) == BLOCK_BYTES
    assert held < 3 * BLOCK_BYTES


def test_a_slow_reader_costs_no_copies():
    # 4 MiB that leave 16 bytes at a time: dropping a prefix by copying the rest would move half a terabyte.
    large = bytes(4 << 20)
    queue = SendQueue()
    queue.append(large)
    while len(queue) > 16:
        offered = queue.peek()
        assert offered.obj is large
        queue.advance(16)


def test_a_piece_given_back_while_a_view_of_it_is_held():
    # The tail is a bytearray; a view of it would make growing it a BufferError.
    queue = SendQueue()
    queue.append(b"abc")
    view = queue.peek()
    queue.advance(3)
    queue.append(b"def")
    assert bytes(view) == b"abc"
    assert bytes(queue.peek()) == b"def"
