"""``charcount-server`` as a process: what it says, and what each option does."""

from __future__ import annotations

import os
import re
import socket

import pytest

from clients import Client
from evloop import __version__
from paths import CLIENT, SERVER
from process.commands import one_line, run_command
from waiting import DEADLINE_S, wait_until

OPTIONS = """
    --host --port --backlog --framing --reply --classic --no-classic --max-message
    --max-connections --max-connections-per-address --idle-timeout --message-timeout --write-timeout --drain-timeout
    --log-level --version --help
"""


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


# ---------------------------------------------------------------------- what it says at the start


def test_says_where_it_really_listens(spawn):
    server = spawn()
    assert re.fullmatch(r"charcount-server: listening on 127\.0\.0\.1:[1-9]\d*\n", server.log)
    assert server.connect().ask(b"hello\n", 2) == b"5\n"


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_listens_on_an_ipv6_address(spawn):
    server = spawn("--host", "::1")
    assert re.fullmatch(r"charcount-server: listening on \[::1\]:[1-9]\d*\n", server.log)
    client = server.connect()
    assert client.ask(b"hello\n", 2) == b"5\n"
    server.wait_for_log("connect [::1]:")


def test_listens_on_each_address_of_a_name(spawn):
    found = {entry[4][0] for entry in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
    server = spawn("--host", "localhost")
    server.wait_for_log("listening on ", len(found))
    lines = re.findall(r"listening on \[?([^\]\n]+?)\]?:(\d+)\n", server.log)
    assert {host for host, _ in lines} == found
    assert len({port for _, port in lines}) == 1
    for host, port in lines:
        with Client((host, int(port))) as client:
            assert client.ask(b"abc\n", 2) == b"3\n"


# ---------------------------------------------------------------------- help and usage


@pytest.mark.parametrize(("command", "name"), [(SERVER, "charcount-server"), (CLIENT, "charcount-client")])
def test_version(command, name):
    done = run_command(command, "--version")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"{name} {__version__}\n", b"")


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize(
    ("command", "options"),
    [(SERVER, OPTIONS), (CLIENT, "TEXT --host --port --timeout --classic --version --help")],
    ids=["server", "client"],
)
def test_help(command, options, flag):
    done = run_command(command, flag, env={**os.environ, "COLUMNS": "80"})
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    assert max(map(len, text.splitlines())) <= 80
    for option in options.split():
        assert re.search(rf"(?:^|, ) *{option}\b", text, re.M), option
    assert "Exit status" in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["hello"], "unrecognized arguments: hello"),
        (["two\nlines"], r"unrecognized arguments: two\nlines"),
        (["--max", "5"], "unrecognized arguments: --max 5"),
        (["--port"], "argument -p/--port: expected one argument"),
        (["--port", "http"], "'http' is not a port"),
        (["--port", "65536"], "'65536' is not a port"),
        (["--port=-1"], "'-1' is not a port"),
        (["--framing", "json"], "argument --framing: invalid choice: 'json'"),
        (["--reply", "{}"], "argument --reply: cannot use '{}'"),
        (["--reply", "hello"], "argument --reply: 'hello' does not contain {count}"),
        (["--reply", "{count"], "argument --reply: cannot use '{count'"),
        (["--reply", "{count}\n"], "contains a line break"),
        (["--classic", "--reply", "{count}"], "--classic sets framing and reply"),
        (["--classic", "--framing", "line"], "--classic sets framing and reply"),
        (["--no-classic", "--classic", "--framing", "line"], "--classic sets framing and reply"),
        (["--max-message", "-1"], "'-1' is not a whole number of 0 or more"),
        (["--max-connections-per-address", "1.5"], "'1.5' is not a whole number"),
        (["--max-connections", "0"], "'0' is not a whole number from 1 to 2147483647"),
        (["--backlog", "2147483648"], "'2147483648' is not a whole number from 1 to 2147483647"),
        (["--max-connections", "many"], "'many' is not a whole number"),
        (["--backlog", "-1"], "'-1' is not a whole number"),
        (["--idle-timeout", "soon"], "argument --idle-timeout: 'soon' is not a number of seconds"),
        (["--message-timeout", "nan"], "'nan' is not a number of seconds"),
        (["--drain-timeout=-1"], "'-1' is not a number of seconds"),
        (["--write-timeout", "inf"], "'inf' is not a number of seconds"),
        (["--log-level", "loud"], "argument --log-level: invalid choice: 'loud'"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line(arguments, complaint):
    done = run_command(SERVER, *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    line = one_line(done.stderr)
    assert line.startswith("charcount-server: ")
    assert complaint in line
    assert line.endswith("; see charcount-server --help")


# ---------------------------------------------------------------------- what it speaks


def test_raw_framing(spawn):
    client = spawn("--framing", "raw").connect()
    assert client.ask("héllo\n".encode(), 1) == b"6"
    # The code point that is cut waits for its rest, and belongs to the next message.
    assert client.ask(b"abc\xc3", 1) == b"3"
    assert client.ask(b"\xa9d", 1) == b"2"
    client.send(b"\xff")
    client.half_close()
    assert client.receive_rest() == b"ERR invalid-utf8 at byte 0"


def test_reply_template_in_line_framing(spawn):
    client = spawn("--reply", "это {count:03d} «{{}}»").connect()
    client.send(b"hello\n")
    assert client.receive_line().decode() == "это 005 «{}»\n"


def test_reply_template_in_raw_framing(spawn):
    client = spawn("--framing", "raw", "--reply", "n={count}\n").connect()
    assert client.ask(b"hello", 4) == b"n=5\n"


def test_classic(spawn):
    client = spawn("--classic").connect()
    assert client.ask("selamat pagi é".encode(), 19) == b"Jumlah karakter: 14"
    client.half_close()
    assert client.receive_rest() == b""


def test_max_message(spawn):
    client = spawn("--max-message", "5").connect()
    client.send(b"12345\n123456\n\xff\xff\xff\xff\xff\xff\n\xff\nab\n")
    client.half_close()
    assert client.receive_rest().decode().splitlines() == [
        "5",
        "ERR too-long limit 5",
        "ERR too-long limit 5",
        "ERR invalid-utf8 at byte 0",
        "2",
    ]


# ---------------------------------------------------------------------- limits


def test_max_connections(spawn):
    server = spawn("--max-connections", "2")
    served = [server.connect() for _ in range(2)]
    for client in served:
        assert client.ask(b"a\n", 2) == b"1\n"
    refused = server.connect()
    assert refused.receive_rest() == b"ERR too-many-connections limit 2\n"
    refused.close()
    assert served[1].ask(b"abc\n", 2) == b"3\n"
    served[0].close()

    def served_again() -> bool:
        with Client(server.address) as client:
            client.send(b"ab\n")
            try:
                return client.receive_line() == b"2\n"
            except ConnectionError:
                return False  # refused once more; its line was lost in the reset, as we had sent something

    wait_until(served_again, "room for another")
    server.wait_for_log("refused: too-many-connections limit 2")


def test_max_connections_per_address(spawn):
    server = spawn("--max-connections-per-address", "1")
    assert server.connect().ask(b"a\n", 2) == b"1\n"
    assert server.connect().receive_rest() == b"ERR too-many-connections-from-address limit 1\n"
    with Client(server.address, source=("127.0.0.2", 0)) as elsewhere:
        assert elsewhere.ask(b"ab\n", 2) == b"2\n"


def test_idle_timeout(spawn):
    server = spawn("--idle-timeout", "0.2")
    client = server.connect()
    assert client.ask(b"a\n", 2) == b"1\n"
    client.was_reset()  # in either way: it ends
    server.wait_for_log("reason=LimitError: no byte in 0.2 s")


def test_message_timeout(spawn):
    server = spawn("--message-timeout", "0.2")
    quiet, slow = server.connect(), server.connect()
    assert quiet.ask(b"a\n", 2) == b"1\n"
    slow.send(b"begun")
    slow.was_reset()
    server.wait_for_log("reason=LimitError: message not complete in 0.2 s")
    assert quiet.ask(b"ab\n", 2) == b"2\n"  # nothing begun, nothing late


def test_write_timeout(spawn):
    server = spawn("--write-timeout", "0.2", "--reply", "{count:>1000}")
    client = server.connect(receive_buffer=4096)
    client.socket.settimeout(DEADLINE_S)
    client.send(b"\n" * 8_000)  # 8 MB of replies, of which not one byte is read
    server.wait_for_log("reason=LimitError: not one byte read by the peer in 0.2 s")


def test_backlog(spawn):
    """How many connections the kernel completes for a server that accepts none."""

    def completed(server) -> int:
        server.stop()
        clients = []
        try:
            for _ in range(24):
                client = socket.socket()
                clients.append(client)
                client.setblocking(False)
                client.connect_ex(server.address)
            # Writable, thus connected. Those that aren't by now have been ignored and would try again in a second.
            return sum(_is_connected(client) for client in clients)
        finally:
            for client in clients:
                client.close()
            server.resume()

    assert completed(spawn("--backlog", "4")) < 12
    assert completed(spawn("--backlog", "64")) == 24


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


# ---------------------------------------------------------------------- logs


def test_logs_each_connect_and_disconnect(spawn):
    server = spawn()
    client = server.connect()
    host, port = client.socket.getsockname()
    client.send(b"h\xe9\n\xff\nabcd\n")
    client.half_close()
    client.receive_rest()
    client.close()
    server.wait_for_log("disconnect ")
    found = re.search(
        rf"^\S+ \S+ INFO connect {re.escape(host)}:{port}\n"
        rf"\S+ \S+ INFO disconnect {re.escape(host)}:{port} "
        r"messages=3 errors=2 received=10 sent=56 seconds=(\d+\.\d{3})$",
        server.log,
        re.M,
    )
    assert found, server.log
    assert float(found[1]) < DEADLINE_S


def test_log_says_why_a_connection_was_lost(spawn):
    server = spawn()
    client = server.connect()
    assert client.ask(b"a\n", 2) == b"1\n"
    client.reset()
    server.wait_for_log("reason=ConnectionResetError")


@pytest.mark.parametrize(("level", "shown"), [("debug", True), ("info", True), ("warning", False), ("error", False)])
def test_log_level(spawn, level, shown):
    server = spawn("--log-level", level)
    with Client(server.address) as client:
        assert client.ask(b"a\n", 2) == b"1\n"
    server.signal(15)
    assert server.wait() == 0
    assert (" connect " in server.log) is shown
    assert (" disconnect " in server.log) is shown
    assert "listening on" in server.log


def test_log_is_quiet_under_load_and_counts_what_it_leaves_out(spawn):
    server = spawn()
    for _ in range(300):
        with Client(server.address) as client:
            assert client.ask(b"a\n", 2) == b"1\n"
    server.signal(15)
    assert server.wait() == 0
    shown = len(re.findall(r" INFO (?:dis)?connect ", server.log))
    left_out = sum(map(int, re.findall(r" WARNING (\d+) lines like these left out", server.log)))
    assert shown < 200, "not quiet"
    assert left_out > 0
    assert shown + left_out == 600
