"""The standard streams of the commands: every byte is written, or it is said that it was not; and the exit status is
the one that the command means.

Theory of operation
-------------------
Python's own streams fail a command in three ways. What is left in their buffers is written when the interpreter ends;
if that fails, it overrules the exit status with 120. With PYTHONUNBUFFERED there are no buffers, and what a short write
did not take is lost, without a word. And a descriptor that doesn't block, as one inherited from another program may be,
raises an error when it is full, or is at its end when it is just empty. So the commands write to and read from the
descriptors, count what was taken, and wait. What others write to the streams, such as logging, is flushed by
`run_command` before the interpreter does it.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator

from evloop.errors import EvloopError

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import TextIO

EXIT_CANNOT_WRITE = 1

_READ_BYTES = 65536


class OutputError(EvloopError):
    """stdout can't be written. The text says why."""


class OutputEndedError(EvloopError):
    """The reader of stdout has closed it: it wants no more."""


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte, and wait as long as that takes, whether the descriptor blocks or not."""
    unwritten = memoryview(data)
    while unwritten:
        try:
            unwritten = unwritten[os.write(descriptor, unwritten) :]
        except BlockingIOError:
            select.select([], [descriptor], [])


def write_stdout(data: bytes) -> None:
    """All of it to stdout, unless that is closed.

    Raises:
        OutputEndedError: the reader of stdout has closed it.
        OutputError: it can't be written for another reason.
    """
    if sys.stdout is None:
        return
    try:
        write_all(sys.stdout.fileno(), data)
    except BrokenPipeError:
        raise OutputEndedError("nobody reads stdout") from None
    except OSError as error:
        raise OutputError(f"cannot write to stdout: {error.strerror or error}") from None


def write_stderr(text: str) -> None:
    """All of it to stderr, if that can be written: nobody needs to read it for a program to go on."""
    if sys.stderr is not None:
        try:
            write_all(sys.stderr.fileno(), text.encode(sys.stderr.encoding, "backslashreplace"))
        except OSError:
            pass


def say(command: str, text: str) -> None:
    """One line on stderr that begins with the command's name."""
    write_stderr(f"{command}: {text}\n")


def read_lines(descriptor: int) -> Iterator[bytes]:
    """Lines without their LF, each as soon as it has come, whether the descriptor blocks or not.

    Raises:
        OSError: it can't be read.
    """
    unfinished: list[bytes] = []
    while True:
        try:
            block = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            select.select([descriptor], [], [])
            continue
        first, *others = block.split(b"\n")
        unfinished.append(first)
        if others:
            yield b"".join(unfinished)
            yield from others[:-1]
            unfinished = [others[-1]]
        if not block:
            if any(unfinished):
                yield b"".join(unfinished)
            return


def run_command(command: str, program: Callable[[], int]) -> int:
    """Run the whole of a command, and return the exit status that it means, whatever stdout and stderr are.

    Args:
        command: its name, for what is said on stderr.
        program: returns its exit status, or raises SystemExit, or what `write_stdout` raises.
    """
    _fill_closed_descriptors()
    try:
        return program()
    except OutputEndedError:
        return 0
    except OutputError as error:
        say(command, str(error))
        return EXIT_CANNOT_WRITE
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                _flush(stream)


def _fill_closed_descriptors() -> None:
    """A process may be started with some of 0, 1 and 2 closed: a socket that got such a number would be written to."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is None:
            try:
                os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free
            except OSError:
                pass  # there is none


def _flush(stream: TextIO) -> None:
    """What can't be written must not be tried again when the interpreter ends, or its exit status is 120."""
    try:
        stream.flush()
    except OSError:
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        except OSError:
            pass  # out of descriptors
