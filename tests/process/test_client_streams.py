"""Standard streams that are full, closed, or don't block: both commands write all, or say so, and mean their status.

Each is tried as users have it and with PYTHONUNBUFFERED, since Python writes in quite another way then.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from paths import CLIENT, ROOT, SERVER
from process.commands import PYTHON, one_line, run_client
from processes import Process, start_server
from variants import first_of
from waiting import DEADLINE_S, wait_until

needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")

WAITING = (psutil.STATUS_SLEEPING, psutil.STATUS_ZOMBIE)

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
BUFFERINGS = {"buffered": CLEAN, "unbuffered": {**CLEAN, "PYTHONUNBUFFERED": "1"}}


@pytest.fixture(params=first_of(*BUFFERINGS))
def environment(request) -> dict[str, str]:
    return BUFFERINGS[request.param]


@pytest.fixture(scope="module")
def classic() -> Iterator[Process]:
    with start_server("--classic") as server:
        yield server


def shell(command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    """Run it with the words charcount-server and charcount-client for the commands."""
    for name, path in (("charcount-server", SERVER), ("charcount-client", CLIENT)):
        command = command.replace(name, " ".join((*PYTHON, path)))
    return subprocess.run(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
        env=environment,
    )


# ---------------------------------------------------------------------- full and closed


@needs_full
@pytest.mark.parametrize(
    "command",
    [
        "charcount-server --help",
        "charcount-server --version",
        "charcount-server --print-config",
        "charcount-client --help",
        "charcount-client --port PORT hello",
        "echo hello | charcount-client --port PORT",
        "charcount-client --port PORT --classic hello",
    ],
)
def test_a_full_stdout_is_said(command, environment, service, classic):
    port = str((classic if "--classic" in command else service).address[1])
    done = shell(f"{command.replace('PORT', port)} >/dev/full", environment)
    assert done.returncode == 1
    name = "charcount-server" if "server" in command else "charcount-client"
    assert one_line(done.stderr) == f"{name}: cannot write to stdout: No space left on device"


STATUSES = {
    "charcount-client --bogus": 2,
    "charcount-server --bogus": 2,
    "charcount-client --port 1 x": 3,
    "charcount-client --port 1 --classic x": 3,
    "charcount-server --host no-such-host.invalid": 3,
    "charcount-server --check-config": 0,
    "charcount-server --check-config --max-connections 999999999": 2,
    "charcount-server --version": 0,
    "charcount-client --help": 0,
}


@needs_full
@pytest.mark.parametrize("command", STATUSES)
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_a_full_or_closed_stderr_changes_no_status(command, redirection, environment):
    assert shell(f"{command} {redirection}", environment).returncode == STATUSES[command]


@needs_full
@pytest.mark.parametrize("command", ["charcount-server --version", "charcount-client --help"])
def test_both_full(command, environment):
    assert shell(f"{command} >/dev/full 2>/dev/full", environment).returncode == 1


@pytest.mark.parametrize("command", ["charcount-server --print-config", "charcount-client --version"])
def test_all_closed(command, environment):
    done = shell(f"{command} <&- >&- 2>&-", environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_what_a_closed_stderr_was_is_no_socket(service, environment):
    """A socket that gets the number of a stream would be sent what is written there."""
    program = (
        "import socket, sys\n"
        "class Checked(socket.socket):\n"
        "    def connect(self, address):\n"
        "        assert self.fileno() > 2\n"
        "        super().connect(address)\n"
        "socket.socket = Checked\n"
        "from evloop.charcount.cli import client\n"
        f'raise SystemExit(client.main(["--port", "{service.address[1]}", "a"]))'
    )
    done = shell(f"{sys.executable} -c '{program}' <&- 2>&-", environment)
    assert (done.returncode, done.stdout) == (0, b"1\n")


@needs_full
@pytest.mark.parametrize("traffic", [False, True], ids=["idle", "busy"])
def test_server_whose_log_is_on_a_full_disk(environment, traffic):
    """Stopped in order is exit status 0, whatever the log is. systemd would take another one for a failure."""
    reader, writer = os.pipe()
    with open("/dev/full", "wb") as full:
        # It says where it listens to a pipe, which then becomes a full disk.
        program = (
            "import os, sys; from evloop.charcount.cli import server\n"
            "say = server.say\n"
            f"def say_then_fill(*text): say(*text); os.dup2({full.fileno()}, 2)\n"
            "server.say = say_then_fill; sys.argv[1:] = ['--port', '0']; sys.exit(server.main())"
        )
        process = subprocess.Popen(
            [*PYTHON, "-c", program], stderr=writer, pass_fds=[full.fileno()], env=environment, cwd=ROOT
        )
    os.close(writer)
    with open(reader, "rb") as said:
        port = int(said.readline().rpartition(b":")[2])
    try:
        if traffic:
            for _ in range(3):
                assert run_client(port, "hello").stdout == b"5\n"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0


# ---------------------------------------------------------------------- that don't block


class Pipe:
    """A pipe of which one end does not block, and into which nothing more goes if it is to be full."""

    def __init__(self, nonblocking: str, *, full: bool = False) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.filling = 0
        try:
            while full:
                self.filling += os.write(self.writer, bytes(4096))
        except BlockingIOError:
            pass
        os.set_blocking(self.writer, nonblocking != "writer")
        os.set_blocking(self.reader, nonblocking != "reader")

    def read_all(self) -> bytes:
        """Once nobody else has the writing end."""
        os.close(self.writer)
        with open(self.reader, "rb") as stream:
            return stream.read()[self.filling :]


def run_into(pipe: Pipe, stream: str, *command: str, **options: Any) -> tuple[int, bytes]:
    """The exit status, and all that came through the pipe, which is read when the command can't go on, or has ended."""
    process = subprocess.Popen([*PYTHON, *command], **{stream: pipe.writer}, **options)
    try:
        if pipe.filling:
            wait_until(lambda: psutil.Process(process.pid).status() in WAITING, "it waits, or has ended")
        written = pipe.read_all()
        return process.wait(DEADLINE_S), written
    finally:
        process.kill()
        process.wait()


def test_stdout_that_does_not_block_gets_every_reply(service, environment, tmp_path):
    lines = tmp_path / "lines"
    lines.write_bytes(b"abc\n" * 300_000)
    command = (CLIENT, "--port", str(service.address[1]))
    with open(lines, "rb") as stdin:
        status, written = run_into(Pipe("writer"), "stdout", *command, stdin=stdin, env=environment)
    assert (status, written) == (0, b"3\n" * 300_000)


@pytest.mark.parametrize("framing", [(), ("--classic",)], ids=["line", "classic"])
def test_a_reply_to_a_stdout_without_room_is_waited_for(service, classic, environment, framing):
    server, reply = (classic, b"Jumlah karakter: 5\n") if framing else (service, b"5\n")
    command = (CLIENT, "--port", str(server.address[1]), *framing, "hello")
    assert run_into(Pipe("writer", full=True), "stdout", *command, env=environment) == (0, reply)


@pytest.mark.parametrize(
    ("command", "option"), [(SERVER, "--print-config"), (SERVER, "--help"), (CLIENT, "--help"), (CLIENT, "--version")]
)
def test_a_stdout_without_room_is_waited_for(environment, command, option):
    status, written = run_into(Pipe("writer", full=True), "stdout", command, option, env=environment)
    assert status == 0
    usual = subprocess.run([*PYTHON, command, option], env=environment, capture_output=True, check=True)
    assert written == usual.stdout


def test_an_error_to_a_stderr_without_room_is_waited_for(environment):
    status, written = run_into(Pipe("writer", full=True), "stderr", CLIENT, "--bogus", env=environment)
    assert (status, written.count(b"\n")) == (2, 1)


def test_stderr_that_does_not_block_gets_every_error(service, environment, tmp_path):
    lines = tmp_path / "lines"
    lines.write_bytes(b"\xff\n" * 5_000)
    command = (CLIENT, "--port", str(service.address[1]))
    with open(lines, "rb") as stdin:
        status, written = run_into(Pipe("writer"), "stderr", *command, stdin=stdin, env=environment)
    assert (status, written.count(b"ERR invalid-utf8 at byte 0'\n")) == (1, 5_000)


@pytest.mark.parametrize("framing", [(), ("--classic",)], ids=["line", "classic"])
def test_stdin_that_does_not_block_is_waited_for(service, classic, environment, framing):
    """Nothing is there yet when the client looks first."""
    server, reply = (classic, b"Jumlah karakter: 3\n") if framing else (service, b"3\n")
    pipe = Pipe("reader")
    process = subprocess.Popen(
        [*PYTHON, CLIENT, "--port", str(server.address[1]), *framing],
        stdin=pipe.reader,
        stdout=subprocess.PIPE,
        env=environment,
    )
    with process:
        for piece in (b"a", b"bc\n", b"def\nghi\nj", b"kl\n", b"mno"):
            wait_until(lambda: psutil.Process(process.pid).status() in WAITING, "it waits, or has ended")
            os.write(pipe.writer, piece)
            for _ in range(piece.count(b"\n")):
                assert process.stdout.readline() == reply
        os.close(pipe.writer)
        assert process.stdout.read() == reply
        assert process.wait(DEADLINE_S) == 0
    os.close(pipe.reader)
