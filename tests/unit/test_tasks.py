"""Tasks, scopes, and what they wait for, on a clock that a test moves."""

from __future__ import annotations

import asyncio

import pytest

from coroutines import no_task_is_left, run, start  # noqa: F401  (a fixture)
from evloop import Cancelled, Event, Queue, TaskGroup, sleep, timeout
from evloop.protocols.tasks import ForeignAwaitableError
from evloop.testing import MemoryLoop

# ---------------------------------------------------------------------- each wait, ready and not, cancelled and not


async def wait_for_event(ready: bool) -> None:
    event = Event()
    if ready:
        event.set()
    await event.wait()


async def get(ready: bool) -> None:
    queue = Queue(1)
    if ready:
        assert queue.put_nowait(1)
    await queue.get()


async def put(ready: bool) -> None:
    queue = Queue(1)
    if not ready:
        assert queue.put_nowait(1)
    await queue.put(2)


async def sleep_or_not(ready: bool) -> None:
    await sleep(0 if ready else 10**6)


async def wait_for_task(ready: bool) -> None:
    async with TaskGroup() as group:
        task = group.create_task(sleep(0))
        if ready:
            await sleep(1)
        else:
            task = group.create_task(sleep(10**6))
        await task


WAITS = [wait_for_event, get, put, sleep_or_not, wait_for_task]


@pytest.mark.parametrize("wait", WAITS)
def test_a_wait_ends_when_what_it_waits_for_is_there(wait):
    run(wait(ready=True), seconds=2)


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("wait", WAITS)
def test_a_wait_in_a_cancelled_scope_raises_each_time_even_if_it_is_ready(wait, ready):
    raised = 0

    async def main() -> None:
        nonlocal raised
        scope = timeout(None)
        async with scope:
            scope.cancel()
            for _ in range(3):
                try:
                    await wait(ready)
                except Cancelled:
                    raised += 1

    run(main())
    assert raised == 3


@pytest.mark.parametrize("wait", WAITS)
def test_a_wait_that_is_cancelled_ends_at_once_and_leaves_nothing(wait):
    loop = MemoryLoop()

    async def main() -> float:
        with pytest.raises(TimeoutError, match="not done within 5 s"):
            async with timeout(5):
                await wait(ready=False)
        return loop.now

    began = loop.clock()
    assert run(main(), loop=loop) - began == 5
    assert loop.timers == 0


# ---------------------------------------------------------------------- time


def test_time_passes_on_the_fake_clock():
    loop = MemoryLoop()
    times = []

    async def main() -> None:
        for _ in range(3):
            await sleep(1000)
            times.append(loop.now)

    began = loop.clock()
    run(main(), loop=loop)
    assert [time - began for time in times] == [1000, 2000, 3000]


def test_sleep_0_is_one_turn_a_pass():
    order = []

    async def worker(name: str) -> None:
        for _ in range(3):
            order.append(name)
            await sleep(0)

    async def main() -> None:
        async with TaskGroup() as group:
            for name in "abc":
                group.create_task(worker(name))

    run(main())
    assert order == list("abcabcabc")


def test_time_outs_inside_of_time_outs():
    async def main() -> str:
        try:
            async with timeout(10):
                try:
                    async with timeout(5):
                        await sleep(6)
                except TimeoutError:
                    await sleep(6)
        except TimeoutError as error:
            return str(error)
        return "none"

    assert run(main()) == "not done within 10 s"


def test_the_outer_time_out_is_not_the_inner_ones():
    async def main() -> None:
        async with timeout(1), timeout(2):
            await sleep(3)

    with pytest.raises(TimeoutError, match="within 1 s"):
        run(main())


def test_a_time_out_that_comes_when_all_is_done_is_none():
    async def main(loop: MemoryLoop) -> None:
        async with timeout(1):
            loop.clock.now += 2  # it works, and does not wait

    loop = MemoryLoop()
    run(main(loop), loop=loop)


def test_a_scope_that_is_cancelled_by_hand_is_left_quietly():
    async def main() -> str:
        scope = timeout(None)
        async with scope:
            scope.cancel()
            await sleep(1)
        return "after"

    assert run(main()) == "after"


def test_a_shield_bounds_what_is_done_in_finally():
    done = []

    async def main() -> None:
        async with timeout(1):
            try:
                await sleep(100)
            finally:
                async with timeout(5, shield=True):
                    await sleep(2)
                    done.append("in time")
                    await sleep(100)

    # It did not come to the end of the first time-out: the second one was raised within it.
    with pytest.raises(TimeoutError, match="within 5 s"):
        run(main())
    assert done == ["in time"]


def test_after_the_shield_it_is_still_cancelled():
    async def main() -> None:
        async with timeout(1):
            try:
                await sleep(100)
            finally:
                async with timeout(5, shield=True):
                    await sleep(2)
                with pytest.raises(Cancelled):
                    await sleep(0)

    with pytest.raises(TimeoutError, match="within 1 s"):
        run(main())


def test_cancelling_cannot_be_undone_by_an_except():
    async def main() -> list[str]:
        seen = []
        async with TaskGroup() as group:

            async def stubborn() -> None:
                for _ in range(3):
                    try:
                        await sleep(10)
                    except Cancelled:
                        seen.append("again")

            task = group.create_task(stubborn())
            await sleep(1)
            task.cancel()
        return seen

    assert run(main()) == ["again"] * 3


# ---------------------------------------------------------------------- what is not ours


class Foreign:
    """An awaitable as other event loops have them: something is passed up to the loop."""

    def __init__(self, what: object) -> None:
        self.what = what

    def __await__(self):
        yield self.what


@pytest.mark.parametrize("begins_with", ["nothing", "a wait"])
@pytest.mark.parametrize(
    ("awaitable", "text"),
    [
        (lambda: Foreign(("trap", 1)), "awaited a builtins.tuple that another event loop"),
        (lambda: Foreign(None), "awaited something that another event loop"),
        (lambda: asyncio.sleep(0), "awaited something that another event loop"),
    ],
)
def test_what_was_made_for_another_loop_is_named(awaitable, text, begins_with):
    async def main() -> None:
        if begins_with == "a wait":
            await sleep(1)
        await awaitable()

    with pytest.raises(ForeignAwaitableError, match=text):
        run(main())


def test_a_function_of_asyncio_that_misses_its_loop_is_explained():
    async def main() -> None:
        await asyncio.sleep(1)

    with pytest.raises(RuntimeError) as raised:
        run(main())
    assert "asyncio works in its own event loop only" in raised.value.__notes__[0]


def test_outside_of_a_task_nothing_can_be_awaited():
    coroutine = sleep(1)
    with pytest.raises(RuntimeError, match="only be awaited in a task"):
        coroutine.send(None)
