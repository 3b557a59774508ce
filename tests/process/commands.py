"""Runs ``charcount-client`` as a process, and servers for it that can't be trusted."""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from paths import CLIENT
from processes import listening_socket
from waiting import DEADLINE_S

# What the client says of a reply too many, up to the reply.
UNASKED = "charcount-client: the server sent a reply that no message asked for: "

# Warnings of the interpreter are errors in the commands, too.
PYTHON = (sys.executable, "-W", "error")


def run_command(command: str, *arguments: str | bytes, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run one of the commands to its end, with stdout and stderr captured."""
    options = {"stdin": None if "input" in options else subprocess.DEVNULL, "timeout": 3 * DEADLINE_S, **options}
    return subprocess.run(
        [*PYTHON, command, *arguments],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **_without_none(options)},
    )


def run_client(port: int, *arguments: str | bytes, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the client to its end. Without ``input`` or ``stdin`` its stdin is empty."""
    return run_command(CLIENT, "--port", str(port), *arguments, **options)


def start_client(port: int, *arguments: str | bytes, **options: Any) -> subprocess.Popen[bytes]:
    """Start the client with pipes to its standard streams. The caller ends it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*PYTHON, CLIENT, "--port", str(port), *arguments], **{**pipes, **options})


def one_line(stderr: bytes) -> str:
    """What a command said on stderr, which must be one line, and no traceback."""
    text = stderr.decode()
    assert text.endswith("\n"), text
    assert text.count("\n") == 1, text
    return text.removesuffix("\n")


@contextlib.contextmanager
def answering(*pieces: bytes, forever: bool = False) -> Iterator[int]:
    """The port of a server that answers its one client's first bytes so, the last piece again and again if asked."""
    listener = listening_socket()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            try:
                for piece in itertools.chain(pieces, itertools.repeat(pieces[-1]) if forever else []):
                    connection.sendall(piece)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65_536):
                    pass
            except OSError:  # the client has enough
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    listener.close()


def _without_none(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@contextlib.contextmanager
def serving(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that does so with its one connection."""
    listener = listening_socket()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(DEADLINE_S)
            with contextlib.suppress(ConnectionError):  # the client has enough
                behave(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        thread.join(DEADLINE_S)
        listener.close()
    assert not thread.is_alive()


def until_closed(connection: socket.socket) -> None:
    """Read and drop until the client has closed."""
    while connection.recv(65536):
        pass
