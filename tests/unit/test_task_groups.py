"""Groups of tasks, events and queues."""

from __future__ import annotations

import pytest

from coroutines import no_task_is_left, run, start  # noqa: F401  (a fixture)
from evloop import Event, EvloopError, Queue, TaskGroup, sleep, timeout
from evloop.testing import MemoryLoop

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
