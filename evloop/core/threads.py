"""Blocking work, done in a few threads beside the loop, which are there only while they have something to do.

Theory of operation
-------------------
Some work can't be done without blocking: to look up a name, to read a file. A thread does it, and the result comes back
as a call in the loop. So only the function itself runs in another thread, and the rest of the program needs no locks.

Threads are not kept for the next time. As soon as a process has two, the kernel counts references to a descriptor in
each system call, 1.7 % of what a message costs a busy server; and to start a thread costs less than the work that it is
started for. So a thread that finds nothing more to do ends.

There are `MAX_THREADS` at most; more work waits for its turn. Nobody ever waits for a thread, not when the loop is
stopped and not at the end of the process: a silent name server would make them wait for half a minute. For that,
`ThreadPool.close` takes the lock that a thread holds while it hands over its result. After that no thread uses the loop
any more, and the result of a function that is still running is lost.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

# At the same time. What waits for a disk or a name server needs no more, unless it hangs. Each has a stack and wants
# the interpreter's lock; a program that needs hundreds of them does not want an event loop.
MAX_THREADS = 8


def _nothing(result: object) -> None:
    """What is done with a result that nobody wants."""


class Job:
    """A function that runs in a thread, or waits for one. Made by `ThreadPool.run`; `cancel` is all a user calls."""

    __slots__ = ("_args", "_function", "_on_done", "_on_error", "cancelled")

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        on_done: Callable[[Any], object],
        on_error: Callable[[BaseException], object],
    ) -> None:
        self.cancelled = False
        self._function = function
        self._args = args
        self._on_done = on_done
        self._on_error = on_error

    def cancel(self) -> None:
        """No callback is called any more. If it has not begun it never does; else it runs on, for nothing."""
        self.cancelled = True

    def run(self) -> tuple[Callable[[Any], object], Any]:
        """In a thread: call the function. Returns what to call in the loop, and with what."""
        try:
            return self._on_done, self._function(*self._args)
        except BaseException as error:  # SystemExit, too: it would end the thread, and nobody would be told
            return self._on_error, error

    def finish(self, callback: Callable[[Any], object], outcome: Any) -> None:
        """In the loop: tell who asked for it."""
        if not self.cancelled:
            callback(outcome)


class ThreadPool:
    """Runs functions in threads, in the order they came. All methods belong to the loop's thread.

    Args:
        call_soon_threadsafe: the loop's. Results come back by it.
        log_exception: the loop's, for errors that nobody wants to be told.
        max_threads: how many functions may run at the same time.
    """

    def __init__(
        self,
        call_soon_threadsafe: Callable[..., object],
        log_exception: Callable[..., object],
        max_threads: int = MAX_THREADS,
    ) -> None:
        self._call_soon_threadsafe = call_soon_threadsafe
        self._log_exception = log_exception
        self._max_threads = max_threads
        self._lock = threading.Lock()  # for all that follows
        self._waiting: deque[Job] = deque()
        self._threads = 0
        self._closed = False

    @property
    def threads(self) -> int:
        """How many threads there are."""
        return self._threads

    def run(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        on_done: Callable[[Any], object] | None = None,
        on_error: Callable[[BaseException], object] | None = None,
    ) -> Job:
        """Call ``function(*args)`` in a thread, then one of the callbacks in the loop: never before this returns."""
        job = Job(function, args, on_done or _nothing, on_error or self._log)
        with self._lock:
            self._waiting.append(job)
            wanted = self._threads < self._max_threads
            self._threads += wanted
        if wanted:
            try:
                # A daemon: the end of the process does not wait for it.
                threading.Thread(target=self._work, name="evloop worker", daemon=True).start()
            except RuntimeError as error:  # no memory for it, or a limit of the system
                with self._lock:
                    self._threads -= 1
                    stuck = not self._threads and job in self._waiting  # else a thread that there is comes to it
                    if stuck:
                        self._waiting.remove(job)
                if stuck:
                    self._call_soon_threadsafe(job.finish, on_error, error)
        return job

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                job = self._waiting.popleft()
            if job.cancelled:
                continue
            callback, outcome = job.run()
            with self._lock:
                if not self._closed:
                    self._call_soon_threadsafe(job.finish, callback, outcome)

    def _log(self, error: BaseException) -> None:
        self._log_exception(error, "a function that ran in a thread raised")

    def close(self) -> None:
        """Forget what waits, and what the functions that run will return. Waits for none of them."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
