"""What a generator connection makes of what it receives, however it is cut. No sockets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evloop_bench.loadgen.clients import CheckedClient, ClosedLoopClient, OpenLoopClient, clock_ns
from evloop_bench.loadgen.tally import Run
from evloop_bench.loadgen.workload import Pool

TEXTS = [("x" * (n * 37 % 120)).encode() for n in range(40)]


class FakeConnection:
    """Takes what is sent."""

    def __init__(self) -> None:
        self.sent = b""
        self.aborted = False
        self.closing = False
        self.unsent_bytes = 0
        self.bytes_sent = self.bytes_received = 0

    def reply(self, data: bytes) -> None:
        self.sent += data

    write = reply

    def abort(self) -> None:
        self.aborted = True


class FakeLoop:
    """All that a client wants of a loop."""

    def flush_writes(self) -> None: ...


def start_client(window: int, position: int = 3) -> tuple[ClosedLoopClient, FakeConnection, Run]:
    """A closed-loop client that has sent its first window."""
    run = Run(FakeLoop(), Pool(TEXTS), window, 5.0)  # type: ignore[arg-type]
    run.sending = True
    client = ClosedLoopClient(run, position)
    connection = FakeConnection()
    client.connection = connection  # type: ignore[assignment]
    client.on_connect()
    client.start()
    return client, connection, run


class Answers:
    """A server's side of a `FakeConnection`: what it replies, message by message.

    Args:
        wrong: the number of the message whose count is one too high, from 0; None for none.
    """

    def __init__(self, connection: FakeConnection, wrong: int | None = None) -> None:
        self._connection = connection
        self._wrong = wrong
        self._taken = 0
        self.messages = 0
        self.due = b""

    def more(self) -> bytes:
        """What it has yet to send."""
        lines = self._connection.sent[self._taken :].split(b"\n")[:-1]
        self._taken = len(self._connection.sent)
        for line in lines:
            self.due += b"%d\n" % (len(line) + (self.messages == self._wrong))
            self.messages += 1
        return self.due

    def send_to(self, client: CheckedClient, size: int | None = None) -> bytes:
        """Hand the client the next bytes, all by default. Returns them."""
        piece = self.more()[:size]
        self.due = self.due[len(piece) :]
        receive(client, piece)
        return piece


def receive(client: CheckedClient, data: bytes) -> None:
    """As a connection does it: what `on_data` returns is sent."""
    answer = client.on_data(data)
    if answer:
        client.connection.reply(answer)


@given(st.integers(1, 40), st.data())
def test_right_replies_are_right_however_they_are_cut(window: int, data: st.DataObject) -> None:
    client, connection, run = start_client(window)
    server = Answers(connection)
    received = 0
    for _ in range(30):
        assert server.more(), "nothing in flight: the client has stopped"
        received += server.send_to(client, data.draw(st.integers(1, len(server.due)))).count(b"\n")
    client.settle()
    tally = run.tally
    assert (tally.wrong, tally.examples) == (0, [])
    assert tally.replies == received == sum(tally.latency.values())
    assert tally.sent == connection.sent.count(b"\n")
    assert client.in_flight == tally.sent - tally.replies == window


@pytest.mark.parametrize("made_bytes", [0, 1 << 20], ids=["cut from the pool each time", "made before"])
@pytest.mark.parametrize("window", [1, 3, 40])
def test_whole_windows_stay_on_the_fast_path(window: int, made_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evloop_bench.loadgen.workload._MADE_TURNS_BYTES", made_bytes)
    client, connection, run = start_client(window)
    server = Answers(connection)
    server.send_to(client)  # from here on
    monkeypatch.setattr(CheckedClient, "on_data", None)
    for _ in range(100):
        server.send_to(client)
    client.settle()
    assert sum(run.tally.latency.values()) == run.tally.replies == 101 * window
    assert client.in_flight == window


@given(st.integers(1, 12), st.integers(0, 25), st.data())
def test_one_wrong_reply_is_one_wrong_reply(window: int, wrong: int, data: st.DataObject) -> None:
    client, connection, run = start_client(window)
    server = Answers(connection, wrong)
    while server.messages <= wrong + 2 * window:
        server.send_to(client, data.draw(st.integers(1, len(server.more()))))
    server.send_to(client)
    client.settle()
    assert run.tally.wrong == 1
    assert len(run.tally.examples) == 1
    assert run.tally.replies == run.tally.sent - client.in_flight


@pytest.mark.parametrize("window", [1, 4])
def test_a_reply_to_nothing_is_wrong(window: int) -> None:
    client, connection, run = start_client(window)
    run.sending = False
    client.settle()
    client.on_data(Answers(connection).more() + b"7\n")
    assert run.tally.wrong == 1
    assert "a reply to nothing" in run.tally.examples[0]
    assert run.tally.replies == window


def test_a_missing_newline_and_garbage_do_not_pass() -> None:
    client, connection, run = start_client(1)
    client.on_data(b"z" * 5000)
    assert run.tally.wrong == 1
    assert connection.aborted


def test_a_server_that_is_full_refuses() -> None:
    client, _, run = start_client(2)
    client.on_data(b"ERR too-many-connections limit 5\n")
    assert (run.tally.refused, run.tally.wrong) == (1, 0)


def test_a_budget_is_kept() -> None:
    run = Run(FakeLoop(), Pool(TEXTS), 4, 5.0)  # type: ignore[arg-type]
    run.sending = True
    run.budget = 10
    client = ClosedLoopClient(run, 0)
    connection = FakeConnection()
    client.connection = connection  # type: ignore[assignment]
    client.on_connect()
    client.start()
    server = Answers(connection)
    while server.more():
        server.send_to(client)
    assert (run.tally.sent, run.tally.replies, client.in_flight) == (10, 10, 0)


def test_an_open_loop_measures_from_the_intended_send() -> None:
    run = Run(FakeLoop(), Pool(TEXTS), 1, 5.0)  # type: ignore[arg-type]
    run.sending = True
    client = OpenLoopClient(run, 0)
    connection = FakeConnection()
    client.connection = connection  # type: ignore[assignment]
    client.on_connect()
    now_ns = clock_ns()
    assert client.send(now_ns - 2_000_000_000, now_ns)
    Answers(connection).send_to(client)
    (latency_ns,) = run.tally.latency
    (service_ns,) = run.tally.service
    assert latency_ns >= 1_990_000_000
    assert service_ns < latency_ns - 1_900_000_000


def test_an_open_loop_counts_only_what_was_meant_for_the_measured_time() -> None:
    run = Run(FakeLoop(), Pool(TEXTS), 1, 5.0)  # type: ignore[arg-type]
    run.sending = True
    run.from_ns, run.to_ns = 1000, 2000
    client = OpenLoopClient(run, 0)
    connection = FakeConnection()
    client.connection = connection  # type: ignore[assignment]
    client.on_connect()
    for intended_ns in (999, 1000, 1999, 2000):
        client.send(intended_ns, intended_ns)
    Answers(connection).send_to(client)
    assert run.tally.replies == 4
    assert sum(run.tally.latency.values()) == 2


def test_what_can_not_be_sent_is_said_so() -> None:
    run = Run(FakeLoop(), Pool(TEXTS), 1, 5.0)  # type: ignore[arg-type]
    client = OpenLoopClient(run, 0)
    assert not client.send(0, 0), "never connected"
    connection = FakeConnection()
    client.connection = connection  # type: ignore[assignment]
    client.on_connect()
    connection.unsent_bytes = 2 << 20
    assert not client.send(0, 0), "the server does not read"
