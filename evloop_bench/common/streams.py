"""What is printed, and with which status the program ends.

Python flushes stdout when it ends, and if that fails it prints "Exception ignored" and ends with status 120, whatever
status was meant. And a file object that does not buffer ignores how much the kernel took. So text is written here, byte
by byte accounted for, at the moment at which it is said; a failure is then an error like others, with a status of its
own.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import TextIO

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CANNOT_RUN = 3
EXIT_INVALID = 4
EXIT_NOT_WRITTEN = 5
EXIT_NOT_INSTALLED = 6
EXIT_INTERRUPTED = 130

# Ctrl-C, an orderly end, and a terminal that is gone: all of them end a run early.
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class CannotWrite(Exception):
    """A result did not get where it was to go. The text is one line that says why."""


def print_out(text: str) -> None:
    """Print on stdout, all of it.

    Raises:
        CannotWrite: stdout is closed, its reader gone, or its disk full.
    """
    if sys.stdout is None:
        raise CannotWrite("cannot write to stdout: it is closed")
    try:
        _write(sys.stdout, text + "\n")
    except OSError as error:
        raise CannotWrite(f"cannot write to stdout: {error.strerror}") from None


def print_error(text: str) -> None:
    """Print on stderr. If that can't take it, the exit status has to say it alone."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            _write(sys.stderr, text + "\n")


def _write(stream: TextIO, text: str) -> None:
    try:
        fd = stream.fileno()
    except OSError:  # no descriptor behind it: a test's or a notebook's
        stream.write(text)
        return
    stream.flush()
    rest = memoryview(text.encode(stream.encoding or "utf-8", "backslashreplace"))
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            select.select([], [fd], [])


def run_program(name: str, main: Callable[[], int]) -> int:
    """Run a main function, and see to it that the program ends with the status that it means.

    Args:
        name: of the program, for messages.
        main: returns the exit status. May raise `CannotWrite`, SystemExit, KeyboardInterrupt.

    Returns:
        the status to end with.
    """
    _open_missing_descriptors()
    _catch_interrupts()
    status = EXIT_INTERRUPTED
    try:
        try:
            status = main()
        except SystemExit as ended:  # argparse's
            status = ended.code if isinstance(ended.code, int) else EXIT_OK
        except CannotWrite as error:
            status = EXIT_NOT_WRITTEN
            print_error(f"{name}: {error}")
        except KeyboardInterrupt:
            print_error(f"{name}: interrupted")
    finally:
        if not _flushed(sys.stdout) and status == EXIT_OK:
            status = EXIT_NOT_WRITTEN
        _flushed(sys.stderr)
    return status


def _open_missing_descriptors() -> None:
    """A descriptor from 0 to 2 that is closed would be given to the next file or socket, and written to by mistake."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one


def handled_interrupts() -> tuple[signal.Signals, ...]:
    """Those of `INTERRUPTS` that are not ignored: nohup, and a shell's ``&``, know why they ignore them."""
    return tuple(number for number in INTERRUPTS if signal.getsignal(number) is not signal.SIG_IGN)


def _catch_interrupts() -> None:
    """All of them raise KeyboardInterrupt, so that what was started is stopped; also if they were blocked before."""
    handled = handled_interrupts()
    for number in handled:
        signal.signal(number, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)


def _flushed(stream: TextIO | None) -> bool:
    """Flush, now and for good: what a full disk did not take must not be tried again when Python ends."""
    if stream is None:
        return True
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True
