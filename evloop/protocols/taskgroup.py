"""Tasks that belong together."""

from __future__ import annotations

from collections.abc import Coroutine

from evloop.core.loop import Loop
from evloop.protocols.tasks import Block, Cancelled, Shelter, Task, current_task, park

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any


class TaskGroup(Block):
    """``async with TaskGroup() as group:`` ends when all tasks have ended that were created in it.

    An error in one of them, or in the block itself, cancels the others. `cancel` ends them all, and the block, without
    an error.

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
        task = _Member(self._task.loop, coroutine, self)
        self._tasks[task] = None
        task.loop.call_soon(task.begin)
        return task

    def _tell_members(self) -> None:
        for task in list(self._tasks):
            task._tell()

    def _member_ended(self, task: Task) -> None:
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
        if self._tasks:
            # They are told by the scope; this wait ends when they have ended, and so must not be cut short itself.
            shelter = Shelter()
            shelter._enter(task)
            try:
                while self._tasks:
                    self._waiting = True
                    await park(task)
            finally:
                shelter._exit()
        self._exit()
        if error is not None and not isinstance(error, Cancelled):
            self._errors.insert(0, error)
        if self._errors:
            errors, self._errors = self._errors, []
            raise BaseExceptionGroup("errors in a task group", errors)
        if error is None:
            task.check_cancelled()
        return kind is Cancelled and self.cancel_called and not task.cancelled


class _Member(Task):
    """A task of a group."""

    __slots__ = ("_group",)

    def __init__(self, loop: Loop, coroutine: Coroutine[Any, Any, Any], group: TaskGroup) -> None:
        super().__init__(loop, coroutine, group)
        self._group: TaskGroup | None = group

    def _ended(self) -> None:
        group, self._group = self._group, None
        assert group is not None
        group._member_ended(self)
