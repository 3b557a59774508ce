"""The server under load: started by us, or found running."""

from __future__ import annotations

import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from evloop.charcount.connecting import open_socket
from evloop.charcount.wire import ClientTimeoutError
from evloop.errors import ConnectError
from evloop.net.endpoint import Endpoint, TcpEndpoint, UnixEndpoint
from evloop.server.unixsockets import peer_credentials
from evloop_bench.common.paths import CHECKOUT
from evloop_bench.common.processes import NotStarted, started


class CannotRun(Exception):
    """The run can't take place. The text is one line that says why and what to do."""


@dataclass(frozen=True)
class Target:
    """A server that accepts connections.

    Attributes:
        endpoint: where; of TCP with an address and not a name.
        pids: its process, or processes; empty if it runs elsewhere, or belongs to somebody else.
        spawned: it was started for this run, and is stopped after it.
        command: how it was started.
    """

    endpoint: TcpEndpoint | UnixEndpoint
    pids: tuple[int, ...]
    spawned: bool
    command: str | None = None


def default_command(sockets: int) -> str:
    """The project's own server, with the Python that runs this."""
    if CHECKOUT is not None:
        server = [str(CHECKOUT / "bin" / "charcount-server")]
    else:
        server = ["-c", "import sys; from evloop.charcount.cli.server import main; sys.exit(main())"]
    return shlex.join(
        [
            sys.executable,
            *server,
            "--port",
            "{port}",
            "--log-level",
            "error",
            "--max-connections",
            str(sockets + 64),
        ]
    ).replace("'{port}'", "{port}")


def null_server_command() -> str:
    """The server of `--calibrate`: replies without looking."""
    script = Path(__file__).with_name("nullserver.py")
    return shlex.join([sys.executable, str(script)]) + " {port}"


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on at the moment."""
    with socket.create_server((host, 0)) as probe:
        return int(probe.getsockname()[1])


def accepts(host: str, port: int) -> bool:
    """Whether somebody accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=1) as probe:
            # Where nobody listens on a port of the range that the kernel takes ours from, it may take that very port:
            # then the socket is connected to itself.
            return bool(probe.getsockname() != probe.getpeername())
    except OSError:
        return False


@contextmanager
def spawned_server(command: str, cores: list[int] | None, log_path: str | None = None) -> Iterator[Target]:
    """Start ``command`` with a free port in the place of ``{port}``, and stop it in the end.

    It is stopped also if this process is killed (see `evloop_bench.common.keeper`).

    Args:
        cores: where it may run.
        log_path: a file for what it prints. Default: shown only if it fails.

    Raises:
        CannotRun: it can't be started, ends at once, or doesn't listen in time; or the log can't be written.
    """
    port = free_port()
    try:
        argv = [word.replace("{port}", str(port)) for word in shlex.split(command)]
    except ValueError as error:
        raise CannotRun(f"cannot understand the command of --spawn: {error}") from None

    def ready(said: bytes) -> bool | None:
        return accepts("127.0.0.1", port) or None

    try:
        with started(argv, ready, cores=cores, log=_open_log(log_path)) as (pid, _):
            yield Target(TcpEndpoint("127.0.0.1", port), (pid,), True, shlex.join(argv))
    except NotStarted as error:
        raise CannotRun(str(error)) from None


def _open_log(path: str | None) -> IO[bytes] | None:
    if path is None:
        return None
    try:
        return open(path, "w+b")
    except OSError as error:
        raise CannotRun(f"cannot write {path}: {error.strerror}") from None


def running_server(endpoint: Endpoint) -> Target:
    """A server that runs already.

    Raises:
        CannotRun: nothing accepts connections there.
    """
    nobody = CannotRun(f"nothing accepts connections at {endpoint}: start the server, or leave out --server")
    if isinstance(endpoint, UnixEndpoint):
        try:
            with open_socket(endpoint, 1.0) as probe:
                listens = peer_credentials(probe)
        except (ConnectError, ClientTimeoutError):
            raise nobody from None
        return Target(endpoint, () if listens is None else (listens[0],), False)
    assert isinstance(endpoint, TcpEndpoint)
    host, port = endpoint.host, endpoint.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name with an empty or overlong label
        raise CannotRun(f"cannot resolve {host!r}: {getattr(error, 'strerror', None) or error}") from None
    # A name may have addresses at which nobody listens; all connections go to the first at which somebody does.
    for numeric in (str(address[0]) for *_, address in found):
        if accepts(numeric, port):
            return Target(
                TcpEndpoint(numeric, port, tls=endpoint.tls), tuple(sorted(_listening_pids(numeric, port))), False
            )
    raise nobody


def _listening_pids(host: str, port: int) -> set[int]:
    """Who listens there, as far as we may know."""
    local = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    if host not in local and not host.startswith("127."):
        return set()
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return set()
    return {
        connection.pid
        for connection in connections
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid
    }
