"""Tasks, scopes, and what they wait for, on a clock that a test moves."""

from __future__ import annotations

import asyncio

import pytest

from coroutines import no_task_is_left, run, start  # noqa: F401  (a fixture)
from evloop import Cancelled, Event, EvloopError, Queue, TaskGroup, sleep, timeout
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


# ---------------------------------------------------------------------- groups and tasks


def test_a_group_ends_when_its_tasks_have():
    async def main(loop: MemoryLoop) -> float:
        began = loop.now
        async with TaskGroup() as group:
            for seconds in (3, 1, 2):
                group.create_task(sleep(seconds))
        return loop.now - began

    loop = MemoryLoop()
    assert run(main(loop), loop=loop) == 3


def test_an_error_cancels_the_others_and_they_clean_up_first():
    cleaned = []

    async def other() -> None:
        try:
            await sleep(1000)
        finally:
            async with timeout(9, shield=True):
                await sleep(3)
            cleaned.append("other")

    async def faulty() -> None:
        await sleep(1)
        raise ValueError("first")

    async def main() -> None:
        async with TaskGroup() as group:
            group.create_task(other())
            group.create_task(faulty())
            await sleep(1000)

    with pytest.raises(ExceptionGroup) as raised:
        run(main(), seconds=5)
    assert cleaned == ["other"]
    assert [str(error) for error in raised.value.exceptions] == ["first"]


def test_errors_of_the_block_and_of_tasks_come_together():
    async def faulty() -> None:
        try:
            await sleep(1000)
        finally:
            raise ValueError("task")

    async def main() -> None:
        async with TaskGroup() as group:
            group.create_task(faulty())
            await sleep(1)
            raise KeyError("block")

    with pytest.raises(ExceptionGroup) as raised:
        run(main())
    assert [type(error) for error in raised.value.exceptions] == [KeyError, ValueError]


def test_a_group_can_be_cancelled_without_an_error():
    async def main() -> str:
        async with TaskGroup() as group:
            group.create_task(sleep(1000))
            await sleep(1)
            group.cancel()
        return "after"

    assert run(main(), seconds=2) == "after"


def test_a_group_waits_for_its_tasks_though_it_is_cancelled_from_outside():
    async def slow_to_end() -> None:
        try:
            await sleep(1000)
        finally:
            async with timeout(None, shield=True):
                await sleep(7)

    async def main(loop: MemoryLoop) -> float:
        began = loop.now
        try:
            async with timeout(1), TaskGroup() as group:
                group.create_task(slow_to_end())
        except TimeoutError:
            return loop.now - began
        raise AssertionError("it was in time")

    loop = MemoryLoop()
    assert run(main(loop), loop=loop) == 8


def test_a_task_that_is_cancelled_before_it_begins_never_does():
    begun = []

    async def work() -> None:
        begun.append(1)

    async def main() -> None:
        async with TaskGroup() as group:
            group.create_task(work()).cancel()
            group.create_task(work())
            group.cancel()
            group.create_task(work())

    run(main())
    assert begun == []


def test_awaiting_a_task_gives_what_it_returns_or_raises_to_all_who_wait():
    async def answer() -> int:
        await sleep(1)
        return 42

    async def main() -> list[int]:
        got = []
        async with TaskGroup() as group:
            task = group.create_task(answer())

            async def wait() -> None:
                got.append(await task)

            impatient = group.create_task(wait())
            for _ in range(2):
                group.create_task(wait())
            await sleep(0.5)
            impatient.cancel()  # one who does not wait any more keeps the others from nothing
        got.append(await task)
        return got

    assert run(main()) == [42, 42, 42]


def test_a_task_that_was_cancelled_is_an_error_to_who_waits_for_it():
    async def main() -> None:
        async with TaskGroup() as group:
            task = group.create_task(sleep(1000))
            await sleep(1)
            task.cancel()
            with pytest.raises(EvloopError, match="was cancelled"):
                await task

    run(main())


def test_a_task_can_not_wait_for_itself():
    async def main() -> None:
        async with TaskGroup() as group:

            async def wait() -> None:
                await task

            task = group.create_task(wait())

    with pytest.raises(ExceptionGroup, match="task group"):
        run(main())


def test_a_group_that_is_over_takes_no_tasks():
    group = TaskGroup()
    with pytest.raises(RuntimeError, match="has not begun"):
        group.create_task(sleep(1))

    async def main() -> None:
        async with group:
            pass
        with pytest.raises(RuntimeError, match="has ended"):
            group.create_task(sleep(1))

    run(main())


def test_an_interrupt_goes_through_the_loop():
    async def main() -> None:
        await sleep(1)
        raise KeyboardInterrupt

    loop = MemoryLoop()
    task = start(main(), loop)
    with pytest.raises(KeyboardInterrupt):
        loop.advance(2)
    task._coroutine = None


# ---------------------------------------------------------------------- events and queues


def test_an_event_wakes_all_and_stays_set():
    async def main() -> list[int]:
        order: list[int] = []
        event = Event()

        async def wait(number: int) -> None:
            await event.wait()
            order.append(number)

        async with TaskGroup() as group:
            for number in range(3):
                group.create_task(wait(number))
            await sleep(1)
            event.set()
            event.set()
            assert event.is_set()
        await wait(3)
        return order

    assert run(main()) == [0, 1, 2, 3]


def test_a_queue_keeps_the_order_and_its_bound():
    most = 0

    async def main() -> list[int]:
        nonlocal most
        queue, got = Queue(2), []

        async def produce() -> None:
            nonlocal most
            for number in range(10):
                await queue.put(number)
                most = max(most, len(queue))

        async with TaskGroup() as group:
            group.create_task(produce())
            await sleep(1)
            for _ in range(10):
                got.append(await queue.get())
        return got

    assert run(main()) == list(range(10))
    assert most == 2


@pytest.mark.parametrize("cancelled_first", [True, False])
def test_no_item_is_lost_with_a_getter_that_is_cancelled(cancelled_first):
    async def main() -> list[str]:
        queue, got = Queue(5), []

        async def take(name: str) -> None:
            got.append(name + await queue.get())

        async with TaskGroup() as group:
            first = group.create_task(take("first "))
            group.create_task(take("second "))
            await sleep(1)
            if cancelled_first:
                first.cancel()
            queue.put_nowait("item")
            if not cancelled_first:
                first.cancel()
            await sleep(1)
            group.cancel()
        return got

    assert run(main()) == ["second item" if cancelled_first else "first item"]


def test_put_nowait_does_not_go_before_those_who_wait():
    async def main() -> list[object]:
        queue = Queue(1)
        queue.put_nowait(1)
        async with TaskGroup() as group:
            group.create_task(queue.put(2))
            await sleep(1)
            got: list[object] = [await queue.get(), queue.put_nowait(3)]
            got.append(await queue.get())
        return got

    assert run(main()) == [1, False, 2]


def test_a_queue_without_a_bound_cannot_be_made():
    with pytest.raises(ValueError, match="at least 1"):
        Queue(0)


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
