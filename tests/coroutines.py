"""Coroutines in tests: run in memory on a fake clock, and none of them left behind."""

from __future__ import annotations

import gc
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from evloop.protocols.tasks import Task
from evloop.testing import MemoryLoop


def unfinished_tasks() -> list[Task]:
    """Those in this process that have not ended. Tasks that nobody can reach any more are among them."""
    return [thing for thing in gc.get_objects() if isinstance(thing, Task) and not thing.done]


@pytest.fixture(autouse=True)
def no_task_is_left() -> Iterator[None]:
    """A test fails that leaves a task which has not ended. Use it by importing it."""
    before = {id(task) for task in unfinished_tasks()}
    yield
    left = [task for task in unfinished_tasks() if id(task) not in before]
    assert not left, f"not ended: {left}"


def start(coroutine: Coroutine[Any, Any, Any], loop: MemoryLoop | None = None) -> Task:
    """Run it up to its first wait."""
    task = Task(MemoryLoop() if loop is None else loop, coroutine)
    task.start()
    return task


def run(coroutine: Coroutine[Any, Any, Any], seconds: float = 3600.0, loop: MemoryLoop | None = None) -> Any:
    """Run it to its end on a fake clock, for so many seconds of that at most. Returns or raises what it does."""
    task = start(coroutine, loop)
    loop = task.loop
    assert isinstance(loop, MemoryLoop)
    loop.advance(seconds)
    assert task.done, f"not done within {seconds:g} s: {task}"
    if task.error is not None:
        raise task.error
    return task.result
