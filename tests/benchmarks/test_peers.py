"""Every rival serves the same protocol: one conversation with each that can run here."""

from __future__ import annotations

import ast
import gc
import os
import random
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.comparison.runner import RunningServer, running
from benchmarks.peers import common
from benchmarks.peers.registry import KINDS, PEERS, Peer
from evloop.charcount.session import LineSession, Replies
from evloop_bench.common.paths import ROOT

# Those that differ in their environment only are the same program.
PROGRAMS = {name: peer for name, peer in PEERS.items() if not peer.environment}


@pytest.fixture(scope="module", params=PROGRAMS.values(), ids=PROGRAMS.keys())
def peer(request: pytest.FixtureRequest) -> Peer:
    found: Peer = request.param
    missing = found.missing()
    if missing:
        pytest.skip(missing)
    return found


@pytest.fixture(scope="module")
def server(peer: Peer) -> Iterator[RunningServer]:
    with running(peer) as started:
        yield started


@pytest.fixture
def client(server: RunningServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield sock


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := sock.recv(size - len(data))):
        data += piece
    return data


def test_a_message_and_an_empty_one(client: socket.socket) -> None:
    client.sendall("héllo\n".encode())
    assert read_exactly(client, 2) == b"5\n"
    client.sendall(b"\n")
    assert read_exactly(client, 2) == b"0\n"


def test_cr_before_lf_is_dropped_and_only_one(client: socket.socket) -> None:
    client.sendall(b"abc\r\na\rb\r\r\n")
    assert read_exactly(client, 4) == b"3\n4\n"


def test_a_code_point_and_a_terminator_may_be_split(client: socket.socket) -> None:
    # A whole message after each piece shows that the server has read the piece.
    text = "x🙂y\r\n".encode()
    for cut in range(1, len(text)):
        client.sendall(b"sync\n" + text[:cut])
        assert read_exactly(client, 2) == b"4\n"
        client.sendall(text[cut:])
        assert read_exactly(client, 2) == b"3\n"


def test_pipelined_messages_are_answered_in_order(client: socket.socket) -> None:
    texts = ["a" * (number % 97) + "語" * (number % 5) for number in range(3000)]
    client.sendall("".join(text + "\n" for text in texts).encode())
    expected = "".join(f"{len(text)}\n" for text in texts).encode()
    assert read_exactly(client, len(expected)) == expected


def test_an_unterminated_last_message_is_answered(peer: Peer, client: socket.socket) -> None:
    client.sendall("one\nlást".encode())
    client.shutdown(socket.SHUT_WR)
    expected = b"3\n4\n" if peer.answers_half_close else b"3\n"
    assert read_exactly(client, 100) == expected


def test_an_end_that_is_there_together_with_data_is_seen(server: RunningServer, client: socket.socket) -> None:
    client.sendall(b"sync\n")
    assert read_exactly(client, 2) == b"4\n"
    os.kill(server.pid, signal.SIGSTOP)
    try:
        client.sendall(b"one\n")
        client.shutdown(socket.SHUT_WR)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert read_exactly(client, 100) == b"3\n"


def test_invalid_text_gets_the_same_error_from_those_that_check_it(peer: Peer, client: socket.socket) -> None:
    if not peer.reports_invalid:
        pytest.skip("its library replaces invalid bytes")
    client.sendall(b"ab\xff\n" + b"\xed\xa0\x80\n" + b"\xc3\n" + b"x\xf0\x9f\x98\n" + b"ok\n")
    expected = b"".join(b"ERR invalid-utf8 at byte %d\n" % at for at in (2, 0, 0, 1)) + b"2\n"
    assert read_exactly(client, len(expected)) == expected


def test_random_bytes_are_answered_as_the_session_does(peer: Peer, client: socket.socket) -> None:
    if not peer.reports_invalid:
        pytest.skip("its library replaces invalid bytes")
    rng = random.Random(7)
    parts = [b"\r", b"\n", b"\r\n", b"a", b"\xff", b"\x80", b"\xc2", b"\xe0\xa0", b"\xed", b"\xf0\x90", b"\xf4\x8f"]
    parts += ["é".encode(), "語".encode(), "🙂".encode(), b"plain ascii text\n"]
    data = b"".join(rng.choices(parts, k=20_000)) + b"\n"
    expected = LineSession(Replies()).feed(data)
    sender = threading.Thread(target=send_in_pieces, args=(client, data, rng))
    sender.start()
    assert read_exactly(client, len(expected)) == expected
    sender.join(10)


def send_in_pieces(sock: socket.socket, data: bytes, rng: random.Random) -> None:
    while data:
        size = rng.choice((1, 7, 300, 5000))
        sock.sendall(data[:size])
        data = data[size:]


def test_a_large_message_in_one_piece(client: socket.socket) -> None:
    text = "añ" * 100_000
    client.sendall(text.encode() + b"\n")
    assert read_exactly(client, 7) == b"200000\n"


def test_every_kind_is_explained() -> None:
    assert {peer.kind for peer in PEERS.values()} == set(KINDS)


# ---------------------------------------------------------------------- all of them


def malloc_settings(peer: Peer) -> dict[str, str]:
    """What malloc is told in the environment of the peer's process."""
    with running(peer) as started:
        environment = Path(f"/proc/{started.pid}/environ").read_bytes().decode()
    return dict(re.findall(r"(MALLOC_\w+)=(\d+)", environment))


def test_rivals_whose_cost_depends_on_malloc_run_as_they_come_and_with_both_thresholds_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "12345")  # somebody's own: "as it comes" is without it
    assert malloc_settings(PEERS["asyncio-protocol"]) == {}
    raised = malloc_settings(PEERS["asyncio-protocol-malloc"])
    assert raised.keys() == {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
    assert all(int(value) >= 64 * 1024 * 1024 for value in raised.values())
    rows = {name for name in PEERS if name.startswith(("asyncio", "uvloop"))}
    plain = {"asyncio-protocol", "asyncio-streams", "uvloop-protocol", "uvloop-streams"}
    assert rows == plain | {f"{name}-malloc" for name in plain}


def test_a_python_whose_collector_cannot_freeze_runs_them_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(gc, "freeze")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        common.announce(listener)
        assert capsys.readouterr().out == f"listening on 127.0.0.1:{listener.getsockname()[1]}\n"


@pytest.mark.parametrize(
    "file", [*ROOT.glob("benchmarks/peers/*.py"), *ROOT.glob("benchmarks/soaking/*.py")], ids=lambda file: file.name
)
def test_nothing_is_used_but_public_names(file: Path) -> None:
    private = {
        node.attr
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self")
        if re.fullmatch("_(?!_).*", node.attr)
    }
    assert private <= {"_accept"}, "which is the standard library's, in the floor"


def test_folders_import_in_one_direction() -> None:
    allowed = {
        "evloop_bench/common": {"evloop_bench.common"},
        "evloop_bench/loadgen": {"evloop_bench.common", "evloop_bench.loadgen"},
        "benchmarks/peers": {"evloop_bench.common", "benchmarks.peers"},
        "benchmarks/comparison": {"evloop_bench.common", "benchmarks.peers", "benchmarks.comparison"},
        "benchmarks/soaking": {"evloop_bench.common", "benchmarks.soaking"},
    }
    files = [*ROOT.glob("benchmarks/*/*.py"), *ROOT.glob("evloop_bench/*/*.py")]
    folders = {path.parent.relative_to(ROOT).as_posix() for path in files}
    assert folders == set(allowed), "a new folder needs a place here"
    for folder, others in allowed.items():
        text = "".join(path.read_text() for path in (ROOT / folder).glob("*.py"))
        assert set(re.findall(r"(?:from|import) ((?:benchmarks|evloop_bench)\.\w+)", text)) <= others, folder
