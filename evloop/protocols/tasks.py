"""Coroutines on the loop: tasks, how they wait, and how they are cancelled.

Theory of operation
-------------------
There is no scheduler. A task is a coroutine, and whoever has what it waits for goes on with it: `Task.resume` runs it
up to its next wait, and returns. For a task that reads a stream that is the connection itself, in its data handler (see
`evloop.protocols.conversation`). Everything else *parks* the task: it notes the number of the task's turn, and wakes it
by `Loop.call_soon` with that number. A turn number is never used twice, so a wake that comes late (the timer of a sleep
that was cancelled) means nothing.

Nothing is passed through a wait: it yields None, and is resumed with None. That way what a task waits by can be an
iterator that costs next to nothing, and there is nothing around the user's coroutine that would have to be kept.

``loop.task`` is the task that runs, and None while none does. Who goes on with a task sets it, and what makes it wait
takes it away. So what was made for another event loop, and waits by ways of its own, is found out at once.

Cancellation is a state, not an event. A `Scope` that was cancelled makes every wait inside it raise `Cancelled`, again
and again, until the scope is left; so a ``finally`` or an ``except`` that waits can't undo it by accident. It is looked
at only where a task waits: between two waits nothing is interrupted. A shielded scope does not see what is cancelled
around it: that is how a ``finally`` cleans up in bounded time. What is guaranteed is listed in docs/coroutines.md.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Coroutine, Generator

from evloop.core.loop import Loop
from evloop.core.running import running
from evloop.errors import EvloopError

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

    from evloop.core.timers import Timer


class Cancelled(BaseException):
    """Raised by a wait in a cancelled scope. Let it pass: whoever cancelled the scope deals with it."""


class ForeignAwaitableError(EvloopError, TypeError):
    """A task awaited something that was made for another event loop. The text says what."""


@types.coroutine
def _nothing() -> Generator[None, None, None]:
    return
    yield


# A generator that has ended: to await it costs one instruction, however often.
_ended: Any = _nothing()
for _ in _ended:
    pass
DONE: Awaitable[None] = _ended

# Whose functions raise RuntimeError when their own loop does not run.
_OTHERS = ("anyio", "asyncio", "curio", "sniffio", "trio")


def current_task() -> Task:
    """The task that is running.

    Raises:
        RuntimeError: not in a task.
    """
    loop = running.loop
    task: Task | None = None if loop is None else loop.task
    if task is None:
        raise RuntimeError(
            "this can only be awaited in a task: in a handler that a server has started, or what a task group has"
        )
    return task


class Scope:
    """What is cancelled together. Scopes know what they are in; a task, in which it is now; a group, its tasks.

    Attributes:
        cancel_called: whether `cancel` was.
    """

    __slots__ = ("_parent", "cancel_called")

    _shield = False
    _task: Task | None  # in which it was entered

    def __init__(self) -> None:
        self.cancel_called = False
        self._parent: Scope | None = None

    def cancel(self) -> None:
        """Make every wait inside raise `Cancelled`, those that are waiting now included. Safe to call twice."""
        if not self.cancel_called:
            self.cancel_called = True
            self._tell()

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
        if task is None or task.done:
            return
        inside: list[Scope] = [task.scope]
        while inside[-1] is not self:
            parent = inside[-1]._parent
            assert parent is not None
            inside.append(parent)
        for scope in inside:
            scope._tell_members()
        task._look_at_scopes()  # which minds shields, as the members' do

    def _tell_members(self) -> None:
        """The same for the tasks that are children of this scope: for groups."""


class Block(Scope):
    """A scope that a task enters and leaves: what ``async with`` is for."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        super().__init__()
        self._task: Task | None = None

    def _enter(self, task: Task) -> None:
        if self._task is not None:
            raise RuntimeError(f"this {type(self).__name__} has been entered already")
        self._task = task
        self._parent = task.scope
        task.scope = self
        if self._shield:
            task.cancelled = False

    def _exit(self) -> Task:
        task, parent = self._task, self._parent
        assert task is not None
        assert parent is not None
        self._task = self._parent = None
        task.scope = parent
        if self.cancel_called or self._shield:
            task.cancelled = parent._is_cancelled()
        return task


class Shelter(Block):
    """A block in which nothing is seen of what is cancelled around it."""

    __slots__ = ()

    _shield = True


class Task(Scope):
    """A coroutine that runs. Made by a server for each connection, and by `TaskGroup.create_task`.

    To await it is to wait for its result, or for what it raised. `cancel` is all else that a user needs.

    Attributes:
        loop: the loop it runs in.
        scope: the innermost scope that it is in.
        cancelled: whether its next wait raises `Cancelled`.
        stream: whose data handler it is.
        turn: how often it has waited otherwise than for a stream.
        alarm: when its time-outs are looked at (`evloop.protocols.waiting.timeout`).
        result, error: what it returned or raised; None before.
    """

    __slots__ = ("_coroutine", "_waiters", "alarm", "cancelled", "error", "loop", "result", "scope", "stream", "turn")

    def __init__(self, loop: Loop, coroutine: Coroutine[Any, Any, Any], parent: Scope | None = None) -> None:
        super().__init__()
        self.cancelled = False
        if parent is not None:
            self._parent = parent
            self.cancelled = parent._is_cancelled()
        self.loop = loop
        self.scope: Scope = self
        self.stream: Any = None
        self.turn = 0
        self.alarm: Timer | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self._waiters: dict[Task, None] | None = None  # who awaits it
        self._coroutine: Coroutine[Any, Any, Any] | None = coroutine

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._coroutine is None

    @property
    def _task(self) -> Task:  # type: ignore[override]
        return self

    def start(self) -> None:
        """Run it up to its first wait, at once. Also where the loop does not run yet, and in another task."""
        loop = self.loop
        outer, running.loop = running.loop, loop
        before = loop.task
        try:
            self.resume()
        finally:
            loop.task = before
            running.loop = outer

    def begin(self) -> None:
        """Run it up to its first wait, unless it was cancelled before."""
        if self._coroutine is not None:
            if self.cancelled:
                self.throw(Cancelled())  # into a coroutine that has not begun: it never does
            else:
                self.resume()

    def resume(self) -> None:
        """Run it up to its next wait. It must wait, or not have begun."""
        # On the way of each message: nothing is called here that can be spared.
        coroutine, loop = self._coroutine, self.loop
        assert coroutine is not None
        loop.task = self
        try:
            waits_by = coroutine.send(None)
        except StopIteration as stop:
            self._end(stop.value, None)
        except (Exception, Cancelled) as error:
            self._end(None, error)
        else:
            if waits_by is not None or loop.task is not None:
                self.throw(_foreign(waits_by))

    def step(self, turn: int) -> None:
        """Go on, if the task still is in that turn. For whoever it waits for."""
        if turn == self.turn and self._coroutine is not None:
            self.resume()

    def wake(self) -> None:
        """Have it go on soon. For whoever it waits for."""
        self.loop.call_soon(self.step, self.turn)

    def throw(self, error: BaseException) -> None:
        """Go on with it by an exception, unless it has ended."""
        coroutine, loop = self._coroutine, self.loop
        if coroutine is None:
            return
        loop.task = self
        try:
            waits_by = coroutine.throw(error)
        except StopIteration as stop:
            self._end(stop.value, None)
        except (Exception, Cancelled) as raised:
            self._end(None, raised)
        else:
            if waits_by is not None or loop.task is not None:
                self.throw(_foreign(waits_by))

    def check_cancelled(self) -> None:
        """Raise `Cancelled` in a scope that is: for whatever could be waited for and need not be."""
        if self.cancelled:
            raise Cancelled

    def _look_at_scopes(self) -> None:
        self.cancelled = self.scope._is_cancelled()
        if self.cancelled:
            self.loop.call_soon(self._cancel_now)

    def _cancel_now(self) -> None:
        if self.cancelled:
            self.throw(Cancelled())

    def __await__(self) -> Generator[Any, Any, Any]:
        waiter = current_task()
        if waiter is self:
            raise RuntimeError("a task can't wait for itself")
        if self._coroutine is None:
            waiter.check_cancelled()
        else:
            if self._waiters is None:
                self._waiters = {}
            self._waiters[waiter] = None
            try:
                yield from park(waiter)
            finally:
                if self._waiters is not None:
                    del self._waiters[waiter]
        if isinstance(self.error, Cancelled):
            raise EvloopError("the task was cancelled")  # that is no reason to cancel who waits for it
        if self.error is not None:
            raise self.error
        return self.result

    def _end(self, result: object, error: BaseException | None) -> None:
        """The coroutine is over."""
        self.loop.task = None
        self.result = result
        if error is not None:
            trace = error.__traceback__
            if trace is not None:  # without `resume`; and where it was cancelled is of no interest
                error.__traceback__ = None if isinstance(error, Cancelled) else trace.tb_next
            self.error = error
            del trace
            _explain(error)
            _empty_frames(error)
        if self.alarm is not None:
            self.alarm.cancel()
        if self.stream is not None:
            self.stream.detach()
        self._coroutine = None
        # It refers to itself: cut here, so that it goes now and not when the collector comes round.
        self.scope = NOWHERE
        self._parent = None
        waiters, self._waiters = self._waiters, None
        for task in waiters or ():
            task.wake()
        self._ended()

    def _ended(self) -> None:
        """It has ended: for whoever has started it."""

    def __repr__(self) -> str:
        return f"<Task {'done' if self.done else 'cancelled' if self.cancelled else 'running'} turn={self.turn}>"


# Where a task is that has ended.
NOWHERE = Scope()


@types.coroutine
def park(task: Task) -> Generator[None, None, None]:
    """Wait until `Task.wake`, or `Task.step` with this turn. A caller undoes what it has arranged, in a ``finally``."""
    task.check_cancelled()
    if task.stream is not None:
        task.stream.detach()
    task.loop.task = None
    try:
        yield
    finally:
        task.turn += 1


def _foreign(waits_by: object) -> ForeignAwaitableError:
    """What is raised where something was awaited that another event loop would have to bring on."""
    what = "something" if waits_by is None else f"a {type(waits_by).__module__}.{type(waits_by).__qualname__}"
    return ForeignAwaitableError(
        f"a task awaited {what} that another event loop would have to bring on: use what evloop has for it"
    )


def _empty_frames(error: BaseException) -> None:
    """Empty those frames in an error's traceback that are of these modules: they refer to the task, that to the error.

    Without it a task that has failed would be there until the collector comes round.
    """
    seen: set[int] = set()
    errors: list[BaseException | None] = [error]
    while errors:
        one = errors.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        errors += (one.__context__, one.__cause__)
        if isinstance(one, BaseExceptionGroup):
            errors += one.exceptions
        trace = one.__traceback__
        while trace is not None:
            if trace.tb_frame.f_globals.get("__name__", "").startswith("evloop.protocols."):
                try:
                    trace.tb_frame.clear()
                except RuntimeError:
                    pass  # it is running
            trace = trace.tb_next


def _explain(error: BaseException) -> None:
    """Say in words what is wrong if a function of another event loop complains that its loop is not there."""
    if isinstance(error, RuntimeError) and error.__traceback__ is not None:
        trace = error.__traceback__
        while trace.tb_next is not None:
            trace = trace.tb_next
        name = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
        if name in _OTHERS:
            error.add_note(f"{name} works in its own event loop only, and this is evloop's: use what evloop has for it")
