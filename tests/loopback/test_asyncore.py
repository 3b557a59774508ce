"""asyncore's interface: both kinds in one loop, who is asked before a wait, what epoll does otherwise than select().

What the old modules did is tested by their own tests: tests/process/test_asyncore_of_cpython.py.
"""

from __future__ import annotations

import gc
import os
import resource
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

import descriptors
from clients import Client
from evloop import EventLoop, Protocol, Server
from evloop.compat import asynchat, asyncore
from servers import small_limits
from waiting import run_pass, run_until


class Peer(asyncore.dispatcher_with_send):
    """Keeps what it receives."""

    def __init__(self, sock: Any = None, map: Any = None) -> None:
        super().__init__(sock, map)
        self.received = b""
        self.closed = False

    def handle_read(self) -> None:
        self.received += self.recv(65536)

    def handle_close(self) -> None:
        self.closed = True
        self.close()

    def handle_connect(self) -> None:
        pass


class Echo(Peer):
    def handle_read(self) -> None:
        self.send(self.recv(65536))


class Chat(asynchat.async_chat):
    """Answers each line with the same line."""

    def __init__(self, sock: Any = None, map: Any = None) -> None:
        super().__init__(sock, map)
        self.set_terminator(b"\n")

    collect_incoming_data = asynchat.async_chat._collect_incoming_data

    def found_terminator(self) -> None:
        self.push(self._get_data() + b"\n")


class Listener(asyncore.dispatcher):
    def __init__(self, handler: Callable[..., object], map: Any = None) -> None:
        super().__init__(map=map)
        self.handler = handler
        self.create_socket()
        self.bind(("127.0.0.1", 0))
        self.listen(5)
        self.address = self.socket.getsockname()

    def handle_accepted(self, sock: Any, addr: Any) -> None:
        self.handler(sock, self._map)


@pytest.fixture
def map() -> Iterator[dict[int, Any]]:
    """A map whose dispatchers are closed with the test."""
    dispatchers: dict[int, Any] = {}
    yield dispatchers
    asyncore.close_all(dispatchers, ignore_all=True)


Pair = Callable[..., tuple[Any, socket.socket]]


@pytest.fixture
def pair(map: dict[int, Any]) -> Iterator[Pair]:
    """``pair(Class)``: a dispatcher in the map, and the socket at its other end, which does not block."""
    ends: list[socket.socket] = []

    def make(kind: type[Any], *args: Any) -> tuple[Any, socket.socket]:
        near, far = socket.socketpair()
        far.setblocking(False)
        ends.append(far)
        return kind(near, map, *args), far

    yield make
    for end in ends:
        end.close()


def turn(map: dict[int, Any], count: int = 1, use_poll: bool = False) -> None:
    asyncore.loop(timeout=0, map=map, count=count, use_poll=use_poll)


# ---------------------------------------------------------------------- both kinds in one loop


class Upper(Protocol):
    def on_data(self, data: bytes) -> bytes:
        return data.upper()


def test_dispatchers_and_protocols_are_served_by_one_loop(loop: EventLoop, map: dict[int, Any]) -> None:
    old = Listener(Echo, map)
    new = Server(loop, Upper, small_limits())
    new.listen("127.0.0.1", 0)
    with asyncore.attach(loop, map), Client(old.address) as one, Client(new.listeners[0].socket.getsockname()) as two:
        for client, answer in ((one, b"hello"), (two, b"HELLO")):
            client.send(b"hello")
            client.socket.setblocking(False)
            run_until(loop, lambda client=client: readable(client))
            assert client.receive_exactly(5) == answer
    new.abort()
    run_pass(loop)


def readable(client: Client) -> bool:
    try:
        return bool(client.socket.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def test_a_dispatcher_that_joins_a_loop_that_waits_is_served(loop: EventLoop, map: dict[int, Any], pair: Pair) -> None:
    with asyncore.attach(loop, map):
        run_pass(loop)
        made: list[Any] = []
        loop.call_soon(lambda: made.extend(pair(Peer)))
        run_pass(loop)
        old, far = made
        far.send(b"x")
        run_until(loop, lambda: old.received == b"x")


def test_what_a_protocol_pushes_to_a_dispatcher_leaves(loop: EventLoop, map: dict[int, Any], pair: Pair) -> None:
    old, far = pair(Chat)
    while True:  # until the kernel takes no more: the rest must wait for an event
        try:
            old.socket.send(bytes(65536))
        except BlockingIOError:
            break
    with asyncore.attach(loop, map):
        run_pass(loop)
        loop.call_soon(old.push, b"after all that")
        run_pass(loop)
        assert old.producer_fifo
        received = bytearray()

        def take() -> bool:
            try:
                received.extend(far.recv(1 << 20))
            except BlockingIOError:
                pass
            return received.endswith(b"after all that")

        run_until(loop, take)


def test_the_loop_ends_with_the_last_dispatcher(loop: EventLoop, map: dict[int, Any], pair: Pair) -> None:
    _, far = pair(Peer)
    far.close()
    asyncore.loop(map=map, loop=loop)
    assert not map
    asyncore.loop(map=map, loop=loop)  # nothing to do
    run_pass(loop)  # it is as it was


def test_count_is_passes_of_the_loop(loop: EventLoop, map: dict[int, Any], pair: Pair) -> None:
    pair(Peer)
    before = loop.passes
    asyncore.loop(timeout=0, map=map, count=3, loop=loop)
    asyncore.loop(timeout=0, map=map, count=0, loop=loop)
    assert 3 <= loop.passes - before <= 4


def test_whoever_stops_the_loop_stops_asyncores(loop: EventLoop, map: dict[int, Any], pair: Pair) -> None:
    pair(Peer)
    loop.call_soon(loop.stop)
    asyncore.loop(map=map, loop=loop)
    assert len(map) == 1


def test_exit_now_leaves_the_loop_and_detaches(loop: EventLoop, map: dict[int, Any], pair: Pair) -> None:
    class Leaves(Peer):
        def handle_read(self) -> None:
            self.recv(10)
            raise asyncore.ExitNow("enough")

    old, far = pair(Leaves)
    far.send(b"x")
    with pytest.raises(asyncore.ExitNow, match="enough"):
        asyncore.loop(map=map, loop=loop)
    far.send(b"x")
    run_pass(loop)
    assert old.connected


def test_a_map_is_attached_once(loop: EventLoop, map: dict[int, Any], pair: Pair) -> None:
    pair(Peer)
    with asyncore.attach(loop, map), pytest.raises(RuntimeError, match="detach it first"):
        asyncore.attach(loop, map)
    asyncore.attach(loop, map).detach()


def test_a_closed_loop_gives_up_its_map(map: dict[int, Any], pair: Pair) -> None:
    old, far = pair(Peer)
    for message in (b"1", b"2"):
        with EventLoop() as loop:
            asyncore.attach(loop, map)
            far.send(message)
            run_until(loop, lambda message=message: old.received.endswith(message))


def test_maps_are_detached_in_any_order(loop: EventLoop, pair: Pair, map: dict[int, Any]) -> None:
    old, far = pair(Peer)
    other: dict[int, Any] = {}
    first, second = asyncore.attach(loop, other), asyncore.attach(loop, map)
    first.detach()
    far.send(b"1")
    run_until(loop, lambda: old.received == b"1")
    second.detach()
    second.detach()
    far.send(b"2")
    run_pass(loop)
    assert old.received == b"1"


# ---------------------------------------------------------------------- who is asked before a wait


def calls_of_a_pass(map: dict[int, Any]) -> Counter[str]:
    """How often each function of asyncore's is called while nothing happens."""
    turn(map, 3)
    seen: Counter[str] = Counter()

    def count(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and "/evloop/compat/" in frame.f_code.co_filename:
            seen[frame.f_code.co_qualname] += 1

    sys.setprofile(count)
    try:
        turn(map)
    finally:
        sys.setprofile(None)
    return seen


@pytest.mark.parametrize("kind", [Chat, Peer])
def test_idle_dispatchers_cost_no_call(map: dict[int, Any], pair: Pair, kind: type[Any]) -> None:
    pair(kind)
    few = calls_of_a_pass(map)
    for _ in range(50):
        pair(kind)
    assert calls_of_a_pass(map) == few
    assert few["Watch.prepare"] == 1


class Moody(Peer):
    """Its answers are in what it is given."""

    def __init__(self, sock: Any, map: Any, answers: dict[str, Any]) -> None:
        self.answers = answers
        super().__init__(sock, map)

    def readable(self) -> bool:
        self.answers["asked"] = self.answers.get("asked", 0) + 1
        return bool(self.answers.get("readable"))

    def writable(self) -> bool:
        return bool(self.answers.get("writable"))


def test_an_overridden_predicate_is_asked_before_each_wait(map: dict[int, Any], pair: Pair) -> None:
    answers: dict[str, Any] = {}
    old, far = pair(Moody, answers)
    far.send(b"x")
    turn(map, 3)
    assert answers["asked"] == 3
    assert not old.received
    answers["readable"] = True  # for a reason that nothing here can know of
    turn(map)
    assert old.received == b"x"


@pytest.mark.parametrize("way", ["alone", "in a loop", "attached"])
def test_its_answer_may_change_by_the_clock(loop: EventLoop, map: dict[int, Any], pair: Pair, way: str) -> None:
    class Later(Peer):
        asked = 0

        def readable(self) -> bool:
            self.asked += 1
            return self.asked > 5

        def handle_read(self) -> None:
            raise asyncore.ExitNow

    _, far = pair(Later)
    far.send(b"x")
    if way == "attached":
        with asyncore.attach(loop, map, timeout=0.001), pytest.raises(asyncore.ExitNow):
            loop.run()
    else:
        with pytest.raises(asyncore.ExitNow):
            asyncore.loop(timeout=0.001, map=map, loop=None if way == "alone" else loop)


def test_a_predicate_that_raises_costs_its_own_dispatcher(map: dict[int, Any], pair: Pair, capsys: Any) -> None:
    class Broken(Peer):
        def readable(self) -> bool:
            raise ZeroDivisionError("oops")

    broken, _ = pair(Broken)
    old, far = pair(Peer)
    far.send(b"x")
    turn(map)
    assert broken.closed
    assert old.received == b"x"
    assert "ZeroDivisionError'>:oops [" in capsys.readouterr().out


def test_a_method_replaced_in_a_handler_counts(map: dict[int, Any], pair: Pair) -> None:
    class Pauses(Peer):
        def handle_read(self) -> None:
            super().handle_read()
            self.readable = lambda: False  # type: ignore[method-assign]

    old, far = pair(Pauses)
    far.send(b"1")
    turn(map)
    far.send(b"2")
    turn(map, 3)
    assert old.received == b"1"
    del old.readable
    turn(map)
    assert old.received == b"12"


def test_what_is_put_into_the_queue_by_others_leaves(map: dict[int, Any], pair: Pair) -> None:
    old, far = pair(Chat)
    turn(map, 2)
    old.producer_fifo.append(b"queued")
    turn(map)
    assert far.recv(10) == b"queued"
    old.producer_fifo = type(old.producer_fifo)([b"another queue"])
    turn(map)
    assert far.recv(20) == b"another queue"


def test_what_is_put_into_the_buffer_by_others_leaves(map: dict[int, Any], pair: Pair) -> None:
    old, far = pair(Peer)
    turn(map, 2)
    old.out_buffer += b"buffered"
    turn(map)
    assert far.recv(10) == b"buffered"
    turn(map)
    old.out_buffer = b"another buffer"
    turn(map)
    assert far.recv(20) == b"another buffer"


# ---------------------------------------------------------------------- what epoll does otherwise


def test_descriptors_above_1024(map: dict[int, Any], pair: Pair) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 3000:
        pytest.skip("this needs a descriptor above 1024")
    import fcntl

    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3000), hard))
    try:
        near, far = socket.socketpair()
        with far:
            high = socket.socket(fileno=fcntl.fcntl(near, fcntl.F_DUPFD_CLOEXEC, 2000))
            near.close()
            old = Peer(high, map)
            far.send(b"x")
            turn(map)
            assert old.received == b"x"
            old.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("way", ["alone", "in a loop"])
def test_a_file_is_always_ready(loop: EventLoop, map: dict[int, Any], tmp_path: Any, way: str) -> None:
    (tmp_path / "file").write_bytes(b"a" * 20)
    received: list[bytes] = []

    class Reader(asyncore.file_dispatcher):
        def writable(self) -> bool:
            return False

        def handle_read(self) -> None:
            received.append(self.recv(8))

        def handle_close(self) -> None:
            self.close()

    with open(tmp_path / "file", "rb") as file:
        Reader(file, map)
    asyncore.loop(timeout=600, map=map, count=4, loop=None if way == "alone" else loop)
    assert [len(piece) for piece in received[:3]] == [8, 8, 4]


def test_a_file_that_wants_nothing_does_not_spin(map: dict[int, Any], pair: Pair, tmp_path: Any) -> None:
    class Idle(asyncore.file_dispatcher):
        wanted = True

        def readable(self) -> bool:
            return self.wanted

        writable = readable

        def handle_write(self) -> None:
            self.wanted = False

        def handle_read(self) -> None:
            pass

    with open(tmp_path / "file", "wb") as file:
        Idle(file, map)
    turn(map, 2)
    watch = next(iter(map.values()))._watch
    assert not watch.unpolled


@pytest.mark.parametrize("use_poll", [False, True])
def test_a_socket_that_is_closed_behind_its_back(map: dict[int, Any], pair: Pair, use_poll: bool) -> None:
    old, _ = pair(Peer)
    old.socket.close()  # before it was ever watched
    turn(map, use_poll=use_poll)
    assert old.closed
    assert not map


def test_a_new_socket_with_the_number_of_the_old_one(map: dict[int, Any], pair: Pair) -> None:
    old, _ = pair(Peer)
    turn(map)
    number = old.socket.fileno()
    old.socket.close()
    near, far = socket.socketpair()
    with far:
        if near.fileno() != number:
            os.dup2(near.fileno(), number)
            near.close()
            near = socket.socket(fileno=number)
        old.set_socket(near)
        old.connected = True
        far.send(b"x")
        turn(map)
        assert old.received == b"x"


@pytest.mark.parametrize("use_poll", [False, True])
def test_no_event_of_a_closed_one_comes_to_its_successor(map: dict[int, Any], pair: Pair, use_poll: bool) -> None:
    called: list[Any] = []
    both: list[Any] = []
    fresh: list[socket.socket] = []

    class Heir(Peer):
        def handle_read(self) -> None:
            called.append(self)

    class Replaces(Peer):
        def handle_read(self) -> None:
            self.recv(10)
            other = both[both[0] is self]
            number = other.socket.fileno()
            other.close()
            near, far = socket.socketpair()
            fresh.append(far)
            if near.fileno() != number:
                os.dup2(near.fileno(), number)
                near.close()
                near = socket.socket(fileno=number)
            Heir(near, map)

    ends = []
    for _ in range(2):
        old, far = pair(Replaces)
        both.append(old)
        ends.append(far)
    turn(map)
    for far in ends:
        far.send(b"x")
    turn(map, 2, use_poll)
    assert len(fresh) == 1
    assert not called
    fresh[0].send(b"y")
    turn(map)
    assert len(called) == 1
    fresh[0].close()


def test_a_program_may_change_the_map_itself(map: dict[int, Any], pair: Pair) -> None:
    old, far = pair(Peer)
    turn(map)
    number = next(iter(map))
    del map[number]
    far.send(b"1")
    turn({}, 1)
    other, far2 = pair(Peer)
    turn(map)
    assert not old.received
    map[number] = old
    far2.send(b"2")
    turn(map)
    assert (old.received, other.received) == (b"1", b"2")


class Duck:
    """In a map, and no dispatcher."""

    accepting = False

    def __init__(self) -> None:
        self.socket, self.far = socket.socketpair()
        self.received = b""

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        self.received += self.socket.recv(100)

    def close(self) -> None:
        self.socket.close()
        self.far.close()


def test_one_may_be_put_into_the_place_of_another(map: dict[int, Any], pair: Pair) -> None:
    pair(Peer)
    one, two = Duck(), Duck()
    map[one.socket.fileno()] = one
    turn(map)
    del map[one.socket.fileno()]
    map[two.socket.fileno()] = two
    one.far.send(b"x")
    two.far.send(b"y")
    turn(map, 2)
    assert (one.received, two.received) == (b"", b"y")
    one.close()


def test_one_may_be_in_two_maps(map: dict[int, Any], pair: Pair) -> None:
    old, far = pair(Peer)
    turn(map)
    other: dict[int, Any] = {}
    old.add_channel(other)
    far.send(b"1")
    turn(other, 2)
    assert old.received == b"1"
    old.out_buffer = b"2"
    turn(other)
    assert far.recv(10) == b"2"
    old.out_buffer = b"3"
    turn(map)
    assert far.recv(10) == b"3"
    other.clear()
    turn(map)


def test_without_a_descriptor_for_epoll_the_loop_says_so(map: dict[int, Any], pair: Pair) -> None:
    old, _ = pair(Peer)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            turn(map)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert old.connected


def test_who_is_taken_out_by_another_is_not_called(map: dict[int, Any], pair: Pair) -> None:
    class Clears(Peer):
        def handle_read(self) -> None:
            super().handle_read()
            map.clear()

    both = [pair(Clears), pair(Clears)]
    for _, far in both:
        far.send(b"x")
    turn(map)
    assert sorted(old.received for old, _ in both) == [b"", b"x"]
    for old, _ in both:
        old.close()


def test_the_end_of_a_pipe(map: dict[int, Any]) -> None:
    read_end, write_end = os.pipe()

    class Reader(asyncore.file_dispatcher):
        def handle_read(self) -> None:
            assert self.recv(10) == b""

        def writable(self) -> bool:
            return False

        def handle_close(self) -> None:
            self.close()

    Reader(read_end, map)
    os.close(read_end)
    os.close(write_end)
    turn(map)
    assert not map


def test_who_is_paused_does_not_hear_of_a_reset_again_and_again(map: dict[int, Any]) -> None:
    answers = {"readable": True}
    listener = Listener(lambda sock, map: Moody(sock, map, answers), map)
    with Client(listener.address) as client:
        turn(map, 2)
        old = next(obj for obj in map.values() if isinstance(obj, Moody))
        answers["readable"] = False
        turn(map)
        client.reset()
        watch = old._watch
        watch.prepare()
        assert watch.poll(0) == []
        answers["readable"] = True
        turn(map)
        assert old.closed


@pytest.mark.parametrize(("use_poll", "received"), [(False, 3), (True, 1)])
def test_what_was_sent_before_a_hang_up(map: dict[int, Any], pair: Pair, use_poll: bool, received: int) -> None:
    """All of it is read by default; ``use_poll`` closes at the hang-up, as it did."""

    class Slow(Peer):
        def handle_read(self) -> None:
            self.received += self.recv(1)

    old, far = pair(Slow)
    far.send(b"abc")
    far.close()
    turn(map, 5, use_poll)
    assert old.closed
    assert len(old.received) == received


def test_out_of_band_data(map: dict[int, Any]) -> None:
    class Urgent(Moody):
        def handle_expt(self) -> None:
            self.received += self.socket.recv(1, socket.MSG_OOB)

    listener = Listener(lambda sock, map: Urgent(sock, map, {"readable": True}), map)
    with Client(listener.address) as client:
        turn(map, 2)
        old = next(obj for obj in map.values() if isinstance(obj, Urgent))
        client.socket.send(b"!", socket.MSG_OOB)
        turn(map)
        assert old.received == b"!"


def test_a_map_that_is_dropped_takes_its_epoll_with_it() -> None:
    near, far = socket.socketpair()
    dropped: dict[int, Any] = {}
    Peer(near, dropped)
    turn(dropped)
    before = set(descriptors.open_descriptors())
    del dropped
    gc.collect()
    assert len(before - set(descriptors.open_descriptors())) == 1
    near.close()
    far.close()


def test_nothing_stays_open_for_an_empty_map(map: dict[int, Any], pair: Pair) -> None:
    before = len(descriptors.open_descriptors())
    old, far = pair(Peer)
    turn(map)
    old.close()
    far.close()
    assert len(descriptors.open_descriptors()) == before
