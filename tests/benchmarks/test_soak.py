"""soak.py: what it looks for is found when it is there, and what is said to be hit is what it insists on."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.soaking import roles, served
from benchmarks.soaking.shared import Soak
from benchmarks.soaking.target import Status
from evloop import LineProtocol
from servers import RunningServer, small_limits

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"

GOOD = Status(
    connections=0,
    timers=1,
    handlers=3,
    accepted=100,
    probes=0,
    failed=0,
    limits=dict.fromkeys(soak.EXPECTED_LIMITS, 1),
    tls=dict.fromkeys(soak.EXPECTED_TLS_FAILURES, 1),
    descriptors=8,
    memory_bytes=20_000_000,
    cpu_s=1.0,
)


pytestmark = pytest.mark.one_selector


def test_each_limit_on_the_page_must_be_hit_but_five():
    table = PAGE.read_text().partition("\n## Limits\n")[2].partition("\n## ")[0]
    cells = [row.rsplit("|", 2)[1] for row in table.splitlines() if row.startswith("| ")]
    counters = {name for cell in cells for name in re.findall(r"`([a-z-]+)`", cell)}
    assert counters - set(soak.EXPECTED_LIMITS) - {"descriptors"} == {
        "drain-timeout",
        "handover-timeout",
        "max-line",
        "memory",
        *soak.IMPOSSIBLE_LIMITS,
    }
    assert set(soak.EXPECTED_LIMITS) - {"tls-handshake-timeout"} <= counters  # a setting of TLS, and no limit


def test_a_server_that_is_the_same_afterwards_is_fine():
    assert soak.compare(GOOD, dataclasses.replace(GOOD, accepted=10_000, cpu_s=9.0)) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"connections": 2}, "2 connections are left"),
        ({"timers": 2}, "timers: 1 before, 2 after"),
        ({"handlers": 4}, "handlers: 3 before, 4 after"),
        ({"descriptors": 9}, "descriptors: 8 before, 9 after"),
        ({"memory_bytes": 30_000_000}, "memory has grown by 9.5 MiB"),
        ({"limits": {**GOOD.limits, "idle-timeout": 0}}, "limit idle-timeout was never hit"),
        ({"limits": {**GOOD.limits, "unsent": 1}}, "limit unsent was hit"),
        ({"tls": {**GOOD.tls, "truncated": 0}}, "TLS never failed as truncated"),
    ],
)
def test_what_is_not_back_where_it_was_is_said(change, problem):
    assert soak.compare(GOOD, dataclasses.replace(GOOD, **change)) == [problem]


def answering(start: Callable[..., RunningServer], reply: Callable[[int], bytes | None]) -> Soak:
    """A soak at a server that answers line n with ``reply(n)``, or ends the connection if that is None."""

    class Answers(LineProtocol):
        lines = 0

        def on_line(self, line: bytes) -> bytes | None:
            self.lines += 1
            answer = reply(self.lines)
            if answer is None:
                self.connection.abort()
            return answer

    return Soak(start(Answers, small_limits(high_water_bytes=1 << 20)).address)


def test_every_right_answer_is_counted(start):
    run = answering(start, lambda number: b"0\n")
    roles._pipeline(run, b"\n", b"0\n", 5000, "answered")
    assert (run.problems, run.counts) == ([], {"answered": 5000})


def test_a_wrong_answer_among_many_is_a_problem(start):
    run = answering(start, lambda number: b"1\n" if number == 4321 else b"0\n")
    roles._pipeline(run, b"\n", b"0\n", 5000, "answered")
    assert run.problems
    assert all(problem.startswith("wrong reply to b'\\n' among ") for problem in run.problems)


def test_one_who_is_cut_off_is_a_problem(start):
    run = answering(start, lambda number: b"0\n" if number < 4000 else None)
    roles._pipeline(run, b"\n", b"0\n", 5000, "answered", slowly=True)
    (problem,) = run.problems
    assert re.fullmatch(r"one who sent b'\\n' 5000 times and read lacks \d+ of 10000 bytes", problem)
    assert not run.counts["answered"]


def test_one_who_is_refused_is_none(start):
    run = answering(start, lambda number: b"ERR too-many-connections limit 1\n" if number == 1 else None)
    roles._pipeline(run, b"\n", b"0\n", 5000, "answered")
    assert (run.problems, run.counts) == ([], {"pipelines refused": 1})


def test_an_ordinary_client_that_gets_a_wrong_answer_is_a_problem(start):
    run = answering(start, lambda number: b"no number\n")
    with pytest.raises(ConnectionAbortedError), run.connect() as sock:
        served.ask(run, sock, random.Random(1), 5, last=False)
    (problem,) = run.problems
    assert problem.startswith("wrong reply at byte 0: ")


def test_rubbish_is_answered_line_by_line_and_the_numbers_named_are_those_of_the_lines(start):
    run = answering(start, lambda number: b"x 0\n" * 3 if number == 1 else b"x 0\n")
    run.over.wait = lambda timeout: run.over.set()  # once
    roles.bad_bytes(run, random.Random(3))
    (problem,) = run.problems
    replies, lines = map(int, re.fullmatch(r"(\d+) replies to (\d+) lines of rubbish", problem).groups())
    assert replies == lines + 2
