"""Where a server listens, and who is there already or comes: 52 to 55, 58 and 59 of docs/reliability.md."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from typing import Any

import pytest

from evloop import ListenError
from evloop.net.endpoint import UnixEndpoint
from evloop.server import unixsockets
from evloop.server.unixsockets import UnixAccess, open_unix_listener
from faults.places import ask, refused
from paths import CLIENT, ROOT, SERVER
from processes import Process
from waiting import DEADLINE_S, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is asked of the system here is Linux's")

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
    done = subprocess.run([sys.executable, SERVER, "--listen", long], capture_output=True, text=True, timeout=10)
    assert done.returncode == 2
    assert "the path of a Unix socket can have 107 bytes" in done.stderr


def test_53_path_that_may_not_be_removed(tmp_path, monkeypatch):
    """In a folder such as /tmp a path that is left can only be removed by its owner."""
    path = str(tmp_path / "cc")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)

    def unlink(path: str) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(ListenError) as caught:
        open_unix_listener(UnixEndpoint(path), 10, UnixAccess())
    assert str(caught.value) == (
        f"cannot listen on unix:{path}: no permission to replace what is at this path; choose another path"
    )
    with pytest.raises(ListenError, match="no permission to replace"):
        open_unix_listener(UnixEndpoint(path), 10, UnixAccess(group=os.getgid()))


@pytest.mark.parametrize("name", ["cc", "@evloop-test-none"])
def test_53_path_without_a_descriptor_for_it(tmp_path, monkeypatch, name):
    """The lock of its folder had the last one. It is given back."""

    def full(*arguments: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.chdir(tmp_path)
    for kind in ("ListeningSocket", "UnixListeningSocket"):
        monkeypatch.setattr(unixsockets, kind, full)
    with pytest.raises(ListenError, match=f"^cannot listen on unix:{name}: Too many open files$"):
        open_unix_listener(UnixEndpoint(name), 10, UnixAccess())


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
    for line in (
        r" connect unix:unnamed pid=\d+ uid=65533\n",
        r" disconnect unix:unnamed pid=\d+ uid=65533 messages=1 ",
    ):
        wait_until(lambda line=line: re.search(line, server.log), line)


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


TWO_FAMILIES = (
    "import socket, sys; real = socket.getaddrinfo\n"
    "def both(host, *rest, **options):\n"
    "    hosts = ('127.0.0.1', '::1') if host in ('both.example', b'both.example') else (host,)\n"
    "    return [found for one in hosts for found in real(one, *rest, **options)]\n"
    "socket.getaddrinfo = both\n"
    "from evloop.charcount.cli.server import main; sys.exit(main())"
)


@pytest.mark.parametrize(
    "arguments",
    [("--host=", "--port=0"), ("--host=both.example", "--port=0"), ("--listen=:0",), ("--listen=both.example:0",)],
    ids=" ".join,
)
def test_58_several_families_talk(arguments):
    """Of all addresses of the machine, and of a name that has one of each family."""
    with Process(["-c", TWO_FAMILIES, *arguments]) as server:
        server.wait_for_log("listening on", 2)
        port = server.address[1]
        assert ask(f"127.0.0.1:{port}").stdout == "3\n"
        assert ask(f"[::1]:{port}").stdout == "3\n"
        server.wait_for_log(" connect 127.0.0.1:")
        server.wait_for_log(" connect [::1]:")


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
        command = [sys.executable, CLIENT, "--connect", f"unix:{path}", "--timeout", "0.5", "abc"]
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
