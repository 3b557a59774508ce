"""Connections on their way to a worker: taken by it, or taken back, and never by both nor by none."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator

import pytest

from evloop import EventLoop
from evloop.program.workers.passing import Passed, Passing
from waiting import run_pass, run_until


class Worker:
    """Takes what is passed to it."""

    def __init__(self, loop: EventLoop, passing: Passing) -> None:
        self.got: list[tuple[int, socket.socket]] = []
        self.passed = Passed(loop, os.dup(passing.worker_end), lambda place, sock: self.got.append((place, sock)))


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    with EventLoop() as loop:
        yield loop


@pytest.fixture
def passing() -> Iterator[Passing]:
    passing = Passing()
    yield passing
    passing.close()


def put(passing: Passing, place: int) -> socket.socket:
    """Pass one end of a pair on; the other one, which says the place."""
    ours, theirs = socket.socketpair()
    assert passing.put(place, theirs.fileno())
    theirs.close()
    ours.sendall(b"%d" % place)
    return ours


def close_all(found: list[tuple[int, socket.socket]], others: list[socket.socket]) -> None:
    for place, sock in found:
        assert sock.recv(10) == b"%d" % place
        assert not sock.get_inheritable()
        sock.close()
    for sock in others:
        sock.close()


def test_a_worker_takes_what_is_passed(loop, passing):
    worker = Worker(loop, passing)
    others = [put(passing, place) for place in range(100)]
    run_until(loop, lambda: len(worker.got) == 100)
    assert [place for place, _ in worker.got] == list(range(100))
    assert passing.take_back() == []
    close_all(worker.got, others)
    worker.passed.close()
    worker.passed.close()


def test_what_it_has_not_taken_is_taken_back(loop, passing):
    worker = Worker(loop, passing)
    others = [put(passing, place) for place in range(3)]
    run_until(loop, lambda: len(worker.got) == 3)
    others += [put(passing, place) for place in range(3, 8)]
    back = passing.take_back()
    assert [place for place, _ in back] == [3, 4, 5, 6, 7]
    run_pass(loop)
    assert len(worker.got) == 3
    close_all(worker.got + back, others)
    worker.passed.close()


def test_at_its_end_it_takes_what_is_there(loop, passing):
    worker = Worker(loop, passing)
    others = [put(passing, place) for place in range(100)]
    worker.passed.take_last()
    worker.passed.take_last()
    assert len(worker.got) == 100
    others.append(put(passing, 100))  # nobody takes it any more, but who has passed it
    run_pass(loop)
    close_all(worker.got + passing.take_back(), others)


def test_one_that_does_not_read_is_full_some_day_and_nothing_is_lost(passing):
    ours, theirs = socket.socketpair()
    count = 0
    while passing.put(0, theirs.fileno()):
        count += 1
        assert count < 100_000
    back = passing.take_back()
    assert len(back) == count > 10
    for _, sock in back:
        sock.close()
    ours.close()
    theirs.close()


def test_without_a_free_descriptor_nothing_is_lost(loop, passing):
    worker = Worker(loop, passing)
    others = [put(passing, 7)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 20, hard))
    taken = []
    try:
        while True:
            try:
                taken.append(os.dup(passing.worker_end))
            except OSError:
                break
        for _ in range(5):
            run_pass(loop)
        assert worker.got == []
        assert passing.take_back() == []
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    run_until(loop, lambda: bool(worker.got))
    close_all(worker.got, others)
    worker.passed.close()
