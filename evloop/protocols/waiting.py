"""What tasks wait for beside streams: time, events, queues. All of it belongs to one loop's thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

from evloop.protocols.tasks import DONE, Block, Cancelled, Task, current_task, park

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any


async def sleep(seconds: float) -> None:
    """Wait so long. 0: let everybody else have a turn."""
    task = current_task()
    timer = task.loop.call_later(max(seconds, 0), task.step, task.turn)
    try:
        await park(task)
    finally:
        timer.cancel()


class timeout(Block):
    """``async with timeout(5):`` cancels what is inside after five seconds, and raises TimeoutError then.

    Args:
        seconds: how long; None for ever: then it is a scope to `cancel`.
        shield: what is cancelled outside is not seen inside: for a ``finally`` that has to wait for something, and must
            not wait for ever.
    """

    # A timer for each is too dear for what nearly never happens. So a task has one alarm for all its time-outs: it is
    # set only if it would ring too late, and left when a block ends; one that rings for nothing costs little.

    __slots__ = ("_deadline", "_expired", "_seconds", "_shield")

    def __init__(self, seconds: float | None, *, shield: bool = False) -> None:
        super().__init__()
        self._shield = shield
        self._seconds = seconds
        self._deadline: float | None = None
        self._expired = False

    def __aenter__(self) -> Awaitable[None]:
        task = current_task()
        self._enter(task)
        if self._seconds is not None:
            self._deadline = deadline = task.loop.clock() + self._seconds
            alarm = task.alarm
            if alarm is None or alarm.when > deadline:
                _set_alarm(task, self._seconds)
        return DONE

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Awaitable[bool | None]:
        task = self._exit()
        if kind is Cancelled and self.cancel_called and (self._shield or not task.cancelled):
            if self._expired:
                raise TimeoutError(f"not done within {self._seconds:g} s") from None
            return _true()  # cancelled by hand
        return DONE


def _set_alarm(task: Task, seconds: float) -> None:
    if task.alarm is not None:
        task.alarm.cancel()
    task.alarm = task.loop.call_later(seconds, _ring, task)


def _ring(task: Task) -> None:
    """End those time-outs of a task whose time is over, the outer ones first."""
    task.alarm = None
    now, next_one = task.loop.now, None
    over: list[timeout] = []
    scope = task.scope
    while scope is not task:
        if isinstance(scope, timeout) and scope._deadline is not None and not scope._expired:
            if scope._deadline <= now:
                over.append(scope)
            elif next_one is None or scope._deadline < next_one:
                next_one = scope._deadline
        parent = scope._parent
        assert parent is not None
        scope = parent
    for scope in reversed(over):
        scope._expired = not scope.cancel_called
        scope.cancel()
    if next_one is not None:
        _set_alarm(task, next_one - task.loop.clock())


async def _true() -> bool:
    return True


class Event:
    """Something that happens once, and that any number of tasks wait for."""

    __slots__ = ("_is_set", "_waiters")

    def __init__(self) -> None:
        self._is_set = False
        self._waiters: dict[Task, None] = {}

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._is_set

    def set(self) -> None:
        """It happens: all who wait go on. Safe to call twice."""
        self._is_set = True
        for task in self._waiters:
            task.wake()

    async def wait(self) -> None:
        """Wait until it has happened."""
        task = current_task()
        if self._is_set:
            task.check_cancelled()
            return
        self._waiters[task] = None
        try:
            await park(task)
        finally:
            del self._waiters[task]


class Queue:
    """Things that some tasks put in and others take out, in order.

    Args:
        max_items: `put` waits while there are so many. No default suits everyone, but an endless queue suits nobody.
    """

    __slots__ = ("_getters", "_items", "_max_items", "_putters")

    def __init__(self, max_items: int) -> None:
        if max_items < 1:
            raise ValueError(f"max_items must be at least 1, got {max_items}")
        self._max_items = max_items
        self._items: deque[Any] = deque()
        self._getters: dict[Task, None] = {}
        self._putters: dict[Task, None] = {}

    def __len__(self) -> int:
        return len(self._items)

    def put_nowait(self, item: Any) -> bool:
        """Put it in if there is room and nobody waits for some, and say whether that was so."""
        if self._putters or len(self._items) >= self._max_items:
            return False
        self._items.append(item)
        _wake_first(self._getters)
        return True

    async def put(self, item: Any) -> None:
        """Put it in, when there is room."""
        await _wait_turn(self._putters, lambda: len(self._items) < self._max_items)
        self._items.append(item)
        _wake_first(self._getters)

    async def get(self) -> Any:
        """Take the oldest one out, when there is one."""
        await _wait_turn(self._getters, lambda: len(self._items) > 0)
        item = self._items.popleft()
        _wake_first(self._putters)
        if self._items:
            _wake_first(self._getters)
        return item


def _wake_first(waiters: dict[Task, None]) -> None:
    for task in waiters:
        task.wake()
        return


async def _wait_turn(waiters: dict[Task, None], ready: Callable[[], bool]) -> None:
    """Wait until it is ready; who came first goes first."""
    task = current_task()
    task.check_cancelled()
    if ready() and not waiters:
        return
    waiters[task] = None
    try:
        while not ready() or next(iter(waiters)) is not task:
            await park(task)
    finally:
        del waiters[task]
        if ready():
            _wake_first(waiters)


async def run_in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Call ``function(*args)`` in a thread, and return or raise what it does.

    A cancelled wait ends at once. The function can't be interrupted: it runs on, and what it returns is dropped.
    """
    task = current_task()
    turn = task.turn
    outcome: list[Any] = []

    def done(value: Any) -> None:
        outcome.append(value)
        task.step(turn)

    def failed(error: BaseException) -> None:
        outcome.extend((None, error))
        task.step(turn)

    task.check_cancelled()
    loop: Any = task.loop  # which opens connections, too, and has threads
    job = loop.run_in_thread(function, *args, on_done=done, on_error=failed)
    try:
        await park(task)
    finally:
        job.cancel()
    try:
        if len(outcome) > 1:
            raise outcome[1]
        return outcome[0]
    finally:
        outcome.clear()  # this frame is in the error's traceback
