"""Starting this program again, as a worker or as a successor, and noticing its end.

By exec, not by fork alone: a reload is there to bring new code, and a fork would keep the old one. The new process gets
the arguments and the environment that this one was started with, the standard streams, and the descriptors that it is
to have; nothing else of ours.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from evloop.core.loop import Loop
from evloop.core.poller import READ
from evloop.errors import EvloopError
from evloop.program.workers.role import ROLE_VARIABLE, Role


class CannotStartAgainError(EvloopError):
    """This program can't be started again: it was read from stdin, say. One line says why, and what to do."""


def command_of_this_program() -> list[str]:
    """What starts this program with the same arguments.

    Raises:
        CannotStartAgainError: nothing does.
    """
    if getattr(sys, "frozen", False):
        return [sys.executable, *sys.argv[1:]]
    arguments = sys.orig_argv[1:]
    main = sys.modules["__main__"]
    if not sys.executable or not (hasattr(main, "__file__") or "-c" in arguments):
        raise CannotStartAgainError("workers are started from a program in a file: write this one to a file first")
    return [sys.executable, *arguments]


class Children:
    """Processes that were started from here. One for a loop.

    Where the system has no descriptors for processes (pidfd), their end is noticed by SIGCHLD.

    Args:
        command: what starts one.
        folder: where it is started; see `evloop.program.terminal.working_folder`.
    """

    def __init__(self, loop: Loop, command: Sequence[str], folder: str) -> None:
        self._loop = loop
        self._command = command
        self._folder = folder
        self._by_signal: dict[int, Child] | None = None
        if not _has_pidfds():
            self._by_signal = {}
            loop.add_signal_handler(signal.SIGCHLD, self._look_at_all)

    def start(
        self,
        role: Role,
        descriptors: Sequence[int],
        on_end: Callable[[int], object],
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        """Start one.

        Args:
            role: what it is to be.
            descriptors: those that it is to have, by the same numbers. Not owned.
            on_end: called once when it has ended, with its exit status; negative: the signal that ended it.
            environment: variables for it, beside those of this process.

        Raises:
            OSError: it can't be started.
        """
        process = subprocess.Popen(
            self._command,
            pass_fds=descriptors,
            env={**os.environ, **(environment or {}), ROLE_VARIABLE: role.as_text(os.getpid())},
            cwd=self._folder,
        )
        child = Child(self._loop, process, on_end)
        if self._by_signal is None:
            try:
                child.watch()
            except BaseException:
                child.discard()
                raise
        else:
            self._by_signal[process.pid] = child
            self._loop.call_soon(self._look_at_all)  # its end may have been faster than this
        return child

    def _look_at_all(self) -> None:
        assert self._by_signal is not None
        for pid, child in list(self._by_signal.items()):
            if child.look():
                del self._by_signal[pid]


def _has_pidfds() -> bool:
    """Whether there are descriptors for processes. Python may know them, and the kernel not, or not allow them."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


class Child:
    """One of them.

    Attributes:
        pid: its number. Nobody else's until its end was noticed.
        ended: whether it was.
    """

    def __init__(self, loop: Loop, process: subprocess.Popen[bytes], on_end: Callable[[int], object]) -> None:
        self.pid = process.pid
        self.ended = False
        self._loop = loop
        self._process = process
        self._on_end = on_end
        self._descriptor: int | None = None

    def watch(self) -> None:
        """Notice its end by its descriptor."""
        self._descriptor = os.pidfd_open(self.pid)
        self._loop.poller.register(self._descriptor, READ, self._handle_readable)

    def _handle_readable(self) -> None:
        self.look()

    def look(self) -> bool:
        """Whether it has ended; says so, the first time."""
        if self.ended:
            return True
        status = self._process.poll()
        if status is None:
            return False
        self.ended = True
        if self._descriptor is not None:
            self._loop.poller.watch(self._descriptor, 0, self._handle_readable)
            os.close(self._descriptor)
        try:
            self._on_end(status)
        except Exception as error:
            self._loop.log_exception(error, "what was to be called at the end of a process raised")
        return True

    def let_go(self) -> None:
        """Its end is nobody's business here any more: this process ends first."""
        if self.ended:
            return
        self.ended = True
        if self._descriptor is not None:
            self._loop.poller.watch(self._descriptor, 0, self._handle_readable)
            os.close(self._descriptor)
        self._process.returncode = 0  # or it warns that nobody has waited for it

    def discard(self) -> None:
        """End it now, and tell nobody."""
        self.signal(signal.SIGKILL)
        self._process.wait()
        self.let_go()

    def signal(self, signum: int) -> None:
        """Send it a signal, unless it has ended."""
        if not self.ended:
            try:
                os.kill(self.pid, signum)
            except ProcessLookupError:  # has ended, and was not waited for yet
                pass


def status_text(status: int) -> str:
    """How a process ended, in words: ``status`` as `subprocess` has it."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was ended by {name}"
