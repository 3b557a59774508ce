"""``charcount-client`` with a pipe or a file as stdin: pipelined, in order, in flat memory, and with a clean end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from interpreters import gives_memory_back
from paths import CLIENT
from process.commands import PYTHON, answering, one_line, run_client
from processes import listening_socket
from waiting import DEADLINE_S, wait_until


@pytest.fixture(scope="module")
def port(service) -> int:
    return service.address[1]


# ---------------------------------------------------------------------- what is sent and shown


@pytest.mark.parametrize(
    ("stdin", "stdout"),
    [
        (b"", b""),
        (b"\n", b"0\n"),
        (b"hello\nhi\n", b"5\n2\n"),
        (b"hello\nhi", b"5\n2\n"),
        (b"hello", b"5\n"),
        (b"hello\r\nhi\r\n\r\n", b"5\n2\n0\n"),
        (b"cr\r", b"3\n"),
        ("日本語\né\n".encode(), b"3\n1\n"),
        (b"\0\t\x1b[A\n", b"5\n"),
        (b"-x\n--help\n", b"2\n6\n"),
    ],
    ids=ascii,
)
def test_lines(port, stdin, stdout):
    done = run_client(port, input=stdin)
    assert (done.returncode, done.stdout, done.stderr) == (0, stdout, b"")


def test_invalid_text_in_the_middle(port):
    done = run_client(port, input=b"one\ntwo\n\xff\xfe\nfour\nfi\xffve\nsix")
    assert (done.returncode, done.stdout) == (1, b"3\n3\n4\n3\n")
    assert done.stderr.decode().splitlines() == [
        "charcount-client: message 3: the server answered 'ERR invalid-utf8 at byte 0'",
        "charcount-client: message 5: the server answered 'ERR invalid-utf8 at byte 2'",
    ]


def test_error_in_an_unterminated_last_line(port):
    done = run_client(port, input=b"one\n\xc3")
    assert (done.returncode, done.stdout) == (1, b"3\n")
    assert one_line(done.stderr) == "charcount-client: message 2: the server answered 'ERR invalid-utf8 at byte 0'"


def test_lines_of_all_sizes(port):
    dice = random.Random(7)
    sizes = [dice.choice([0, 1, 10, 1000, 65_535, 65_536, 200_000]) for _ in range(200)]
    done = run_client(port, input=b"".join(b"x" * size + b"\n" for size in sizes))
    assert [int(line) for line in done.stdout.splitlines()] == sizes
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("kind", ["file", "null"])
def test_file_as_stdin(port, tmp_path, kind):
    """epoll refuses to watch regular files."""
    path = tmp_path / "lines"
    path.write_bytes(b"a\nbc\n" * 50_000)
    with open(path if kind == "file" else os.devnull, "rb") as stdin:
        done = run_client(port, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (b"1\n2\n" * 50_000 if kind == "file" else b"")


# ---------------------------------------------------------------------- a stream of any length


LINES = 1_000_000
SHORT_RUN = 1_000


def lines_and_memory(port: int, count: int, line: bytes) -> tuple[bytes, int]:
    """Pipe so many lines through the client; its stdout, and its peak of memory in bytes."""
    # Of a child alone it is a grandchild that can be asked for: so the client is run by a process of its own.
    program = (
        "import resource, subprocess, sys\n"
        "status = subprocess.call(sys.argv[1:])\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)\n"
        "sys.exit(status)"
    )
    done = subprocess.run(
        [*PYTHON, "-c", program, *PYTHON, CLIENT, "--port", str(port)],
        input=line * count,
        capture_output=True,
        timeout=6 * DEADLINE_S,
        check=True,
    )
    kilobytes = int(one_line(done.stderr))
    return done.stdout, kilobytes * (1 if sys.platform == "darwin" else 1024)


@gives_memory_back
def test_a_million_lines_in_flat_memory(port):
    few, memory_for_few = lines_and_memory(port, SHORT_RUN, b"hello world\n")
    assert few == b"11\n" * SHORT_RUN
    many, memory_for_many = lines_and_memory(port, LINES, b"hello world\n")
    assert many == b"11\n" * LINES
    assert memory_for_many - memory_for_few < 2_000_000


def test_replies_many_times_as_long_as_the_messages(spawn):
    """A client that sends all before it reads would hang here: 40 MB of replies fit in no buffer."""
    server = spawn("--reply", "{count:>200}")
    done = run_client(server.address[1], input=b"\n" * 200_000)
    assert done.returncode == 0
    assert done.stdout == (b" " * 199 + b"0\n") * 200_000


def test_errors_many_times_as_long_as_the_messages(port):
    done = run_client(port, input=b"\xff\n" * 50_000)
    assert (done.returncode, done.stdout) == (1, b"")
    lines = done.stderr.splitlines()
    assert len(lines) == 50_000
    assert lines[-1] == b"charcount-client: message 50000: the server answered 'ERR invalid-utf8 at byte 0'"


def test_each_line_of_a_slow_pipe_is_answered_as_it_comes(start, port):
    client = start(port, bufsize=0)
    for size in range(20):
        client.stdin.write(b"x" * size + b"\n")
        assert client.stdout.readline() == b"%d\n" % size
    client.stdin.write(b"in two")
    client.stdin.write(b" pieces\n")
    assert client.stdout.readline() == b"13\n"
    client.stdin.close()
    assert client.wait(DEADLINE_S) == 0
    assert client.stderr.read() == b""


def test_a_pipe_may_be_silent_for_longer_than_the_timeout(start, port):
    """--timeout is about the server, not about who feeds the client."""
    client = start(port, "--timeout", "0.1", bufsize=0)
    for _ in range(2):
        client.stdin.write(b"abc\n")
        assert client.stdout.readline() == b"3\n"
        waited = psutil.Process(client.pid)
        with pytest.raises(psutil.TimeoutExpired):
            waited.wait(0.3)  # it lives for three times its timeout
    client.stdin.close()
    assert client.wait(DEADLINE_S) == 0


# ---------------------------------------------------------------------- how it ends


def test_reader_of_stdout_has_enough(port):
    """``charcount-client < lines | head -2``, with more lines than any buffer holds."""
    command = subprocess.Popen(
        ["/bin/sh", "-c", f"{sys.executable} {CLIENT} --port {port}; echo status $? >&2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )

    def feed() -> None:
        try:
            for _ in range(1000):
                command.stdin.write(b"abc\n" * 10_000)
        except BrokenPipeError:
            pass

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert command.stdout.readline() == b"3\n"
    command.stdout.close()
    feeder.join(DEADLINE_S)
    try:
        command.stdin.close()
    except BrokenPipeError:
        pass
    assert command.stderr.read() == b"status 0\n"
    command.stderr.close()
    assert command.wait(DEADLINE_S) == 0


def test_reader_of_stdout_was_never_there(port):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run_client(port, "a", "b", stdout=writer)
        assert (done.returncode, done.stderr) == (0, b"")
        done = run_client(port, input=b"a\nb\n", stdout=writer)
        assert (done.returncode, done.stderr) == (0, b"")
    finally:
        os.close(writer)


def test_server_killed_in_mid_conversation(spawn, start):
    server = spawn()
    client = start(server.address[1], bufsize=0)
    client.stdin.write(b"abc\n")
    assert client.stdout.readline() == b"3\n"
    server.popen.kill()  # the client waits for its pipe, and must notice all the same
    assert client.wait(DEADLINE_S) == 3
    assert one_line(client.stderr.read()) == "charcount-client: the server closed the connection; messages answered: 1"


def test_server_killed_while_all_pipes_are_full(spawn, start):
    server = spawn()
    client = start(server.address[1])
    server.stop()
    feeder = threading.Thread(target=_feed, args=(client.stdin, b"abc\n" * 5_000_000))
    feeder.start()
    # The client is stuck when the kernel takes no more: then all of it waits in poll.
    wait_until(lambda: psutil.Process(client.pid).status() == psutil.STATUS_SLEEPING, "the client waits")
    server.popen.kill()
    assert client.wait(DEADLINE_S) == 3
    assert "the server closed the connection; messages answered: 0" in one_line(client.stderr.read())
    feeder.join(DEADLINE_S)


def _feed(stream, data: bytes) -> None:
    try:
        stream.write(data)
        stream.close()
    except BrokenPipeError:
        pass


def test_timeout(spawn):
    server = spawn()
    server.stop()
    done = run_client(server.address[1], "--timeout", "0.2", input=b"hello\n")
    assert (done.returncode, done.stdout) == (4, b"")
    assert one_line(done.stderr) == "charcount-client: no answer from the server in 0.2 s; see --timeout"


def test_a_pipe_that_goes_on_does_not_put_off_the_timeout(spawn, start):
    """Lines that are sent are no sign of life of the server."""
    server = spawn()
    server.stop()
    client = start(server.address[1], "--timeout", "0.5", bufsize=0)
    stop = threading.Event()

    def trickle() -> None:
        try:
            while not stop.wait(0.05):
                client.stdin.write(b"abc\n")
        except BrokenPipeError:
            pass

    feeder = threading.Thread(target=trickle)
    feeder.start()
    try:
        assert client.wait(DEADLINE_S) == 4
    finally:
        stop.set()
        feeder.join(DEADLINE_S)


def test_timeout_for_the_server_to_close(start):
    """All is answered, and the server has been told that this is the end, but it does not hang up."""
    with listening_socket() as sock:
        client = start(sock.getsockname()[1], "--timeout", "0.2", bufsize=0)
        connection, _ = sock.accept()
        with connection:
            client.stdin.write(b"abc\n")
            assert connection.recv(10) == b"abc\n"
            connection.sendall(b"3\n")
            client.stdin.close()
            assert client.wait(DEADLINE_S) == 4
            assert client.stdout.read() == b"3\n"


def test_interrupt(start, port):
    client = start(port, bufsize=0)
    client.stdin.write(b"abc\n")
    assert client.stdout.readline() == b"3\n"
    client.send_signal(signal.SIGINT)
    assert client.wait(DEADLINE_S) == 130
    assert client.stderr.read() == b""


# ---------------------------------------------------------------------- a server that does not speak line framing


@pytest.mark.parametrize("arguments", [(), ("a", "b")], ids=["pipe", "arguments"])
@pytest.mark.parametrize("size", [1, 4096, 65_536])
def test_a_reply_that_never_ends_is_an_error(arguments, size):
    """It is not held until memory is used up, nor waited for."""
    with answering(b"1\n", b"9" * size, forever=True) as port:
        done = run_client(port, *arguments, input=b"" if arguments else b"a\nb\n")
    assert (done.returncode, done.stdout) == (1, b"1\n")
    assert one_line(done.stderr) == (
        "charcount-client: the server sent more than 65536 bytes without a line end: "
        "is that a charcount-server in line framing?"
    )


@pytest.mark.parametrize("arguments", [(), ("a", "b", "c")], ids=["pipe", "arguments"])
@pytest.mark.parametrize("cut", [0, 1, 2, 3, 65_535, 65_537, 65_538, 65_539], ids=str)
def test_the_longest_reply(arguments, cut):
    """However it comes in pieces."""
    replies = b"1\n" + b"2" * 65_536 + b"\n3\n"
    with answering(replies[:cut], replies[cut:]) as port:
        done = run_client(port, *arguments, input=b"" if arguments else b"a\nb\nc\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, replies, b"")


@pytest.mark.parametrize("cut", [0, 3, 65_538], ids=str)
def test_one_byte_more_than_the_longest_reply(cut):
    replies = b"1\n" + b"2" * 65_537 + b"\n3\n"
    with answering(replies[:cut], replies[cut:]) as port:
        done = run_client(port, input=b"a\nb\nc\n")
    assert (done.returncode, done.stdout) == (1, b"1\n")
    assert "more than 65536 bytes without a line end" in one_line(done.stderr)
