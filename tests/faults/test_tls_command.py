"""The service by TLS, as a process: what SIGHUP means, wrong ports, servers not to be trusted, streams that are cut."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clients import Client
from paths import CLIENT, SERVER
from processes import Process, listening_socket
from tlsworld import connect_tls, trustme, world
from waiting import DEADLINE_S, wait_until

EXIT_TLS = 5

needs_hangup = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal here")


@pytest.fixture
def serve() -> Iterator[Callable[..., Process]]:
    """Starts a program, ``charcount-server`` if nothing else is said, that is killed with the test."""
    running: list[Process] = []

    def serve_one(*command: str, **options: Any) -> Process:
        process = Process([SERVER, *command] if command[0].startswith("--") else list(command), **options)
        running.append(process)
        return process

    yield serve_one
    for process in running:
        assert "Traceback" not in process.log, process.log
        process.close()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for localhost and its key, in files that may be replaced."""
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    replace((certificate, key), world().pair)
    return certificate, key


def replace(files: tuple[Path, Path], pair: tuple[str, str]) -> None:
    for new, old in zip(pair, files, strict=True):
        shutil.copy(new, old)


def tls_options(files: tuple[Path | str, Path | str]) -> list[str]:
    certificate, key = files
    return ["--tls-cert", str(certificate), "--tls-key", str(key)]


def addresses(process: Process, count: int = 1) -> list[tuple[str, int]]:
    """Where it listens."""

    def found() -> list[tuple[str, str]]:
        assert process.popen.poll() is None, process.log
        return re.findall(r"listening on (?:tls:)?([\d.]+):(\d+)\n", process.log)

    wait_until(lambda: len(found()) == count, "its addresses")
    return [(host, int(port)) for host, port in found()]


def names(address: tuple[str, int], name: str) -> set[str]:
    """The names in the certificate that a server shows."""
    with connect_tls(address, name=name) as client:
        certificate: Any = client.getpeercert()
    return {value for kind, value in certificate["subjectAltName"] if kind == "DNS"}


def client(*arguments: str, given: str | None = None) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of ``charcount-client``."""
    done = subprocess.run(
        [sys.executable, "-W", "error", CLIENT, "--timeout", "10", *arguments],
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def failure(*arguments: str) -> str:
    """The line of a client that fails for TLS."""
    status, stdout, stderr = client(*arguments)
    assert (status, stdout) == (EXIT_TLS, ""), stderr
    assert stderr.count("\n") == 1, stderr
    return stderr.removeprefix("charcount-client: ").removesuffix("\n")


# ---------------------------------------------------------------------- 96

# Makes a terminal the controlling one of a session of its own, and becomes the command that follows.
IN_TERMINAL = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0);"
    "os.close(int(sys.argv[1])); os.execv(sys.argv[2], sys.argv[2:])"
)

# A shell, as far as it matters here: its job is a group of its own, and gets SIGHUP just before the shell ends.
SHELL = """
import fcntl, os, signal, subprocess, sys, termios
os.setsid()
fcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0)
os.close(int(sys.argv[1]))
job = subprocess.Popen(sys.argv[2:], process_group=0)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
signal.sigwait({signal.SIGUSR1})
os.kill(job.pid, signal.SIGHUP)
os._exit(0)
"""


@needs_hangup
def test_96_hangup_reloads_and_open_connections_go_on(serve, files):
    server = serve("--listen", "tls:127.0.0.1:0", *tls_options(files))
    (address,) = addresses(server)
    with connect_tls(address) as open_before:
        open_before.sendall(b"abc\n")
        assert open_before.recv(10) == b"3\n"
        replace(files, world().issue("renewed", "renewed.example"))
        server.signal(signal.SIGHUP)
        server.wait_for_log("certificates reloaded")
        assert names(address, "renewed.example") == {"renewed.example"}
        open_before.sendall(b"abcd\n")
        assert open_before.recv(10) == b"4\n"

        files[0].write_text("half a certificate")
        server.signal(signal.SIGHUP)
        server.wait_for_log("certificates not reloaded, the old ones stay in force: ")
        assert names(address, "renewed.example") == {"renewed.example"}
    assert "stopping" not in server.log


def test_96_files_that_change_are_reloaded_without_a_signal(serve, files):
    program = (
        "import sys\n"
        "from evloop.net.tlssettings import TLSServerSettings\n"
        "TLSServerSettings.watch.__defaults__ = (0.05,)\n"
        "from evloop.charcount.cli.server import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    server = serve("-W", "error", "-c", program, "--listen", "tls:127.0.0.1:0", *tls_options(files))
    (address,) = addresses(server)
    files[0].write_text("half a certificate")
    server.wait_for_log("certificates not reloaded")
    replace(files, world().issue("renewed", "renewed.example"))
    server.wait_for_log("certificates reloaded")
    assert names(address, "renewed.example") == {"renewed.example"}


@needs_hangup
def test_96_hangup_with_nothing_to_reload_says_so_and_goes_on(serve):
    server = serve("--port", "0")
    server.signal(signal.SIGHUP) if addresses(server) else None
    server.wait_for_log("SIGHUP: there is nothing to reload; SIGTERM stops this server")
    assert server.connect().ask(b"abc\n", 2) == b"3\n"


@pytest.fixture
def terminal() -> Iterator[list[int]]:
    """Both ends of a new terminal: ours, and that of the programs. Those in it are closed in the end."""
    ends = list(os.openpty())
    yield ends
    for descriptor in ends:
        os.close(descriptor)


@needs_hangup
@pytest.mark.skipif(sys.platform != "linux", reason="what is asked of a terminal here is Linux's way")
def test_96_hangup_of_a_terminal_that_is_gone_stops_it_in_order(serve, files, terminal):
    prefix = (sys.executable, "-c", IN_TERMINAL, str(terminal[1]))
    options = ("--listen", "127.0.0.1:0", "--listen", "tls:127.0.0.1:0", *tls_options(files))
    server = serve(*options, prefix=prefix, pass_fds=(terminal[1],))
    plain, by_tls = addresses(server, 2)
    server.signal(signal.SIGHUP)  # by a person, as the terminal is still there
    server.wait_for_log("certificates reloaded")
    connection = Client(plain)
    assert connection.ask(b"abc\n", 2) == b"3\n"
    names(by_tls, "localhost")
    os.close(terminal.pop())
    os.close(terminal.pop())
    server.wait_for_log("stopping: ")
    assert connection.receive_rest() == b""
    connection.close()
    assert server.wait() == 0
    assert server.log.count("certificates reloaded") == 1


@needs_hangup
@pytest.mark.skipif(sys.platform != "linux", reason="what is asked of a terminal here is Linux's way")
def test_96_hangup_by_a_shell_that_ends_a_moment_later_stops_it_in_order(serve, terminal):
    command = (sys.executable, SERVER, "--port", "0")
    shell = serve("-W", "ignore", "-c", SHELL, str(terminal[1]), *command, pass_fds=(terminal[1],))
    addresses(shell)
    shell.signal(signal.SIGUSR1)
    wait_until(lambda: "stopped: " in shell.log, "the end of the server")


# ---------------------------------------------------------------------- 97


def test_97_wrong_port_is_one_clear_line_on_both_sides(serve, files):
    places = ("--listen", "127.0.0.1:0", "--listen", "tls:127.0.0.1:0")
    server = serve(*places, *tls_options(files), "--log-level", "warning")
    (_, plain), (_, by_tls) = addresses(server, 2)
    told = f"the server speaks TLS: use tls:127.0.0.1:{by_tls}"
    assert failure("--connect", f"127.0.0.1:{by_tls}", "hello") == told
    assert failure("--connect", f"127.0.0.1:{by_tls}", "--classic", "hello") == told
    status, stdout, stderr = client("--connect", f"127.0.0.1:{by_tls}", given="hello\n")
    assert (status, stdout, stderr) == (EXIT_TLS, "", f"charcount-client: {told}\n")
    server.wait_for_log("TLS failed: the client does not speak TLS, and this port speaks nothing else", 3)

    with socket.create_connection(("127.0.0.1", plain), DEADLINE_S) as lost:
        lost.sendall(b"\x16\x03\x01 and so on\n")
        assert lost.recv(100) == b"13\n"  # it may be text: nothing else is made of it
    server.wait_for_log("seems to speak TLS, which this port does not: ", 1)
    # Our client's own hello may have no line end, and then no answer comes; s_client's has the same.
    with listening_socket() as listener:
        threading.Thread(target=answer_once, args=(listener, b"ERR invalid-utf8 at byte 5\n")).start()
        told = failure("--connect", f"tls:127.0.0.1:{listener.getsockname()[1]}", "hello")
    assert told.endswith("the server does not speak TLS: connect to it without")


def answer_once(listener: socket.socket, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(answer)


# ---------------------------------------------------------------------- 98


def test_98_wrong_server_is_told_by_what_is_wrong_and_what_to_do(serve, files, tmp_path):
    server = serve("--listen", "tls:127.0.0.1:0", *tls_options(files))
    ((_, port),) = addresses(server)
    where = f"tls:localhost:{port}"
    trust = ("--ca", world().ca)
    assert client("--connect", where, *trust, "hello") == (0, "5\n", "")
    told = failure("--connect", where, *trust, "--server-name", "other.example", "hello")
    assert "certificate is for another name" in told
    assert told.endswith("say with --server-name which one it is")
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))
    for whom in ((), ("--ca", str(stranger))):
        told = failure("--connect", where, *whom, "hello")
        assert told.startswith(
            f"cannot connect to {where}: the server's certificate is from nobody who is trusted here"
        )
        assert told.endswith("; --ca FILE trusts its authority")
    status, stdout, stderr = client("--connect", where, "--insecure", "hello")
    assert (status, stdout) == (0, "5\n")
    assert stderr.startswith("charcount-client: --insecure: anybody between here and the server")
    told = failure("--connect", where, "--ca", str(tmp_path / "nothing"), "hello")
    assert told == f"cannot read {tmp_path / 'nothing'}: No such file or directory"


@contextmanager
def peer(context: ssl.SSLContext, talk: Callable[[ssl.SSLSocket], None]) -> Iterator[str]:
    """A server of the standard library's TLS for one client; its endpoint."""
    with listening_socket() as listener:

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    with context.wrap_socket(connection, server_side=True) as tls:
                        talk(tls)
                except OSError:
                    pass

        thread = threading.Thread(target=run)
        thread.start()
        yield f"tls:localhost:{listener.getsockname()[1]}"
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def context_of(pair: tuple[str, str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    return context


def test_98_wrong_server_whose_certificate_has_expired_or_whose_version_is_too_old():
    import datetime

    then = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    expired = world().issue("expired", "localhost", not_before=then, not_after=then + datetime.timedelta(days=1))
    with peer(context_of(expired), lambda tls: None) as where:
        told = failure("--connect", where, "--ca", world().ca, "hello")
    assert told.endswith("the server's certificate has expired: it needs a new one (or a clock is wrong)")

    old = context_of(world().pair)
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    old.options &= ~ssl.OP_NO_TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLS"):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with peer(old, lambda tls: None) as where:
        told = failure("--connect", where, "--ca", world().ca, "hello")
    assert "no version of TLS that is allowed here" in told


# ---------------------------------------------------------------------- 99


def cut(tls: ssl.SSLSocket) -> None:
    """Answer, and end the stream without TLS's goodbye."""
    tls.recv(100)
    tls.sendall(b"5\n")
    tls.shutdown(socket.SHUT_WR)
    while tls.recv(100):
        pass


def test_99_cut_stream_is_an_error_though_all_that_came_is_shown():
    with peer(context_of(world().pair), cut) as where:
        status, stdout, stderr = client("--connect", where, "--ca", world().ca, "hello", "and more")
    assert (status, stdout) == (EXIT_TLS, "5\n")
    assert stderr == "charcount-client: the stream ended without TLS's goodbye: somebody may have cut it\n"


def test_99_cut_streams_of_our_own_end_with_a_goodbye(serve, files):
    server = serve("--listen", "tls:127.0.0.1:0", *tls_options(files))
    ((_, port),) = addresses(server)
    options = ("--connect", f"tls:localhost:{port}", "--ca", world().ca)
    assert client(*options, "hello") == (0, "5\n", "")
    assert client(*options, given="a\nbb\nccc") == (0, "1\n2\n3\n", "")
    server.wait_for_log("disconnect ", 2)
    assert "goodbye" not in server.log
