"""TLS at both command lines: settings, files that can't be used, each way to send, clients that are not ours."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from evloop import TLSClientSettings, TLSError
from evloop.charcount.client import CharCountClient
from interpreters import tells_imports
from paths import CLIENT, SERVER
from process.commands import PYTHON, one_line, run_command
from process.test_start import PYTHON_OPTIONS, imported
from processes import Process, listening_socket
from tlsworld import world
from waiting import DEADLINE_S

EXIT_USAGE, EXIT_TLS = 2, 5
TLS = ("--listen", "tls:127.0.0.1:0")


def options(pair: tuple[str, str]) -> list[str]:
    return ["--tls-cert", pair[0], "--tls-key", pair[1]]


class Service:
    """A server of TLS in a process, and where it is."""

    def __init__(self, *arguments: str) -> None:
        self.process = Process(["-W", "error", SERVER, *TLS, *options(world().pair), *arguments])
        self.process.wait_for_log("listening on tls:127.0.0.1:")
        found = re.search(r"listening on (tls:\S+:(\d+))\n", self.process.log)
        assert found, self.process.log
        self.endpoint, self.port = found[1], int(found[2])

    def close(self) -> None:
        assert "Traceback" not in self.process.log, self.process.log
        self.process.close()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


@pytest.fixture
def classic() -> Iterator[Service]:
    service = Service("--classic")
    yield service
    service.close()


# ---------------------------------------------------------------------- the server's settings


def complaint(status: int, *arguments: str) -> str:
    done = run_command(SERVER, *arguments)
    assert (done.returncode, done.stdout) == (status, b""), done.stderr
    return one_line(done.stderr)


def test_options_that_do_not_fit_together() -> None:
    pair = options(world().pair)
    assert "needs a certificate and its key: give --tls-cert FILE and --tls-key FILE" in complaint(EXIT_USAGE, *TLS)
    assert "no endpoint speaks TLS: put tls: in front of one" in complaint(EXIT_USAGE, "--port", "0", *pair)
    assert "--tls-key needs its certificate" in complaint(EXIT_USAGE, *TLS, "--tls-key", "x")
    assert "2 --tls-cert and 1 --tls-key: give a key for each" in complaint(EXIT_USAGE, *TLS, *pair, "--tls-cert", "x")
    assert "needs a certificate of its own" in complaint(EXIT_USAGE, "--tls-client-ca", world().ca)
    assert "needs authorities" in complaint(EXIT_USAGE, *TLS, *pair, "--tls-client-auth", "optional")
    assert "--tls-min-version" in complaint(EXIT_USAGE, *TLS, *pair, "--tls-min-version", "1.1")


@pytest.mark.parametrize("check", [(), ("--check-config",)])
def test_files_that_cannot_be_used_have_an_exit_status_of_their_own(tmp_path: Path, check: tuple[str, ...]) -> None:
    certificate, key = world().pair
    missing = str(tmp_path / "missing.pem")
    line = complaint(EXIT_TLS, *TLS, *options((missing, key)), *check)
    assert line == f"charcount-server: cannot read {missing}: No such file or directory"
    other = world().issue("other", "other.example")
    assert certificate in complaint(EXIT_TLS, *TLS, *options((certificate, other[1])), *check)
    loose = tmp_path / "loose.key"
    shutil.copy(key, loose)
    loose.chmod(0o644)
    assert "others have access to the key in" in complaint(EXIT_TLS, *TLS, *options((certificate, str(loose))), *check)
    locked = str(tmp_path / "locked.key")
    command = ["openssl", "pkey", "-in", key, "-aes128", "-passout", "pass:secret", "-out", locked]
    if shutil.which("openssl"):
        subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_S)
        os.chmod(locked, 0o600)
        assert "passphrase" in complaint(EXIT_TLS, *TLS, *options((certificate, locked)), *check)


def test_check_config_says_that_good_files_are_good() -> None:
    done = run_command(SERVER, *TLS, *options(world().pair), "--check-config")
    assert (done.returncode, done.stderr) == (0, b"charcount-server: the settings are good\n")


def test_settings_survive_print_config(tmp_path: Path) -> None:
    first = (*TLS, "--tls-cert", "/a b,c.pem", "--tls-cert", "/d.pem", "--tls-min-version", "1.3")
    printed = run_command(SERVER, *first, "--print-config").stdout
    assert b"CHARCOUNT_TLS_MIN_VERSION=1.3\n" in printed
    file = tmp_path / "environment"
    file.write_bytes(printed)
    shell = 'set -a; . "$1"; shift; exec "$@"'
    again = subprocess.run(
        ["sh", "-c", shell, "sh", str(file), sys.executable, SERVER, "--print-config"],
        capture_output=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert again.stdout == printed


def test_a_certificate_on_the_command_line_is_not_paired_with_a_key_of_the_environment() -> None:
    done = run_command(
        SERVER,
        *TLS,
        *("--tls-cert", "/new.pem", "--print-config"),
        env={"CHARCOUNT_TLS_CERT": "/old.pem", "CHARCOUNT_TLS_KEY": "/old.key"},
    )
    assert b"CHARCOUNT_TLS_CERT=/new.pem\n" in done.stdout
    assert b"CHARCOUNT_TLS_KEY=\n" in done.stdout


@tells_imports
def test_who_does_not_speak_tls_does_not_load_it(service: Service) -> None:
    command = [sys.executable, *PYTHON_OPTIONS]
    done = subprocess.run([*command, SERVER, "--check-config"], capture_output=True, text=True, timeout=DEADLINE_S)
    assert "ssl" not in imported(done.stderr)
    done = subprocess.run(
        [*command, SERVER, *TLS, "--check-config"], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert "ssl" not in imported(done.stderr)  # a usage error comes first
    asked = ["--connect", service.endpoint, "--ca", world().ca, "hello"]
    done = subprocess.run([*command, CLIENT, *asked], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.stdout == "5\n"
    assert "ssl" in imported(done.stderr)


# ---------------------------------------------------------------------- the log, the status


def test_the_log_has_version_cipher_name_and_subject_and_the_status_counts() -> None:
    pair = world().issue("anna", "anna@example.org", common_name="anna")
    service = Service("--tls-client-ca", world().ca, "--tls-min-version", "1.3")
    try:
        where = ("--connect", f"tls:localhost:{service.port}", "--ca", world().ca)
        done = run_command(CLIENT, *where, "--cert", pair[0], "--key", pair[1], "hello")
        assert (done.returncode, done.stdout) == (0, b"5\n"), done.stderr
        service.process.wait_for_log("disconnect ")
        assert re.search(
            r"connect 127\S+ TLSv1\.3 TLS_\w+ name=localhost subject=.*commonName=anna\n", service.process.log
        )
        done = run_command(CLIENT, *where, "hello")
        assert (done.returncode, done.stdout) == (EXIT_TLS, b"")
        assert "the server wants a certificate from us: give one, with its key" in one_line(done.stderr)
        service.process.signal(signal.SIGUSR1)
        service.process.wait_for_log("tls_failures        certificate 1")
        assert "tls_handshakes      TLSv1.3 1, resumed 0\n" in service.process.log
    finally:
        service.close()


def test_a_certificate_that_expires_soon_is_a_warning_at_the_start() -> None:
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3)
    pair = world().issue("soon", "localhost", not_after=then)
    with Process([SERVER, *TLS, *options(pair)]) as process:
        process.wait_for_log(f"WARNING the certificate in {pair[0]} expires in 3.0 days, at ")


# ---------------------------------------------------------------------- each way to send


def run_client(service: Service, *arguments: str, **more: object) -> tuple[int, bytes, bytes]:
    done = run_command(CLIENT, "--connect", service.endpoint, "--ca", world().ca, *arguments, **more)
    return done.returncode, done.stdout, done.stderr


def test_arguments_and_pipe(service: Service) -> None:
    assert run_client(service, "hello", "", "h\xe9llo") == (0, b"5\n0\n5\n", b"")
    lines = b"".join(b"x" * (number % 50) + b"\n" for number in range(100_000))
    expected = b"".join(b"%d\n" % (number % 50) for number in range(100_000))
    assert run_client(service, input=lines) == (0, expected, b"")
    assert run_client(service, input=b"x" * 3_000_000 + b"\nabc") == (0, b"3000000\n3\n", b"")


def test_classic(classic: Service) -> None:
    assert run_client(classic, "--classic", "Halo dunia", "ya") == (
        0,
        b"Jumlah karakter: 10\nJumlah karakter: 2\n",
        b"",
    )
    assert run_client(classic, "--classic", input=b"ab\nc\n") == (0, b"Jumlah karakter: 2\nJumlah karakter: 1\n", b"")


def test_terminal(service: Service) -> None:
    child = pexpect.spawn(
        PYTHON[0],
        [*PYTHON[1:], CLIENT, "--connect", service.endpoint, "--ca", world().ca],
        encoding="utf-8",
        timeout=DEADLINE_S,
    )
    child.delaybeforesend = None
    child.expect_exact("> ")
    child.sendline("hello")
    child.expect(r"\r\n5\r\n")
    child.expect_exact("> ")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_options_of_the_client_that_do_not_fit_together() -> None:
    def told(*arguments: str) -> str:
        done = run_command(CLIENT, *arguments, "hello")
        assert (done.returncode, done.stdout) == (EXIT_USAGE, b"")
        return one_line(done.stderr)

    assert "--ca is for TLS: give --connect tls:HOST:PORT" in told("--ca", "x")
    assert "--insecure is for TLS" in told("--insecure", "--connect", "localhost:1")
    assert "--key needs its certificate" in told("--connect", "tls:localhost:1", "--key", "x")
    assert "leave out one of them" in told("--connect", "tls:localhost:1", "--insecure", "--ca", "x")


def test_a_server_that_does_not_answer_the_handshake_is_given_up(free_server: int) -> None:
    done = run_command(CLIENT, "--timeout", "0.3", "--connect", f"tls:127.0.0.1:{free_server}", "hello")
    assert done.returncode == 4
    assert one_line(done.stderr).endswith("no answer to the TLS handshake in 0.3 s; does the server speak TLS there?")


@pytest.fixture
def free_server() -> Iterator[int]:
    """The port of a socket that listens, and takes nobody."""
    with listening_socket() as listener:
        yield listener.getsockname()[1]


def test_client_of_the_library(service: Service) -> None:
    settings = TLSClientSettings(ca=world().ca)
    with CharCountClient("localhost", service.port, tls=settings) as client:
        assert client.count("hello") == 5
        assert list(client.count_many(["x" * number for number in range(5000)])) == list(range(5000))
    with CharCountClient(service.endpoint, tls=settings) as client:
        assert client.count("hello") == 5
    with pytest.raises(TLSError) as caught:
        CharCountClient(service.endpoint)
    assert caught.value.kind == "chain"


# ---------------------------------------------------------------------- peers that are not ours


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_s_client(service: Service, version: str) -> None:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{service.port}", "-CAfile", world().ca, version, "-quiet"]
    command += ["-servername", "localhost", "-verify_return_error"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"5\n"
        process.kill()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_s_server(version: str) -> None:
    """It answers each line with the line reversed: no count, but a reply."""
    certificate, key = world().pair
    command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-cert", certificate, "-key", key, version, "-rev"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            line = b""
            while not line.startswith(b"ACCEPT"):
                line = process.stdout.readline()
                assert line, "it did not start"
            port = int(line.rpartition(b":")[2])
            done = run_command(CLIENT, "--connect", f"tls:127.0.0.1:{port}", "--ca", world().ca, "hello", "ab")
            assert (done.returncode, done.stdout) == (0, b"olleh\nba\n"), done.stderr
        finally:
            process.kill()
