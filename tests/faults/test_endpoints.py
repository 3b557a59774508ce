"""Where a server listens, and who is there already or comes: 52 to 59 of docs/reliability.md."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paths import ROOT, SERVER
from processes import Process
from waiting import DEADLINE_S, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is asked of the system here is Linux's")

CLIENT = ROOT / "bin" / "charcount-client"
ACTIVATE = Path("/usr/bin/systemd-socket-activate")


@pytest.fixture
def serve() -> Iterator[Callable[..., Process]]:
    """Starts ``charcount-server`` and waits until it listens. Ended with the test."""
    with contextlib.ExitStack() as stack:

        def serve_one(*arguments: str, listening: int = 1, **options: Any) -> Process:
            process = stack.enter_context(Process([str(SERVER), *arguments], **options))
            process.wait_for_log("listening on", listening)
            return process

        yield serve_one


def ask(where: str, text: str = "abc") -> subprocess.CompletedProcess[str]:
    """The client's answer from an endpoint."""
    return subprocess.run(
        [sys.executable, str(CLIENT), "--connect", where, "--timeout", str(DEADLINE_S), text],
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S,
    )


def refused(*arguments: str, **options: Any) -> str:
    """The one line of a server that can't listen."""
    command = [sys.executable, str(SERVER), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE_S, **options)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("charcount-server: ").removesuffix("\n")


# ---------------------------------------------------------------------- 52


def test_52_stale_path_of_a_server_that_was_killed_is_taken_over(serve, tmp_path):
    path = tmp_path / "cc"
    serve("--listen", f"unix:{path}").popen.kill()
    wait_until(lambda: ask(f"unix:{path}").returncode == 3, "the first one is gone")
    assert path.is_socket()
    again = serve("--listen", f"unix:{path}")
    assert ask(f"unix:{path}").stdout == "3\n"
    again.signal(signal.SIGTERM)
    assert again.wait() == 0
    assert not path.exists()


def test_52_stale_path_is_taken_by_one_of_many_that_start_at_once(tmp_path):
    """Two could both find it stale, or take each other's socket, bound and not yet listening, for a dead one."""
    path = tmp_path / "cc"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    program = (
        "import sys, time\n"
        "from evloop import EventLoop, ListenError, Protocol, Server\n"
        "import evloop.server.unixsockets as u\n"
        "real = u.os.chmod\n"
        "def slow(*arguments): time.sleep(0.05); real(*arguments)\n"  # between bind and listen
        "u.os.chmod = slow\n"
        "with EventLoop() as loop:\n"
        "    server = Server(loop, Protocol)\n"
        "    sys.stdin.readline()\n"
        "    try: server.listen(sys.argv[1])\n"
        "    except ListenError as error: print(error, flush=True)\n"
        "    else: print('listens', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    server.abort()\n"
    )
    command = [sys.executable, "-c", program, f"unix:{path}"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(subprocess.Popen(command, **pipes)) for _ in range(4)]
        for process in started:
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.stdout.readline() for process in started]
        assert said.count("listens\n") == 1
        owner = started[said.index("listens\n")].pid
        others = [line for line in said if line != "listens\n"]
        assert all(f"(pid {owner}) listens there already; stop it or choose another path" in line for line in others)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        for process in started:
            process.stdin.write("end\n")
            process.stdin.close()
    assert not path.exists()


# ---------------------------------------------------------------------- 53


def test_53_path_of_a_server_that_lives_is_left_alone(serve, tmp_path):
    path = tmp_path / "cc"
    first = serve("--listen", f"unix:{path}", "--log-level", "info")
    line = refused("--listen", f"unix:{path}")
    assert re.fullmatch(
        rf"cannot listen on unix:{path}: \S+ \(pid {first.popen.pid}\) listens there already; "
        "stop it or choose another path",
        line,
    )
    assert ask(f"unix:{path}").stdout == "3\n"
    assert first.log.count(" connect ") == 1  # who only looked is a probe, and not in the log


def test_53_path_of_a_server_whose_queue_is_full_is_left_alone(tmp_path):
    path = tmp_path / "cc"
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(socket.socket(socket.AF_UNIX))
        busy.bind(str(path))
        busy.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            waiting.connect_ex(str(path))
        assert "another server listens there already" in refused("--listen", f"unix:{path}")
        assert path.is_socket()


@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_53_path_that_is_no_socket_is_left_alone(tmp_path, what):
    path = tmp_path / "cc"
    if what == "file":
        path.write_text("precious")
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to("precious")
    before = os.lstat(path)
    line = refused("--listen", f"unix:{path}")
    assert line == (
        f"cannot listen on unix:{path}: what is at this path is no socket; remove it or choose another path"
    )
    assert os.lstat(path) == before


def test_53_path_of_a_datagram_socket_is_left_alone(tmp_path):
    path = tmp_path / "cc"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        line = refused("--listen", f"unix:{path}")
    assert line == f"cannot listen on unix:{path}: a socket of another kind is there; choose another path"
    assert path.is_socket()


def test_53_path_that_cannot_be(tmp_path):
    assert refused("--listen", f"unix:{tmp_path}/none/cc") == (
        f"cannot listen on unix:{tmp_path}/none/cc: there is no folder '{tmp_path}/none'; make it first"
    )
    assert "there is no group 'nobody-has-this'" in refused(
        "--listen", f"unix:{tmp_path}/cc", "--unix-group", "nobody-has-this"
    )
    assert not (tmp_path / "cc").exists()
    long = f"unix:{tmp_path}/{'x' * 108}"
    done = subprocess.run([sys.executable, str(SERVER), "--listen", long], capture_output=True, text=True, timeout=10)
    assert done.returncode == 2
    assert "the path of a Unix socket can have 107 bytes" in done.stderr


def test_53_path_in_the_abstract_namespace(serve):
    name = f"unix:@evloop-test-{os.getpid()}"
    serve("--listen", name)
    assert ask(name).stdout == "3\n"
    assert refused("--listen", name) == f"cannot listen on {name}: the name is taken; choose another one"


# ---------------------------------------------------------------------- 54


def test_54_own_path_is_removed_only_if_it_still_is(serve, tmp_path):
    """Somebody else took the path meanwhile: it is that one's now."""
    path = tmp_path / "cc"
    server = serve("--listen", f"unix:{path}")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_54_own_path_is_found_again_from_another_working_directory(tmp_path, monkeypatch):
    from evloop import EventLoop, Protocol, Server

    monkeypatch.chdir(tmp_path)
    with EventLoop() as loop:
        server = Server(loop, Protocol)
        assert server.listen("unix:cc") == ["unix:cc"]
        os.chdir("/")
        server.abort()
    assert not (tmp_path / "cc").exists()


# ---------------------------------------------------------------------- 55


def test_55_who_may_connect_by_the_path(serve, tmp_path):
    path = tmp_path / "cc"
    serve("--listen", f"unix:{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    other = tmp_path / "other"
    options = ("--unix-mode", "606") if os.getuid() else ("--unix-mode", "606", "--unix-group", "12")
    serve("--listen", f"unix:{other}", *options)
    assert stat.S_IMODE(other.stat().st_mode) == 0o606
    assert other.stat().st_gid == (os.getgid() if os.getuid() else 12)


AS_ANOTHER = (
    "import os, socket, sys\n"
    "s = socket.socket(socket.AF_UNIX); s.settimeout(10)\n"
    "os.setgroups([]); os.setgid(65534); os.setuid(int(sys.argv[2]))\n"
    "s.connect('\\0' + sys.argv[1])\n"
    "s.sendall(b'abc\\n'); print(s.recv(100).decode(), end='')\n"
)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_55_who_may_connect_by_user(serve):
    """An abstract name, as it has no permissions: what counts is the user alone."""
    name = f"@evloop-test-{os.getpid()}"
    server = serve("--listen", f"unix:{name}", "--unix-uids", "root,65533")

    def ask_as(uid: int) -> tuple[str, int]:
        command = [sys.executable, "-c", AS_ANOTHER, name[1:], str(uid)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return process.communicate(timeout=DEADLINE_S)[0], process.pid

    assert ask_as(65533)[0] == "3\n"
    assert ask_as(0)[0] == "3\n"
    text, pid = ask_as(65534)
    assert text == "ERR uid-not-allowed uid 65534\n"
    server.wait_for_log(f"connection unix:unnamed pid={pid} uid=65534 refused: uid-not-allowed uid 65534")
    server.signal(signal.SIGUSR1)
    server.wait_for_log("uid-not-allowed 1")
    # Of those who come and go it is told who they were.
    assert re.search(r" connect unix:unnamed pid=\d+ uid=65533\n", server.log)
    assert re.search(r" disconnect unix:unnamed pid=\d+ uid=65533 messages=1 ", server.log)


def test_55_who_connects_can_not_say_that_it_is_somebody_else(serve, tmp_path):
    """A client has the path that it likes."""
    server = serve("--listen", f"unix:{tmp_path}/cc")
    with socket.socket(socket.AF_UNIX) as client:
        client.bind(f"{tmp_path}/x pid=1 uid=0")
        client.settimeout(DEADLINE_S)
        client.connect(f"{tmp_path}/cc")
        client.sendall(b"abc\n")
        assert client.recv(10) == b"3\n"
    server.wait_for_log(f" disconnect unix:{tmp_path}/x?pid=1?uid=0 pid={os.getpid()} uid={os.getuid()} ")


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


@pytest.mark.skipif(not ACTIVATE.exists(), reason="systemd-socket-activate is not installed")
def test_56_inherited_sockets_from_systemd(tmp_path):
    path = tmp_path / "cc"
    command = [str(ACTIVATE), "-l", str(path), "--fdname=charcount", sys.executable, str(SERVER)]
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


# ---------------------------------------------------------------------- 58


def test_58_several_places_are_one_server(serve, tmp_path):
    """Both families, a Unix socket and an abstract name: one process, one count, one end."""
    name = f"unix:@evloop-test-{os.getpid()}"
    server = serve(
        "--listen",
        "127.0.0.1:0",
        "--listen",
        "[::1]:0",
        "--listen",
        f"unix:{tmp_path}/cc",
        "--listen",
        name,
        listening=4,
    )
    places = re.findall(r"listening on (\S+)", server.log)
    for place in places:
        assert ask(place).stdout == "3\n"
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert "stopped: connections=4 " in server.log


def test_58_several_places_of_which_one_is_taken_are_given_back(serve, tmp_path):
    first = serve("--listen", f"unix:{tmp_path}/taken")
    refused("--listen", f"unix:{tmp_path}/free", "--listen", f"unix:{tmp_path}/taken")
    assert not (tmp_path / "free").exists()
    assert first.popen.poll() is None


@pytest.mark.parametrize("arguments", [("--host", ""), ("--host", "localhost"), ("--listen", ":0")])
def test_58_several_families_talk(serve, monkeypatch, arguments):
    """Of all addresses of the machine, and of a name that has one of each family."""
    if arguments[1] == "localhost":
        found = {family for family, *_ in socket.getaddrinfo("localhost", 1, type=socket.SOCK_STREAM)}
        if found != {socket.AF_INET, socket.AF_INET6}:
            pytest.skip("localhost has one address here")
    port = () if arguments[0] == "--listen" else ("--port", "0")
    server = serve(*arguments, *port, listening=2)
    number = server.address[1]
    assert ask(f"127.0.0.1:{number}").stdout == "3\n"
    assert ask(f"[::1]:{number}").stdout == "3\n"
    assert " connect 127.0.0.1:" in server.log
    assert " connect [::1]:" in server.log


def test_58_several_families_are_not_meant_by_an_address_of_one(serve):
    server = serve("--host", "::", "--port", "0")
    assert ask(f"[::1]:{server.address[1]}").stdout == "3\n"
    assert ask(f"127.0.0.1:{server.address[1]}").returncode == 3


# ---------------------------------------------------------------------- 59


def test_59_full_queue_of_a_unix_socket_is_waited_for(tmp_path):
    """It can't be waited for by the kernel: the client tries again, and does not turn in a circle."""
    path = tmp_path / "cc"
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(socket.socket(socket.AF_UNIX))
        busy.bind(str(path))
        busy.listen(0)
        busy.settimeout(DEADLINE_S)
        first = stack.enter_context(socket.socket(socket.AF_UNIX))
        first.connect(str(path))
        command = [sys.executable, str(CLIENT), "--connect", f"unix:{path}", "--timeout", "0.5", "abc"]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
        assert (done.returncode, done.stderr) == (
            4,
            f"charcount-client: cannot connect to unix:{path}: no answer in 0.5 s\n",
        )
        assert time.monotonic() - began >= 0.5
        command[command.index("0.5")] = str(DEADLINE_S)
        client = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
        stack.callback(client.kill)
        busy.accept()[0].close()
        connection = stack.enter_context(busy.accept()[0])
        assert connection.recv(10) == b"abc\n"
        connection.sendall(b"3\n")
        assert client.wait(DEADLINE_S) == 0
