"""What a generator connection makes of what it receives, however it is cut. No sockets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loadgen.clients import ClosedLoopClient, OpenLoopClient
from loadgen.tally import Run
from loadgen.workload import Pool

TEXTS = [("x" * (n * 37 % 120)).encode() for n in range(40)]


class FakeConnection:
    """Takes what is sent. The state that `evloop.connection.flush_pending` looks at says that all has left."""

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

    def __init__(self) -> None:
        self.pending_writes: list[Any] = []


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


def answers(requests: bytes) -> bytes:
    """What a right server replies."""
    return b"".join(b"%d\n" % len(line) for line in requests.split(b"\n")[:-1])


@given(st.integers(1, 40), st.data())
def test_right_replies_are_right_however_they_are_cut(window: int, data: st.DataObject) -> None:
    client, connection, run = start_client(window)
    received = 0
    for _ in range(30):
        due = answers(connection.sent)
        assert due[received:], "nothing in flight: the client has stopped"
        cut = data.draw(st.integers(1, len(due) - received))
        client.on_data(due[received : received + cut])
        received += cut
    client.settle()
    tally = run.tally
    whole = answers(connection.sent)[:received].count(b"\n")
    assert (tally.wrong, tally.examples) == (0, [])
    assert tally.replies == whole == sum(tally.latency.values())
    assert tally.sent == connection.sent.count(b"\n")
    assert client.in_flight == tally.sent - tally.replies == window


@given(st.integers(1, 12), st.integers(0, 150), st.data())
def test_one_wrong_reply_is_one_wrong_reply(window: int, which: int, data: st.DataObject) -> None:
    client, connection, run = start_client(window)
    received = 0
    for _ in range(400):
        lines = answers(connection.sent).split(b"\n")[:-1]
        if len(lines) > which:
            lines[which] = b"%d" % (int(lines[which]) + 1)
        due = b"".join(line + b"\n" for line in lines)
        if run.tally.replies > which + 2 * window and received == len(due):
            break
        cut = data.draw(st.integers(1, len(due) - received)) if which < 20 else len(due) - received
        client.on_data(due[received : received + cut])
        received += cut
        client.settle()
        client._try_steady()
    assert run.tally.wrong == (1 if len(lines) > which else 0)
    assert len(run.tally.examples) == run.tally.wrong


@pytest.mark.parametrize("window", [1, 4])
def test_a_reply_to_nothing_is_wrong(window: int) -> None:
    client, connection, run = start_client(window)
    run.sending = False
    client.settle()
    client.on_data(answers(connection.sent) + b"7\n")
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
    received = 0
    while received < len(due := answers(connection.sent)):
        client.on_data(due[received:])
        received = len(due)
    assert (run.tally.sent, run.tally.replies, client.in_flight) == (10, 10, 0)


def test_an_open_loop_measures_from_the_intended_send() -> None:
    run = Run(FakeLoop(), Pool(TEXTS), 1, 5.0)  # type: ignore[arg-type]
    run.sending = True
    client = OpenLoopClient(run, 0)
    connection = FakeConnection()
    client.connection = connection  # type: ignore[assignment]
    client.on_connect()
    from loadgen.clients import clock_ns

    now_ns = clock_ns()
    assert client.send(now_ns - 2_000_000_000, now_ns)
    client.on_data(answers(connection.sent))
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
    client.on_data(answers(connection.sent))
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
