"""Sockets that a server is started with: 56 and 57 of docs/reliability.md."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.places import ask, refused
from paths import ROOT, SERVER
from processes import Process
from waiting import DEADLINE_S, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is asked of the system here is Linux's")

ACTIVATE = Path("/usr/bin/systemd-socket-activate")


# ---------------------------------------------------------------------- 56


def passed_sockets(*sockets: socket.socket, names: str | None = None, pid: str = "own") -> dict[str, Any]:
    """Options that start a process with sockets as systemd does: from descriptor 3 on, and variables that say so."""
    wrapper = (
        "import os, sys\n"
        "numbers = [int(n) for n in sys.argv[1].split(',')]\n"
        "high = [os.dup2(n, 100 + i) for i, n in enumerate(numbers)]\n"
        "for i, n in enumerate(high): os.dup2(n, 3 + i)\n"
        "os.closerange(3 + len(high), 200)\n"
        "if sys.argv[2] == 'own': os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "os.execv(sys.executable, sys.argv[3:])\n"
    )
    numbers = [sock.fileno() for sock in sockets]
    environment = {"LISTEN_FDS": str(len(sockets)), "LISTEN_PID": pid}
    if names is not None:
        environment["LISTEN_FDNAMES"] = names
    return {
        "prefix": (sys.executable, "-c", wrapper, ",".join(map(str, numbers)), pid),
        "environment": environment,
        "pass_fds": numbers,
    }


@pytest.fixture
def listeners(tmp_path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """One of TCP, and one of Unix."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "inherited"))
        unix.listen()
        yield tcp, unix


def test_56_inherited_sockets_are_served_when_nothing_else_is_asked_for(serve, listeners, tmp_path):
    tcp, unix = listeners
    port = tcp.getsockname()[1]
    server = serve(listening=2, **passed_sockets(tcp, unix, names="web:local"))
    assert f"listening on 127.0.0.1:{port} (fd:3, web)\n" in server.log
    assert f"listening on unix:{tmp_path}/inherited (fd:4, local)\n" in server.log
    assert ask(f"127.0.0.1:{port}").stdout == "3\n"
    assert ask(f"unix:{tmp_path}/inherited").stdout == "3\n"
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert (tmp_path / "inherited").is_socket()  # it is not ours


def test_56_inherited_sockets_keep_who_comes_between_two_servers(serve, listeners):
    """Nobody is refused while the service is restarted: that is what they are for."""
    tcp, _ = listeners
    with contextlib.ExitStack() as stack:
        first = serve(**passed_sockets(tcp))
        first.signal(signal.SIGTERM)
        assert first.wait() == 0
        client = stack.enter_context(socket.create_connection(tcp.getsockname(), timeout=DEADLINE_S))
        client.sendall(b"abc\n")
        serve(**passed_sockets(tcp))
        assert client.recv(10) == b"3\n"


def test_56_inherited_sockets_of_another_process_are_not_taken(serve, listeners):
    server = serve("--port", "0", **passed_sockets(listeners[0], pid="1"))
    assert "not used" not in server.log
    assert server.address != listeners[0].getsockname()


def test_56_inherited_sockets_beside_other_places_are_said_not_to_be_used(serve, listeners):
    server = serve("--port", "0", **passed_sockets(*listeners))
    assert "started with sockets that are not used, as other places to listen are set: fd:3, fd:4\n" in server.log


def test_56_inherited_sockets_by_number(serve, listeners):
    port = listeners[0].getsockname()[1]
    server = serve("--listen", "fd:3", **passed_sockets(*listeners))
    assert f"listening on 127.0.0.1:{port}\n" in server.log
    assert "are set: fd:4\n" in server.log
    assert ask(f"127.0.0.1:{port}").stdout == "3\n"


def test_56_inherited_sockets_of_serve(listeners, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os\nfrom evloop import Protocol, serve\nserve(Protocol, on_listening=print)\n")
    options = passed_sockets(*listeners)
    with Process([str(script)], **options) as server:
        with socket.create_connection(listeners[0].getsockname(), timeout=DEADLINE_S) as client:
            client.shutdown(socket.SHUT_WR)
            assert client.recv(10) == b""
        server.signal(signal.SIGTERM)  # it has answered, so it is ready for it
        assert server.wait() == 0
        assert f"127.0.0.1:{listeners[0].getsockname()[1]}" in server.log


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_56_inherited_sockets_of_serve_are_shown_with_their_names(listeners, tmp_path, workers):
    tcp, unix = listeners
    script = tmp_path / "script.py"
    script.write_text(
        f"from evloop import Protocol, serve\nif __name__ == '__main__': serve(Protocol, workers={workers})\n"
    )
    with Process([str(script)], **passed_sockets(tcp, unix, names="web:\n")) as server:
        shown = f"listening on 127.0.0.1:{tcp.getsockname()[1]} (fd:3, web), unix:{tmp_path}/inherited (fd:4, '\\n')\n"
        server.wait_for_log(shown)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


@pytest.mark.skipif(not ACTIVATE.exists(), reason="systemd-socket-activate is not installed")
def test_56_inherited_sockets_from_systemd(tmp_path):
    path = tmp_path / "cc"
    command = [str(ACTIVATE), "-l", str(path), "--fdname=charcount", sys.executable, SERVER]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as server:
        try:
            wait_until(path.is_socket, "systemd-socket-activate listens")
            done = ask(f"unix:{path}", "hello")  # it is started by this connection
            assert (done.stdout, done.stderr) == ("5\n", "")
            server.terminate()
            assert server.stderr is not None
            log = server.stderr.read()
            assert server.wait(DEADLINE_S) == 0
        finally:
            server.kill()
    assert f"charcount-server: listening on unix:{path} (fd:3, charcount)\n" in log
    assert path.is_socket()


# ---------------------------------------------------------------------- 57


def test_57_descriptor_that_is_no_listening_socket(tmp_path):
    assert refused("--listen", "fd:77") == (
        "cannot listen on fd:77: this process was started without such a descriptor"
    )
    assert refused("--listen", "fd:1") == "cannot listen on fd:1: it is no socket"
    for kind, wrong in (
        (socket.SOCK_STREAM, "it is a socket that does not listen"),
        (socket.SOCK_DGRAM, "it is neither a TCP socket nor a Unix stream socket"),
    ):
        with socket.socket(socket.AF_INET, kind) as sock:
            number = sock.fileno()
            assert refused("--listen", f"fd:{number}", pass_fds=[number]) == f"cannot listen on fd:{number}: {wrong}"


def test_57_descriptor_that_is_given_twice(listeners):
    from evloop import EventLoop, ListenError, Protocol, Server

    number = os.dup(listeners[0].fileno())
    with EventLoop() as loop:
        server = Server(loop, Protocol)
        server.listen(f"fd:{number}")
        with pytest.raises(ListenError, match=f"cannot listen on fd:{number}: it is in use already"):
            server.listen(f"fd:{number}")
        assert len(server.listeners) == 1
        server.abort()


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"LISTEN_FDS": "many"}, "LISTEN_FDS is 'many'"),
        ({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "one"}, "LISTEN_FDS is 2, and LISTEN_FDNAMES has 1 names"),
    ],
)
def test_57_descriptor_variables_that_make_no_sense(variables, complaint):
    program = (
        "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "from evloop.charcount.cli.server import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 3
    assert done.stderr == (
        f"charcount-server: cannot use the sockets that this process was started with: {complaint}\n"
    )
