"""How to wait without sleeping, and loops: run in the test's thread, or in one of their own.

Everything here is bounded in time: a wait that is over its deadline fails the test and says what it waited for.
"""

from __future__ import annotations

import queue
import selectors
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from evloop import EventLoop

T = TypeVar("T")

# How long anything may take before a test gives up. Far above what it takes, also on a busy machine.
DEADLINE_S = 10.0

# Every selector of this platform.
SELECTORS: list[type[selectors.BaseSelector]] = [
    getattr(selectors, name)
    for name in ("EpollSelector", "KqueueSelector", "DevpollSelector", "PollSelector", "SelectSelector")
    if hasattr(selectors, name)
]


def wait_until(condition: Callable[[], T], what: str = "", timeout_s: float = DEADLINE_S) -> T:
    """Poll ``condition`` until it is true and return what it returned. Fails the test when it takes too long."""
    deadline = time.monotonic() + timeout_s
    pause_s = 0.0002
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what or condition}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.01)
    return result


def run_pass(loop: EventLoop) -> None:
    """Run exactly one pass of the loop in this thread; it does not wait for events."""
    loop.call_soon(loop.stop)
    loop.run()


def run_until(loop: EventLoop, condition: Callable[[], object], what: str = "", timeout_s: float = DEADLINE_S) -> None:
    """Run the loop in this thread until ``condition`` is true. Fails the test when it takes too long."""
    deadline = time.monotonic() + timeout_s

    def check() -> None:
        if condition() or time.monotonic() > deadline:
            loop.stop()
        else:
            loop.call_later(0.001, check)

    loop.call_soon(check)
    loop.run()
    assert condition(), f"not within {timeout_s:g} s: {what or condition}"


class LoopThread:
    """An `EventLoop` that runs in a thread of its own. Use it as a context manager; it owns the loop.

    What the loop itself raises (a bug, by its contract) is raised again by `close`.

    Args:
        selector: the selector class to use. Default: the platform's own choice.
    """

    def __init__(self, selector: type[selectors.BaseSelector] | None = None) -> None:
        self.loop = EventLoop(selector=None if selector is None else selector())
        self._fault: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.loop.run()
        except BaseException as error:
            self._fault = error

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run ``function(*args)`` in the loop's thread; return what it returns, raise what it raises."""
        results: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                results.put((function(*args), None))
            except BaseException as error:
                results.put((None, error))

        self.loop.call_soon_threadsafe(run)
        try:
            result, error = results.get(timeout=DEADLINE_S)
        except queue.Empty:
            raise AssertionError(f"the loop did not run {function} within {DEADLINE_S:g} s: {self._fault!r}") from None
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def passes(self, count: int = 2) -> None:
        """Wait until the loop has gone through ``count`` passes: what was ready before has been dealt with."""
        for _ in range(count):
            self.call(int)

    def close(self) -> None:
        """Stop the loop, wait for the thread and close the loop. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the loop did not stop"
        self.loop.close()
        if self._fault is not None:
            raise self._fault

    def __enter__(self) -> LoopThread:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
