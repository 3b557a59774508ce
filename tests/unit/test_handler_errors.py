"""What a handler raises that comes of its peer is no fault of the handler's, in task groups neither."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from coroutines import handled, no_task_is_left  # noqa: F401  (a fixture)
from evloop import ConnectionLostError, Stream, TaskGroup, sleep

Handler = Callable[[Stream], Coroutine[Any, Any, None]]


async def lines(stream: Stream) -> None:
    async for line in stream.lines():
        stream.write(line + b"\n")


async def pairs(stream: Stream) -> None:
    while True:
        stream.write(await stream.read_exactly(2))


def beside_another_task(handler: Handler) -> Handler:
    async def both(stream: Stream) -> None:
        async with TaskGroup() as group:
            group.create_task(sleep(1000))
            await handler(stream)
            group.cancel()

    return both


def as_a_task(handler: Handler) -> Handler:
    async def task(stream: Stream) -> None:
        async with TaskGroup() as group:
            group.create_task(handler(stream))
            await sleep(1000)

    return task


in_groups = pytest.mark.parametrize(
    "within",
    [beside_another_task, as_a_task, lambda handler: as_a_task(beside_another_task(handler))],
    ids=["block", "task", "nested"],
)


@in_groups
def test_a_reset_is_quiet(within):
    peer = handled(within(lines))
    assert peer.feed(b"x\n") == b"x\n"
    peer.reset()
    assert peer.connection.closing


@in_groups
def test_a_limit_is_said_in_a_line_and_counted(within, logged):
    logged.expect("ended: a line of more than 65536 bytes")
    peer = handled(within(lines))
    peer.feed(b"x" * 70_000)
    assert peer.limits_hit == {"max-line": 1}
    assert peer.connection.closing


@in_groups
def test_an_end_in_the_middle_is_quiet_and_what_was_written_leaves(within):
    peer = handled(within(pairs))
    peer.feed(b"abc")
    peer.eof()
    assert peer.sent == b"ab"
    assert peer.closed
    assert not peer.was_reset


def test_a_fault_that_comes_with_it_is_told():
    async def faulty() -> None:
        try:
            await sleep(1000)
        finally:
            raise ValueError("mine")

    async def handler(stream: Stream) -> None:
        async with TaskGroup() as group:
            group.create_task(faulty())
            await lines(stream)

    peer = handled(handler)
    with pytest.raises(ExceptionGroup) as raised:  # what a loop in memory does with what is to be logged
        peer.reset()
    assert [type(error) for error in raised.value.exceptions] == [ConnectionLostError, ValueError]


def test_another_connection_that_is_lost_is_told():
    async def upstream() -> None:
        raise ConnectionLostError("the other one")

    async def handler(stream: Stream) -> None:
        async with TaskGroup() as group:
            group.create_task(upstream())
            await lines(stream)

    with pytest.raises(ExceptionGroup):
        handled(handler)
