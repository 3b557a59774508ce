"""What a bad server looks like in the harness: each fault is counted, as what it is, and fails the run."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from evloop.net.endpoint import TcpEndpoint
from evloop_bench.loadgen.runner import run_once
from evloop_bench.loadgen.settings import Settings
from evloop_bench.loadgen.target import free_port
from paths import ROOT
from variants import first_of
from waiting import wait_until

FAULTY = f"{sys.executable} {shlex.quote(str(Path(__file__).with_name('faulty_server.py')))} {{port}}"
SERVER = f"{sys.executable} {shlex.quote(str(ROOT / 'bin' / 'charcount-server'))} --log-level error --port {{port}}"

Load = Callable[..., Any]


def errors_of(done: Any) -> dict[str, int]:
    """The kinds that occurred."""
    assert done.status == 1, done.stdout + done.stderr
    return {kind: n for kind, n in done.result["errors"].items() if n}


@pytest.mark.parametrize("pipeline", first_of("16", "1"))
def test_one_wrong_count_in_ten_thousand_is_caught(load: Load, pipeline: str) -> None:
    done = load(
        "-c", "10", "-n", "20000", "--warmup", "0", "--pipeline", pipeline, "--spawn", f"{FAULTY} miscount 10000"
    )  # fmt: skip
    assert errors_of(done) == {"wrong": 2}
    assert "2 wrong" in done.stdout
    assert "b'33' instead of b'32' to b" in done.stdout  # either quote may follow


def test_a_run_with_every_reply_wrong_is_not_valid(load: Load) -> None:
    done = load("-c", "4", "-n", "3000", "--warmup", "0", "--spawn", f"{FAULTY} miscount")
    assert errors_of(done) == {"wrong": 3000}
    assert "because: errors (3,000 wrong)" in done.stdout
    assert not done.result["verdict"]["valid"]


def test_an_overload_says_what_came_back_and_how_much_never_left(load: Load) -> None:
    # Ten times what there can be. At the end of the warm-up it is seconds behind its schedule: all that it sends then
    # was due before the measuring began, and none of it is in the latencies.
    done = load("-c", "10", "--rate", "2M", "--warmup", "0.5", "-d", "0.3")
    result = done.result
    assert done.status == 4, done.stdout
    assert result["error_total"] == 0
    assert result["messages"]["missed_sends"] > 100_000
    assert result["throughput_per_s"] > 1000
    assert result["messages"]["measured"] == sum(interval["replies"] for interval in result["intervals"])
    assert re.search(r"errors +none in [\d,]+ replies: each was right; but [\d,]+ messages of the sched", done.stdout)
    assert "because: sends missed: " in done.stdout
    assert "run longer" not in done.stdout
    assert "stood still" not in done.stdout, "it was busy"


def test_an_extra_reply_is_caught(load: Load) -> None:
    done = load("-c", "1", "-n", "300", "--warmup", "0", "--size", "uniform:1-9", "--spawn", f"{FAULTY} twice 250")
    # All that follows it is one off: most of it differs from what it should be, and the last one answers nothing.
    assert list(errors_of(done)) == ["wrong"]


@pytest.mark.parametrize("length", [("-n", "100"), ("-d", "0.3")], ids=["messages", "duration"])
def test_a_reply_that_never_comes_has_timed_out(load: Load, length: tuple[str, str]) -> None:
    done = load("-c", "3", *length, "--warmup", "0", "--timeout", "0.3", "--spawn", f"{FAULTY} mute 50")
    assert list(errors_of(done)) == ["timed_out"]
    assert 2 <= done.result["errors"]["timed_out"] <= 3


def test_a_close_in_the_middle_is_a_missing_reply(load: Load) -> None:
    done = load("-c", "4", "-d", "0.4", "--warmup", "0", "--pipeline", "2", "--spawn", f"{FAULTY} close 100")
    errors = errors_of(done)
    assert errors["reset"] == 4
    assert 4 <= errors["missing"] <= 8
    assert set(errors) == {"reset", "missing"}


def test_a_reset_is_a_reset_and_what_was_due_on_its_connection_is_missed(load: Load) -> None:
    done = load("-c", "4", "-d", "0.4", "--warmup", "0", "--rate", "2000", "--spawn", f"{FAULTY} reset 300")
    errors = errors_of(done)
    assert 1 <= errors["reset"] <= 2
    assert set(errors) <= {"reset", "missing"}
    assert done.result["messages"]["missed_sends"] > 0


def test_connections_over_the_servers_limit_are_refused(load: Load) -> None:
    done = load("-c", "6", "--idle", "3", "-d", "0.3", "--warmup", "0", "--spawn", f"{SERVER} --max-connections 5")
    errors = errors_of(done)
    assert errors["refused"] == 4
    assert errors.get("wrong", 0) == 0


@pytest.mark.slow
def test_late_replies_are_counted_apart(load: Load) -> None:
    # All wait for each other in one batch of heavy messages, far longer than 1 ms.
    done = load(
        "-c", "20", "--pipeline", "50", "-d", "0.4", "--warmup", "0", "--size", "50000", "--timeout", "0.001",
    )  # fmt: skip
    errors = errors_of(done)
    assert errors["late"] > 0
    assert set(errors) <= {"late", "timed_out"}


@contextmanager
def running_server() -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The project's server in a process of its own: its port, and the process."""
    port = free_port()
    process = subprocess.Popen(
        shlex.split(SERVER.replace("{port}", str(port))), stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stderr is not None
        assert b"listening" in process.stderr.readline()
        yield port, process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(10)
        process.stderr.close()  # type: ignore[union-attr]


def run_with_a_stall(settings: Settings, stall_s: float) -> dict[str, Any]:
    """A run in which the server is stopped for a while once the measuring has begun."""
    with running_server() as (port, process):
        timers: list[threading.Timer] = []

        def show(phase: str, done: float, replies: int) -> None:
            if phase == "measuring" and replies and not timers:
                os.kill(process.pid, signal.SIGSTOP)
                timers.append(threading.Timer(stall_s, process.send_signal, [signal.SIGCONT]))
                timers[0].start()

        result = run_once(settings, server=TcpEndpoint("127.0.0.1", port), pin=False, progress=show)
        for timer in timers:
            timer.join()
        wait_until(lambda: process.poll() is None)
    assert timers, "the server was never stopped"
    assert result["error_total"] == 0, result["errors"]
    return result


@pytest.mark.slow
def test_a_stall_of_one_second_shows_in_the_open_loop_and_not_in_the_closed_one() -> None:
    duration = {"duration_s": 2.5, "warmup_s": 0.1, "seed": 1}
    opened = run_with_a_stall(Settings(connections=5, rate_per_s=2000, **duration), 1.0)  # type: ignore[arg-type]
    closed = run_with_a_stall(Settings(connections=5, **duration), 1.0)  # type: ignore[arg-type]
    # In the open loop all that was meant to be sent meanwhile waited, a second at most and half of it on average; the
    # closed loop sent nothing meanwhile, and has but one slow message for each connection.
    assert opened["latency"]["percentiles_ms"]["99"] > 700
    assert closed["latency"]["percentiles_ms"]["99"] < 200
    assert closed["latency"]["max_ms"] > 900
