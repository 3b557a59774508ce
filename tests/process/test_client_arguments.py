"""``charcount-client TEXT ...`` as a process: messages from arguments, exit statuses, errors in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from paths import CLIENT
from process.commands import one_line, run_client, run_command
from processes import listening_socket


@pytest.fixture(scope="module")
def port(service) -> int:
    return service.address[1]


def counts(*arguments: str | bytes, port: int) -> list[int]:
    done = run_client(port, *arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    return [int(line) for line in done.stdout.splitlines()]


# ---------------------------------------------------------------------- messages


def test_each_argument_is_a_message(port):
    assert counts("hello", "two words", "tab\there", port=port) == [5, 9, 8]


def test_characters_are_code_points(port):
    texts = ["é", "e\u0301", "日本語", "👍🏽", "\U0010ffff", "x" * 5000]
    assert counts(*texts, port=port) == [len(text) for text in texts]


def test_an_empty_argument_is_an_empty_message(port):
    assert counts("", port=port) == [0]
    assert counts("a", "", "", "b", port=port) == [1, 0, 0, 1]


def test_leading_dash_after_two_dashes(port):
    assert counts("--", "-x", "--help", "--", port=port) == [2, 6, 2]
    assert counts("a", "--", "-x", port=port) == [1, 2]
    assert counts("-5", "- a", port=port) == [2, 3]


def test_options_may_stand_between_texts(port):
    assert counts("a", "--timeout", "5", "bc", port=port) == [1, 2]
    assert counts("a", "--timeout", "5", "bc", "--", "-d-", port=port) == [1, 2, 3]


def test_many_arguments(port):
    assert counts(*["abc"] * 20_000, port=port) == [3] * 20_000


def test_undecodable_bytes_are_sent_as_they_are(port):
    done = run_client(port, "good", b"bad\xff", "fine")
    assert (done.returncode, done.stdout) == (1, b"4\n4\n")
    assert one_line(done.stderr) == "charcount-client: message 2: the server answered 'ERR invalid-utf8 at byte 3'"


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "POSIX"])
def test_the_locale_changes_nothing(port, locale):
    done = run_client(
        port, "日本語", env={**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"3\n", b"")


def test_error_of_the_server_is_one_line_and_the_rest_is_right(spawn):
    server = spawn("--max-message", "3")
    done = run_client(server.address[1], "abc", "abcd", "ab")
    assert (done.returncode, done.stdout) == (1, b"3\n2\n")
    assert one_line(done.stderr) == "charcount-client: message 2: the server answered 'ERR too-long limit 3'"


def test_reply_template_of_the_server_is_shown_as_it_is(spawn):
    server = spawn("--reply", "«{count}» characters")
    assert run_client(server.address[1], "a", "bc").stdout.decode() == "«1» characters\n«2» characters\n"


# ---------------------------------------------------------------------- wrong usage


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["two\nlines"], "TEXT 1: a message cannot contain a line break (LF), which ends a message"),
        (["fine", "ends in CR\r"], "TEXT 2: a message cannot end in CR, which counts as part of the line break"),
        (["-x"], "unrecognized arguments: -x (put -- before a TEXT that begins with -)"),
        (["--timeout", "0"], "argument --timeout: give more than 0 seconds, and not more than 1000000"),
        (["--timeout", "1000001"], "argument --timeout: give more than 0 seconds, and not more than 1000000"),
        (["--timeout", "long"], "argument --timeout: 'long' is not a number of seconds"),
        (["--port", "0"], "argument -p/--port: give the port the server listens on"),
        (["--port", "many"], "argument -p/--port: 'many' is not a port: give a number from 0 to 65535"),
        (["--classic", ""], "TEXT 1 is empty, which raw framing cannot carry"),
    ],
    ids=ascii,
)
def test_wrong_usage_is_one_line(arguments, complaint):
    done = run_client(1, *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert one_line(done.stderr) == f"charcount-client: {complaint}; see charcount-client --help"


def test_stdin_closed_and_no_text():
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} {CLIENT} <&-"], capture_output=True, timeout=10, check=False
    )
    assert done.returncode == 2
    assert "no TEXT given and stdin is closed" in one_line(done.stderr)


# ---------------------------------------------------------------------- no server


def test_refused():
    with listening_socket() as sock:
        port = sock.getsockname()[1]
    done = run_client(port, "hello")
    assert (done.returncode, done.stdout) == (3, b"")
    assert one_line(done.stderr) == (
        f"charcount-client: cannot connect to 127.0.0.1:{port}: nothing listens there; start charcount-server"
    )


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 70, "[::1]"])
def test_cannot_resolve(host):
    done = run_client(1, "--host", host, "hello")
    assert (done.returncode, done.stdout) == (3, b"")
    line = one_line(done.stderr)
    assert line.startswith(f"charcount-client: cannot resolve {host!r}: ")
    assert line.endswith("; check the name")


def test_server_hangs_up_instead_of_answering():
    with listening_socket() as sock:
        client = subprocess.Popen(
            [sys.executable, CLIENT, "--port", str(sock.getsockname()[1]), "hello"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        connection, _ = sock.accept()
        with connection:
            assert connection.recv(100) == b"hello\n"
        stdout, stderr = client.communicate(timeout=10)
    assert (client.returncode, stdout) == (3, b"")
    assert one_line(stderr) == (
        "charcount-client: the server closed the connection before it had answered all messages"
    )


def test_refusal_of_a_full_server_is_shown(spawn):
    server = spawn("--max-connections", "1")
    assert server.connect().ask(b"a\n", 2) == b"1\n"
    with open(os.devnull, "rb") as nothing:
        done = run_client(server.address[1], stdin=nothing)
    assert (done.returncode, done.stdout) == (1, b"")
    assert "ERR too-many-connections limit 1" in one_line(done.stderr)


def test_timeout(spawn):
    server = spawn()
    server.stop()
    done = run_client(server.address[1], "--timeout", "0.2", "hello")
    assert (done.returncode, done.stdout) == (4, b"")
    assert one_line(done.stderr) == "charcount-client: no answer from the server in 0.2 s; see --timeout"


def test_interrupt_while_it_waits_for_an_answer(start):
    """Also when the server answers no more: Ctrl-C is not kept waiting for what is still due."""
    with listening_socket() as sock:
        client = start(sock.getsockname()[1], "--timeout", "1000", "hello")
        connection, _ = sock.accept()
        with connection:
            assert connection.recv(100) == b"hello\n"
            client.send_signal(signal.SIGINT)
            assert client.wait(10) == 130
            assert (client.stdout.read(), client.stderr.read()) == (b"", b"")


# ---------------------------------------------------------------------- where output goes


def test_stdout_may_be_closed(port):
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} {CLIENT} --port {port} a b >&-"],
        stderr=subprocess.PIPE,
        timeout=10,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_errors_never_go_to_stdout_even_if_stderr_is_closed(port):
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} {CLIENT} --port {port} \"$(printf '\\377')\" b 2>&-"],
        stdout=subprocess.PIPE,
        timeout=10,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, b"1\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_stdout_that_cannot_be_written_is_one_line(port):
    with open("/dev/full", "wb", buffering=0) as full:
        done = run_client(port, "hello", stdout=full)
    assert done.returncode == 1
    assert one_line(done.stderr) == "charcount-client: cannot write to stdout: No space left on device"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [(), ("--classic",)], ids=str)
def test_stderr_that_cannot_be_written_changes_no_status(arguments):
    with listening_socket() as sock:
        port = sock.getsockname()[1]
    with open("/dev/full", "wb", buffering=0) as full:
        done = run_client(port, *arguments, "hello", stderr=full)
    assert (done.returncode, done.stdout) == (3, b"")


@pytest.mark.parametrize("arguments", [(), ("--classic",)], ids=str)
def test_stdin_that_cannot_be_read_is_one_line(port, arguments):
    with open(os.devnull, "wb") as write_only:
        done = run_client(port, *arguments, stdin=write_only)
    assert (done.returncode, done.stdout) == (2, b"")
    assert one_line(done.stderr) == "charcount-client: cannot read stdin: Bad file descriptor"


def test_the_longest_timeout(port):
    assert counts("--timeout", "1000000", "hello", port=port) == [5]


def test_host_is_a_name(spawn):
    server = spawn("--host", "localhost")
    done = run_command(CLIENT, "--host", "localhost", "--port", str(server.address[1]), "abc")
    assert (done.returncode, done.stdout) == (0, b"3\n")
