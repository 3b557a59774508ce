"""When an open loop sends."""

from __future__ import annotations

import itertools
import random
import selectors
import socket
from statistics import mean, pstdev

import pytest

from evloop_bench.loadgen.drivers import Schedule, count_lateness, count_missed
from evloop_bench.loadgen.selector import PreciseSelector
from evloop_bench.loadgen.settings import Settings
from evloop_bench.loadgen.tally import Run
from evloop_bench.loadgen.workload import Pool


def moments(arrivals: str, count: int, seed: int = 1) -> list[int]:
    schedule = Schedule(1000, arrivals, random.Random(seed), 0)
    return [schedule.advance() for _ in range(count)]


def test_uniform_arrivals_are_evenly_spaced_and_do_not_drift() -> None:
    assert moments("uniform", 10_001)[-1] == 10_001_000_000
    assert {b - a for a, b in zip(moments("uniform", 50), moments("uniform", 51)[1:], strict=True)} == {1_000_000}


def test_poisson_arrivals_have_exponential_gaps_at_the_rate() -> None:
    at = moments("poisson", 20_000)
    gaps = [b - a for a, b in itertools.pairwise(at)]
    assert mean(gaps) == pytest.approx(1e6, rel=0.05)
    assert pstdev(gaps) == pytest.approx(1e6, rel=0.05)  # as large as the mean: exponential
    assert sum(gap < 100_000 for gap in gaps) / len(gaps) == pytest.approx(0.095, abs=0.01)


def test_a_seed_gives_the_same_arrivals_again() -> None:
    assert moments("poisson", 100, seed=4) == moments("poisson", 100, seed=4)
    assert moments("poisson", 100, seed=4) != moments("poisson", 100, seed=5)


def make_run() -> Run:
    return Run(None, Pool([b""]), 1, 5.0)  # type: ignore[arg-type]


def test_what_was_due_and_not_sent_is_missed() -> None:
    run = make_run()
    run.from_ns, run.to_ns = 5_000_000, 20_000_000
    schedule = Schedule(1000, "uniform", random.Random(1), 0)  # 1 ms, 2 ms, ...
    for _ in range(9):
        schedule.advance()
    count_missed(run, schedule)
    assert run.tally.missed_sends == 10  # 10 to 19 ms


@pytest.mark.parametrize("arrivals", ["uniform", "poisson"])
def test_millions_that_were_missed_are_counted_by_the_rate(arrivals: str) -> None:
    run = make_run()
    run.from_ns, run.to_ns = 10**10, 3610 * 10**9  # an hour after a warm-up of ten seconds
    schedule = Schedule(2e6, arrivals, random.Random(1), 0)
    count_missed(run, schedule)
    assert run.tally.missed_sends == pytest.approx(7_200_000_000, rel=1e-3)


def test_a_send_is_late_from_a_millisecond_on() -> None:
    run = make_run()
    for late_ns in (0, 900_000, 1_100_000, 50_000_000):
        count_lateness(run, late_ns)
    assert run.tally.late_sends == 2
    assert sum(run.tally.lateness.values()) == 4


def test_the_precise_selector_is_a_selector() -> None:
    reader, writer = socket.socketpair()
    selector = PreciseSelector()
    with reader, writer:
        selector.register(reader, selectors.EVENT_READ)
        for timeout_s in (0, 0.0001, 0.01):
            assert selector.select(timeout_s) == []
        writer.send(b"x")
        for timeout_s in (None, 0, 0.0001, 5):
            ((key, events),) = selector.select(timeout_s)
            assert (key.fd, events) == (reader.fileno(), selectors.EVENT_READ)
        selector.modify(reader, selectors.EVENT_WRITE)
        assert selector.select(1)[0][1] == selectors.EVENT_WRITE
        selector.unregister(reader)
        assert selector.select(0.0001) == []
        assert not selector.get_map()
    selector.close()


def test_processes_share_the_work_and_nothing_is_lost() -> None:
    settings = Settings(connections=10, idle=7, rate_per_s=900, messages=1000, processes=3)
    shares = [settings.share(index) for index in range(3)]
    assert [share.connections for share in shares] == [4, 3, 3]
    assert sum(share.idle for share in shares) == 7
    assert sum(share.messages or 0 for share in shares) == 1000
    assert sum(share.rate_per_s or 0 for share in shares) == pytest.approx(900)
    assert len({share.seed for share in shares}) == 3
