"""The timer queue: order, cancelling, compaction, and a model of it."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from evloop.core.timers import Timer, TimerQueue


def run_due(queue: TimerQueue, now: float) -> None:
    while (due := queue.pop_due(now)) is not None:
        callback, args = due
        callback(*args)


def heap_size(queue: TimerQueue) -> int:
    """Entries held in memory, dead ones included: what compaction is there to bound."""
    return len(queue._heap)


def test_an_empty_queue_has_nothing_due():
    queue = TimerQueue()
    assert len(queue) == 0
    assert queue.next_due() is None
    assert queue.pop_due(1e9) is None


def test_a_timer_is_due_at_its_moment_and_not_before():
    queue = TimerQueue()
    queue.add(5.0, print, "x")
    assert queue.next_due() == 5.0
    assert queue.pop_due(4.999999) is None
    assert queue.pop_due(5.0) == (print, ("x",))
    assert queue.pop_due(5.0) is None


def test_timers_fire_in_the_order_they_are_due():
    queue, fired = TimerQueue(), []
    for when in (3, 1, 2, 0, 4):
        queue.add(when, fired.append, when)
    run_due(queue, 3)
    assert fired == [0, 1, 2, 3]
    assert queue.next_due() == 4


def test_timers_due_at_the_same_moment_fire_in_the_order_they_were_added():
    queue, fired = TimerQueue(), []
    for number in range(100):
        queue.add(7, fired.append, number)
    run_due(queue, 7)
    assert fired == list(range(100))


def test_a_cancelled_timer_does_not_fire():
    queue, fired = TimerQueue(), []
    timers = [queue.add(n, fired.append, n) for n in range(4)]
    timers[0].cancel()
    timers[2].cancel()
    assert len(queue) == 2
    assert queue.next_due() == 1
    run_due(queue, 10)
    assert fired == [1, 3]
    assert len(queue) == 0


def test_cancelling_twice_counts_once():
    queue = TimerQueue()
    timer, other = queue.add(1, print), queue.add(2, print)
    timer.cancel()
    timer.cancel()
    assert len(queue) == 1
    assert other.active


def test_cancelling_after_it_fired_changes_nothing():
    queue = TimerQueue()
    timer, _ = queue.add(1, int), queue.add(2, int)
    run_due(queue, 1)
    assert not timer.active
    timer.cancel()
    assert len(queue) == 1
    assert queue.next_due() == 2


def test_a_callback_can_cancel_a_timer_that_is_due_at_the_same_moment():
    queue, fired = TimerQueue(), []
    queue.add(1, lambda: victim.cancel())
    victim = queue.add(1, fired.append, "victim")
    queue.add(1, fired.append, "last")
    run_due(queue, 1)
    assert fired == ["last"]


def test_a_callback_can_cancel_its_own_timer():
    queue = TimerQueue()
    timer = queue.add(1, lambda: timer.cancel())
    queue.add(2, int)
    run_due(queue, 1)
    assert len(queue) == 1


def test_a_timer_added_by_a_callback_for_now_fires_too():
    queue, fired = TimerQueue(), []
    queue.add(1, lambda: queue.add(1, fired.append, "added"))
    run_due(queue, 1)
    assert fired == ["added"]


def test_a_timer_added_after_the_newest_that_counts_waits():
    # So a loop takes all that are due in one pass, and a callback that adds one for now can't keep it there for ever.
    queue, fired = TimerQueue(), []
    queue.add(1, fired.append, "old")
    newest = queue.newest
    queue.add(0, fired.append, "new")
    assert queue.pop_due(5, newest) is None  # the new one is first; it is for the next pass, and the old one with it
    queue.add(2, fired.append, "newer")
    run_due(queue, 5)
    assert fired == ["new", "old", "newer"]


def test_a_timer_tells_whether_it_is_active():
    queue = TimerQueue()
    timer = queue.add(1.5, print)
    assert timer.active
    assert timer.when == 1.5
    assert "1.5" in repr(timer)
    assert "print" in repr(timer)
    timer.cancel()
    assert not timer.active
    assert "done" in repr(timer)


def test_a_cancelled_timer_holds_its_callback_and_arguments_no_longer():
    queue = TimerQueue()
    timer = queue.add(1, print, object())
    timer.cancel()
    assert timer.callback is None
    assert timer.args == ()


def test_arming_and_cancelling_forever_takes_no_memory():
    # A time-out per request, never reached: the dead entries lie far in the future and are never popped.
    queue = TimerQueue()
    queue.add(1e9, print)
    biggest = 0
    for n in range(20_000):
        queue.add(1e6 + n, print).cancel()
        biggest = max(biggest, heap_size(queue))
    assert len(queue) == 1
    assert biggest < 200


def test_compaction_keeps_memory_in_proportion_to_live_timers():
    queue = TimerQueue()
    timers = [queue.add(n, print) for n in range(10_000)]
    for timer in timers[1000:]:
        timer.cancel()
    assert len(queue) == 1000
    assert heap_size(queue) <= 2 * 1000 + 1


def test_compaction_keeps_order():
    queue, fired = TimerQueue(), []
    timers = [queue.add(n // 4, fired.append, n) for n in range(1000)]
    for number, timer in enumerate(timers):
        if number % 10:
            timer.cancel()
    run_due(queue, 1000)
    assert fired == list(range(0, 1000, 10))


def test_compaction_while_timers_fire():
    queue, fired = TimerQueue(), []
    queue.add(0, lambda: [timer.cancel() for timer in victims])
    victims = [queue.add(0, fired.append, "victim") for _ in range(500)]
    survivors = [queue.add(1, fired.append, n) for n in range(3)]
    run_due(queue, 2)
    assert fired == [0, 1, 2]
    assert not any(timer.active for timer in survivors)


# A program for the model: add a timer (its moment), cancel the one with this index, or let time pass.
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 20)),
        st.tuples(st.just("cancel"), st.integers(0, 400)),
        st.tuples(st.just("pass"), st.integers(0, 5)),
    ),
    max_size=400,
)


@given(steps)
def test_model_a_sorted_list(program: list[tuple[str, int]]):
    queue = TimerQueue()
    model: list[tuple[float, int]] = []  # (when, number), sorted: what should still fire
    timers: list[Timer] = []
    fired: list[int] = []
    now = 0
    for step, value in program:
        if step == "add":
            model.append((now + value, len(timers)))
            timers.append(queue.add(now + value, fired.append, len(timers)))
        elif step == "cancel" and timers:
            number = value % len(timers)
            timers[number].cancel()
            model = [entry for entry in model if entry[1] != number]
        elif step == "pass":
            now += value
            fired.clear()
            run_due(queue, now)
            assert fired == [number for when, number in sorted(model) if when <= now]
            model = [entry for entry in model if entry[0] > now]
        assert len(queue) == len(model)
        assert queue.next_due() == min((when for when, _ in model), default=None)
        assert {n for n, timer in enumerate(timers) if timer.active} == {n for _, n in model}


@settings(max_examples=30)
@given(st.lists(st.booleans(), min_size=100, max_size=400))
def test_model_bounded_memory(cancels: list[bool]):
    queue = TimerQueue()
    timers: list[Any] = []
    for cancel in cancels:
        timers.append(queue.add(len(timers), print))
        if cancel:
            timers.pop(0).cancel()
        assert heap_size(queue) <= max(2 * len(queue) + 1, len(queue) + 65)


def test_a_timer_added_by_a_timer_waits_for_the_next_round() -> None:
    timers = TimerQueue()
    fired = []

    def again() -> None:
        fired.append("again")
        timers.add(1.0, again)

    timers.add(1.0, again)
    newest = timers.newest
    while (due := timers.pop_due(1.0, newest)) is not None:
        due[0](*due[1])
    assert fired == ["again"]
    assert timers.pop_due(1.0) is not None
