"""The limited logger, with a clock that the test sets."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evloop import log
from evloop.log import Logger
from evloop.ratelimit import LimitedLogger


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Bench:
    """A limited logger, its clock, and what came out of it."""

    def __init__(self, lines_per_s: int = 3, level: int = logging.INFO) -> None:
        self.now = 1000.0
        self.readings = 0
        self.stdlib = logging.getLogger("test-ratelimit")
        self.stdlib.setLevel(level)
        self.stdlib.propagate = False
        handler = Lines()
        self.stdlib.handlers = [handler]
        self.lines = handler.lines
        self.limited = LimitedLogger(Logger("test-ratelimit"), self.clock, lines_per_s)

    def clock(self) -> float:
        self.readings += 1
        return self.now


def test_lines_pass_up_to_the_limit_and_the_next_second_says_how_many_did_not():
    bench = Bench(lines_per_s=3)
    for number in range(10):
        bench.limited.log(logging.INFO, "line %d", number)
    assert bench.lines == ["line 0", "line 1", "line 2"]
    bench.now += 0.999
    bench.limited.log(logging.INFO, "line %d", 10)  # still too early
    assert len(bench.lines) == 3
    bench.now += 0.001
    bench.limited.log(logging.INFO, "line %d", 11)
    assert bench.lines[3:] == ["8 lines like these left out: line …", "line 11"]


def test_each_kind_of_line_has_a_budget_of_its_own():
    bench = Bench(lines_per_s=2)
    for number in range(10):
        bench.limited.log(logging.INFO, "often %d", number)
    bench.limited.log(logging.INFO, "seldom %d", 1)
    assert bench.lines == ["often 0", "often 1", "seldom 1"]


def test_what_was_left_out_is_shown_without_conversions():
    bench = Bench(lines_per_s=1)
    for _ in range(2):
        bench.limited.log(logging.INFO, "lost %s after %.3f s", "it", 1.5)
    bench.limited.flush()
    assert bench.lines == ["lost it after 1.500 s", "1 lines like these left out: lost … after … s"]


def test_texts_that_are_made_up_take_no_memory_for_ever():
    bench = Bench(lines_per_s=1)
    for number in range(1000):
        bench.limited.log(logging.INFO, f"line {number}")
        bench.limited.log(logging.INFO, f"line {number}")
    assert len(bench.limited._budgets) <= 200
    bench.limited.flush()
    assert sum("left out" in line for line in bench.lines) == 1000


def test_nothing_is_said_of_left_out_lines_when_there_are_none():
    bench = Bench(lines_per_s=2)
    for _ in range(6):
        bench.limited.log(logging.INFO, "line")
        bench.now += 0.5
    assert bench.lines == ["line"] * 6


def test_flush_says_how_many_were_left_out_once():
    bench = Bench(lines_per_s=1)
    for _ in range(4):
        bench.limited.log(logging.INFO, "line")
    bench.limited.flush()
    bench.limited.flush()
    assert bench.lines == ["line", "3 lines like these left out: line"]


def test_with_a_loop_the_count_does_not_wait_for_another_line():
    bench = Bench(lines_per_s=1)
    due: list[tuple[float, Callable[[], None]]] = []
    limited = LimitedLogger(bench.limited._logger, lambda: 10.0, 1, lambda delay_s, call: due.append((delay_s, call)))
    for _ in range(4):
        limited.log(logging.INFO, "line")
    assert [delay_s for delay_s, _ in due] == [1.0]
    due[0][1]()
    assert bench.lines == ["line", "3 lines like these left out: line"]
    limited.log(logging.INFO, "line")
    assert len(due) == 2


def test_lines_below_the_level_are_neither_logged_nor_counted():
    bench = Bench(lines_per_s=1, level=logging.WARNING)
    for _ in range(4):
        bench.limited.log(logging.INFO, "line")
    bench.limited.log(logging.WARNING, "warning")
    bench.limited.flush()
    assert bench.lines == ["warning"]


def test_the_traceback_is_passed_on():
    records = []
    bench = Bench()
    bench.stdlib.handlers[0].addFilter(lambda record: records.append(record) or True)
    error = ValueError("x")
    bench.limited.log(logging.ERROR, "failed", exc_info=error)
    assert records[0].exc_info[1] is error


@pytest.mark.parametrize("lines_per_s", [1, 20])
def test_a_flood_costs_one_clock_reading_a_line(lines_per_s):
    bench = Bench(lines_per_s=lines_per_s)
    for _ in range(1000):
        bench.limited.log(logging.INFO, "line")
    assert bench.readings <= 1001


@given(st.lists(st.floats(0, 2), max_size=100), st.integers(1, 5))
def test_each_line_passes_or_is_counted_and_no_window_has_too_many(pauses: list[float], lines_per_s: int):
    bench = Bench(lines_per_s=lines_per_s)
    passed_at: list[float] = []
    for pause in pauses:
        bench.now += pause
        before = len(bench.lines)
        bench.limited.log(logging.INFO, "line")
        passed_at += [bench.now] * bench.lines[before:].count("line")
    bench.limited.flush()
    left_out = sum(int(match[1]) for line in bench.lines if (match := re.match(r"(\d+) lines like these", line)))
    assert len(passed_at) + left_out == len(pauses)
    # Windows follow one another: a second can touch two of them.
    for moment in passed_at:
        assert sum(moment <= other < moment + 1 for other in passed_at) <= 2 * lines_per_s


def test_lines_before_logging_is_loaded_wait_and_keep_their_order(monkeypatch):
    bench = Bench()
    due: list[tuple[float, Callable[[], None]]] = []
    limited = LimitedLogger(Logger("test-ratelimit"), bench.clock, 3, lambda delay_s, call: due.append((delay_s, call)))
    monkeypatch.setattr("evloop.ratelimit.loaded", lambda: False)
    limited.log(logging.WARNING, "one")
    limited.log(logging.WARNING, "two")
    assert bench.lines == []
    assert len(due) == 1
    monkeypatch.setattr("evloop.ratelimit.loaded", lambda: True)
    limited.log(logging.WARNING, "three")
    assert bench.lines == ["one", "two", "three"]
    due[0][1]()
    assert len(bench.lines) == 3


def test_what_waits_is_not_lost_at_the_end(monkeypatch):
    bench = Bench()
    limited = LimitedLogger(Logger("test-ratelimit"), bench.clock, 1, lambda delay_s, call: None)
    monkeypatch.setattr("evloop.ratelimit.loaded", lambda: False)
    for _ in range(3):
        limited.log(logging.WARNING, "line")
    limited.flush()
    assert bench.lines == ["line", "2 lines like these left out: line"]


def test_configuration_happens_at_once_where_logging_is_loaded():
    done = []
    log.configure_later(logging.WARNING, lambda: done.append("configured"))
    assert done == ["configured"]
