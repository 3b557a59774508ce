"""Where the client connects to: endpoints, as an argument of the command and of the class."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evloop import EndpointError, parse_endpoint
from evloop.charcount.client import CharCountClient
from evloop.charcount.connecting import server_endpoint
from evloop.errors import ConnectError
from evloop.net.endpoint import TcpEndpoint, UnixEndpoint
from paths import CLIENT, SERVER
from processes import Process
from waiting import DEADLINE_S


@pytest.fixture(scope="module")
def unix_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a server on a Unix socket."""
    where = f"unix:{tmp_path_factory.mktemp('run')}/cc"
    with Process([SERVER, "--listen", where]) as server:
        server.wait_for_log("listening on")
        yield where


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, CLIENT, *arguments], input=stdin, capture_output=True, text=True, timeout=2 * DEADLINE_S
    )


def test_the_class(unix_service: str) -> None:
    for where in (unix_service, parse_endpoint(unix_service)):
        with CharCountClient(where) as client:
            assert client.count("naïve café") == 10
            assert list(client.count_many(["one", "two"])) == [3, 3]


@pytest.mark.parametrize(("arguments", "stdin"), [(("abc", "de"), ""), ((), "abc\nde\n")], ids=["arguments", "pipe"])
def test_the_command(unix_service: str, arguments: tuple[str, ...], stdin: str) -> None:
    done = run("--connect", unix_service, *arguments, stdin=stdin)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n2\n", "")


def test_the_classic_exchange(tmp_path: Path) -> None:
    where = f"unix:{tmp_path}/cc"
    with Process([SERVER, "--listen", where, "--classic"]) as server:
        server.wait_for_log("listening on")
        done = run("--connect", where, "--classic", "abc", "de")
    assert (done.returncode, done.stdout) == (0, "Jumlah karakter: 3\nJumlah karakter: 2\n")


def test_tcp_by_the_same_option(service: Process) -> None:
    host, port = service.address
    assert run("--connect", f"{host}:{port}", "abc").stdout == "3\n"
    with CharCountClient(f"{host}:{port}") as client:
        assert client.count("abc") == 3


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("127.0.0.1", None, TcpEndpoint("127.0.0.1", 12345)),
        ("localhost", None, TcpEndpoint("localhost", 12345)),
        ("::1", None, TcpEndpoint("::1", 12345)),
        ("::1", 7, TcpEndpoint("::1", 7)),
        ("[::1]:7", None, TcpEndpoint("::1", 7)),
        ("unix", 7, TcpEndpoint("unix", 7)),
        ("unix:cc", None, UnixEndpoint("cc")),
        (UnixEndpoint("cc"), None, UnixEndpoint("cc")),
    ],
    ids=str,
)
def test_what_is_meant(host, port: int | None, expected: TcpEndpoint | UnixEndpoint) -> None:
    assert server_endpoint(host, port) == expected


@pytest.mark.parametrize(
    ("host", "port", "error", "text"),
    [
        ("host:x", None, EndpointError, "'host:x' is no endpoint: 'x' is not the number of a port"),
        ("unix:", None, EndpointError, "'unix:' is no endpoint: there is no path"),
        ("tls:unix:", None, EndpointError, "'tls:unix:' is no endpoint: there is no path"),
        ("fd:3", None, EndpointError, "cannot connect to fd:3: only who listens can be given a socket"),
        (":80", None, EndpointError, "cannot connect to :80: only who listens can leave out the host"),
        ("h:0", None, EndpointError, "cannot connect to h:0: give the port that the server listens on"),
        (UnixEndpoint("cc"), 7, EndpointError, "unix:cc says all that is needed: give no port beside it"),
        ("[::1]", 7, ConnectError, "cannot resolve '[::1]': a host can't hold '['; check the name"),
    ],
    ids=str,
)
def test_what_cannot_be_connected_to(host, port: int | None, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        CharCountClient(host, port)
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--connect", "h:1", "--port", "1"), "--connect says where: leave out --host and --port"),
        (("--connect", "h:1", "--host", "h"), "--connect says where: leave out --host and --port"),
        (("--connect", "/run/cc"), "argument --connect: '/run/cc' is no endpoint: the port is missing; did you mean "),
        (("--connect", "fd:3"), "argument --connect: cannot connect to fd:3: only who listens can be given a socket"),
    ],
    ids=str,
)
def test_wrong_usage_is_one_line(arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments, "abc")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"charcount-client: {said}")
    assert done.stderr.count("\n") == 1


def test_nobody_there(tmp_path: Path) -> None:
    done = run("--connect", f"unix:{tmp_path}/cc", "abc")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        f"charcount-client: cannot connect to unix:{tmp_path}/cc: nothing listens there; start charcount-server\n"
    )
