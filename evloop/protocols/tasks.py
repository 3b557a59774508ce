"""Coroutines on the loop: tasks, groups of them, and how they wait and are cancelled.

Theory of operation
-------------------
There is no scheduler. A task is a generator around the user's coroutine, and whoever has what the task waits for calls
the generator's ``send``. For a task that reads a stream that is the connection itself: ``send`` is its data handler,
what goes in is the chunk received, and what comes out is the reply (see `evloop.protocols.streams`). Everything else
*parks* the task: it notes the number of the task's turn, and wakes it by `Loop.call_soon` with that number. A turn
number is never used twice, so a wake that comes late (the timer of a sleep that was cancelled) means nothing.

Cancellation is a state, not an event. A `Scope` that was cancelled makes every wait inside it raise `Cancelled`, again
and again, until the scope is left; so a ``finally`` or an ``except`` that waits can't undo it by accident. It is looked
at only where a task waits: between two waits nothing is interrupted. A shielded scope does not see what is cancelled
around it: that is how a ``finally`` cleans up in bounded time.

What is guaranteed:

* A task that is cancelled before it has begun never begins.
* A wait in a cancelled scope raises even if what it waits for is there already.
* `TaskGroup` ends when all its tasks have ended, and not before, whatever was raised or cancelled.
* `sleep(0)` lets everybody else have one turn.
* An interrupt (KeyboardInterrupt) is no error of a task: it goes through the loop.

The names are those of asyncio where they mean the same. `Cancelled` is not asyncio's CancelledError, as it comes back.
"""

from __future__ import annotations

import types
from _thread import _local
from collections.abc import Callable, Coroutine, Generator

from evloop.core.loop import Loop
from evloop.errors import EvloopError

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any


class Cancelled(BaseException):
    """Raised by a wait in a cancelled scope. Let it pass: the scope that was cancelled catches it."""


class ForeignAwaitableError(EvloopError, TypeError):
    """A task awaited something that was made for another event loop. The text says what."""


@types.coroutine
def _nothing() -> Generator[None, None, None]:
    return
    yield


# A generator that has ended: to await it costs one instruction, however often.
DONE: Any = _nothing()
for _ in DONE:
    pass


class _Running(_local):
    """Whose task is running in this thread: that of the loop which runs in it."""

    loop: Loop | None = None


_running = _Running()


def current_task() -> Task:
    """The task that is running.

    Raises:
        RuntimeError: not in a task.
    """
    loop = _running.loop
    task = None if loop is None else loop.task
    if task is None:
        raise RuntimeError("this can only be awaited in a task: in a handler that a server or a task group has started")
    found: Task = task
    return found


class Scope:
    """What is cancelled together: a tree, whose leaves wait.

    Attributes:
        cancel_called: whether `cancel` was.
    """

    __slots__ = ("_children", "_parent", "_shield", "_task", "cancel_called")

    def __init__(self, shield: bool = False) -> None:
        self.cancel_called = False
        self._shield = shield
        self._task: Task | None = None  # in which it was entered
        self._parent: Scope | None = None
        self._children: dict[Scope, None] | None = None

    def cancel(self) -> None:
        """Make every wait inside raise `Cancelled`, those that are waiting now included. Safe to call twice."""
        if not self.cancel_called:
            self.cancel_called = True
            self._tell()

    def _enter(self, task: Task) -> None:
        self._join(task.scope)
        self._task = task
        task.scope = self
        if self._shield:
            task.cancelled = False

    def _exit(self) -> Task:
        task = self._task
        assert task is not None
        assert self._parent is not None
        task.scope = self._parent
        self._leave()
        task.cancelled = task.scope._is_cancelled()
        return task

    def _join(self, parent: Scope | None) -> None:
        self._parent = parent
        if parent is not None:
            if parent._children is None:
                parent._children = {}
            parent._children[self] = None

    def _leave(self) -> None:
        parent, self._parent = self._parent, None
        if parent is not None and parent._children is not None:
            del parent._children[self]

    def _is_cancelled(self) -> bool:
        scope: Scope | None = self
        while scope is not None:
            if scope.cancel_called:
                return True
            scope = None if scope._shield else scope._parent
        return False

    def _tell(self) -> None:
        """Have the tasks that wait inside of this scope look again."""
        task = self._task
        if task is not None and task.scope is self:
            task._look_at_scopes()
        for child in list(self._children or ()):
            if not child._shield:
                child._tell()


class Task(Scope):
    """A coroutine that runs. Made by a server for each connection, and by `TaskGroup.create_task`.

    To await it is to wait for its result, or for what it raised.

    Attributes:
        loop: the loop it runs in.
        scope: the innermost scope that it is in.
        cancelled: whether its next wait raises `Cancelled`.
        turn: how often it has waited otherwise than for a stream.
        result, error: what it returned or raised; None before.
        done: whether it has ended.
    """

    __slots__ = (
        "_deaf",
        "_main",
        "_on_done",
        "cancelled",
        "done",
        "error",
        "loop",
        "result",
        "scope",
        "stream",
        "turn",
    )

    def __init__(
        self,
        loop: Loop,
        coroutine: Coroutine[Any, Any, Any],
        parent: Scope | None = None,
        on_done: Callable[[Task], object] | None = None,
    ) -> None:
        super().__init__()
        self._join(parent)
        self._task = self
        self.loop = loop
        self.scope: Scope = self
        self.stream: Any = None  # whose data handler it is
        self.turn = 0
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.cancelled = parent is not None and parent._is_cancelled()
        self._deaf = False
        self._on_done = on_done
        self._main: Generator[bytes | None, Any, None] | None = _drive(self, coroutine)

    @property
    def send(self) -> Callable[[Any], bytes | None]:
        """Goes on with the task, which gets the value and returns what is to be sent on the stream it reads."""
        assert self._main is not None
        return self._main.send

    def start(self) -> bytes | None:
        """Run it up to its first wait, at once."""
        loop = self.loop
        if _running.loop is not loop:
            _running.loop = loop
        before, loop.task = loop.task, self
        try:
            reply = self.send(None)
            _check_foreign(reply)
        finally:
            loop.task = before
        return reply

    def step(self, turn: int) -> None:
        """Go on, if the task still is in that turn. For whoever it waits for."""
        if turn == self.turn and not self.done:
            try:
                self.start()
            except ForeignAwaitableError as error:
                self._throw_in(error)

    def check_cancelled(self) -> None:
        """Raise `Cancelled` in a scope that is: for whatever could be waited for and need not be."""
        if self.cancelled and not self._deaf:
            raise Cancelled

    def wake(self) -> None:
        """Have it go on soon. For whoever it waits for."""
        self.loop.call_soon(self.step, self.turn)

    def _look_at_scopes(self) -> None:
        self.cancelled = self.scope._is_cancelled()
        if self.cancelled:
            self.loop.call_soon(self._throw)

    def _throw(self) -> None:
        if self.cancelled and not self.done and not self._deaf:
            self._throw_in(Cancelled())

    def _throw_in(self, error: BaseException) -> None:
        loop = self.loop
        _running.loop = loop
        before, loop.task = loop.task, self
        try:
            assert self._main is not None
            self._main.throw(error)
        finally:
            loop.task = before

    def __await__(self) -> Generator[Any, Any, Any]:
        if not self.done:
            waiter = current_task()
            before = self._on_done

            def done(task: Task) -> None:
                if before is not None:
                    before(task)
                waiter.wake()

            self._on_done = done
            try:
                yield from park(waiter)
            finally:
                if not self.done:
                    self._on_done = before
        else:
            current_task().check_cancelled()
        if isinstance(self.error, Cancelled):
            raise EvloopError("the task was cancelled")  # that is no reason to cancel who waits for it
        if self.error is not None:
            raise self.error
        return self.result

    def __repr__(self) -> str:
        return f"<Task {'done' if self.done else 'cancelled' if self.cancelled else 'running'} turn={self.turn}>"


@types.coroutine
def _drive(task: Task, coroutine: Coroutine[Any, Any, Any]) -> Generator[bytes | None, Any, None]:
    """All of a task's life. What it yields is what its stream is to send."""
    try:
        if task.cancelled:
            coroutine.close()
            raise Cancelled
        task.result = yield from coroutine
    except (Exception, Cancelled) as error:
        task.error = error
    task.done = True
    task._leave()
    on_done, task._on_done = task._on_done, None
    if on_done is not None:
        on_done(task)
    reply = None
    if task.stream is not None:
        reply = task.stream._detach()
    # A task refers to itself in two ways: cut here, so that it goes now and not when the collector comes round.
    task._main = None
    task._task = None
    task.scope = _NO_SCOPE
    yield reply


_NO_SCOPE = Scope()


def _check_foreign(yielded: object) -> None:
    if yielded is not None and not isinstance(yielded, bytes):
        kind = f"{type(yielded).__module__}.{type(yielded).__qualname__}"
        raise ForeignAwaitableError(
            f"a task awaited a {kind}, which another event loop would have to bring on: use what evloop has for it"
        )


@types.coroutine
def park(task: Task) -> Generator[bytes | None, Any, None]:
    """Wait until `Task.wake`, or `Task.step` with this turn. A caller undoes what it has arranged, in a ``finally``."""
    task.check_cancelled()
    stream = task.stream
    reply = None if stream is None else stream._detach()
    try:
        yield reply
    finally:
        task.turn += 1


# ---------------------------------------------------------------------- tasks that belong together


class TaskGroup(Scope):
    """``async with TaskGroup() as group:`` ends when all tasks have ended that were created in it.

    An error in one of them, or in the block itself, cancels the others.

    Raises:
        BaseExceptionGroup: what they raised, together; at the end of the block.
    """

    __slots__ = ("_errors", "_tasks", "_waiting")

    def __init__(self) -> None:
        super().__init__()
        self._tasks: dict[Task, None] = {}
        self._errors: list[BaseException] = []
        self._waiting = False

    async def __aenter__(self) -> TaskGroup:
        self._enter(current_task())
        return self

    def create_task(self, coroutine: Coroutine[Any, Any, Any]) -> Task:
        """Run a coroutine beside the others; it begins in this pass of the loop or the next."""
        if self._task is None:
            coroutine.close()
            raise RuntimeError("this task group has not begun, or has ended")
        task = Task(self._task.loop, coroutine, self, self._task_ended)
        self._tasks[task] = None
        task.wake()
        return task

    def _task_ended(self, task: Task) -> None:
        del self._tasks[task]
        if task.error is not None and not isinstance(task.error, Cancelled):
            self._errors.append(task.error)
            self.cancel()
        if not self._tasks and self._waiting:
            self._waiting = False
            assert self._task is not None
            self._task.wake()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        task = self._task
        assert task is not None
        if error is not None:
            self.cancel()
        while self._tasks:
            # The tasks are told by the scope; this wait ends when they have ended, and so must not be cut short itself.
            self._waiting = task._deaf = True
            try:
                await park(task)
            finally:
                task._deaf = False
        self._exit()
        self._task = None
        if error is not None and not isinstance(error, Cancelled):
            self._errors.insert(0, error)
        if self._errors:
            errors, self._errors = self._errors, []
            raise BaseExceptionGroup("errors in a task group", errors)
        return kind is Cancelled and self.cancel_called and not task.cancelled
