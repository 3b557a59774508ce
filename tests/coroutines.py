"""Coroutines in tests: run in memory on a fake clock, and none of them left behind."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from evloop import Limits, Stream
from evloop.protocols.handlers import Handlers
from evloop.protocols.tasks import Task
from evloop.testing import MemoryLoop, MemoryStream


@pytest.fixture(autouse=True)
def no_task_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test fails that leaves a task which has not ended. Use it by importing it."""
    made: list[Task] = []
    plain = Task.__init__

    def note(task: Task, *args: Any, **named: Any) -> None:
        plain(task, *args, **named)
        made.append(task)

    monkeypatch.setattr(Task, "__init__", note)
    yield
    left = [task for task in made if not task.done]
    assert not left, f"not ended: {left}"


def start(coroutine: Coroutine[Any, Any, Any], loop: MemoryLoop | None = None) -> Task:
    """Run it up to its first wait."""
    task = Task(MemoryLoop() if loop is None else loop, coroutine)
    task.start()
    return task


def run(coroutine: Coroutine[Any, Any, Any], seconds: float = 3600.0, loop: MemoryLoop | None = None) -> Any:
    """Run it to its end on a fake clock, for so many seconds of that at most. Returns or raises what it does."""
    task = start(coroutine, loop)
    runs_in = task.loop
    assert isinstance(runs_in, MemoryLoop)
    runs_in.advance(seconds)
    assert task.done, f"not done within {seconds:g} s: {task}"
    if task.error is not None:
        raise task.error
    return task.result


def handled(
    handler: Callable[[Stream], Coroutine[Any, Any, object]], *, limits: Limits | None = None, **options: Any
) -> MemoryStream:
    """A connection in memory with this handler, whose peer is the test."""
    loop = options.pop("loop", None) or MemoryLoop()
    return MemoryStream(Handlers(loop, handler)(), limits=limits, loop=loop, **options)
