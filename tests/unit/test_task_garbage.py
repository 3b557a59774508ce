"""What has ended is gone at once: nothing of it waits for the collector."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator

import pytest

from coroutines import handled, start
from evloop import Event, Stream, TaskGroup, sleep, timeout
from evloop.net.protocol import Protocol
from evloop.protocols.tasks import Scope
from evloop.testing import MemoryLoop
from interpreters import frees_at_once

pytestmark = frees_at_once


@pytest.fixture
def garbage() -> Iterator[Callable[[], list[object]]]:
    """What only the collector could find so far, of ours and what belongs to coroutines."""
    gc.freeze()  # what exists by now is not looked at: that is quicker than to collect it first
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)

    def found() -> list[object]:
        gc.collect()
        kinds = (Scope, Protocol)
        names = ("coroutine", "async_generator")
        return [thing for thing in gc.garbage if isinstance(thing, kinds) or type(thing).__name__ in names]

    yield found
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()
    gc.unfreeze()


async def in_time() -> None:
    async with timeout(1):
        await sleep(0.5)


async def too_late() -> None:
    async with timeout(1):
        await sleep(5)


async def too_late_twice() -> None:
    try:
        async with timeout(1):
            await Event().wait()
    finally:
        async with timeout(1):
            await sleep(5)


async def fails() -> None:
    await sleep(1)
    raise ValueError


async def waits_for_one_that_fails() -> None:
    async with TaskGroup() as group:
        await group.create_task(fails())


async def is_cancelled() -> None:
    scope = timeout(None)
    async with scope, TaskGroup() as group:
        group.create_task(sleep(5))
        scope.cancel()


# From 3.12 on the frame of a coroutine that has raised refers to that of its caller, so an error leads to its task.
no_cycle = pytest.mark.skipif(sys.version_info >= (3, 12), reason="a task that failed and its error are a cycle here")
failing = [pytest.param(one, marks=no_cycle) for one in (too_late, too_late_twice, fails, waits_for_one_that_fails)]


@pytest.mark.parametrize("function", [in_time, is_cancelled, *failing])
def test_of_a_task(garbage, function):
    loop = MemoryLoop()
    task = start(function(), loop)
    loop.advance(10)
    assert task.done
    del task
    assert garbage() == []


async def lines(stream: Stream) -> None:
    async for line in stream.lines():
        if line == b"raise":
            raise ValueError
        stream.write(line)


async def batches(stream: Stream) -> None:
    async for batch in stream.batches():
        stream.write(b"".join(batch))


async def one_after_another(stream: Stream) -> None:
    while data := await stream.read():
        async with timeout(1):
            await stream.write(data)
            await sleep(0)


@pytest.mark.parametrize("handler", [lines, batches, one_after_another])
@pytest.mark.parametrize("end", ["eof", "reset", "abort", "raise"])
def test_of_a_connection(garbage, handler, end):
    peer = handled(handler)
    peer.feed(b"one\ntwo\nthr")
    if end == "eof":
        peer.eof()
    elif end == "reset":
        peer.reset()
    elif end == "abort":
        peer.connection.abort()
        peer.advance()
    elif handler is lines:
        try:
            peer.feed(b"ee\nraise\n")
        except ValueError:
            pass
    else:
        peer.eof()
    assert peer.closed
    assert peer.connection.closing
    del peer
    assert garbage() == []
