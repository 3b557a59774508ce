"""How `load.py` ends before its time, and that nothing of it stays behind."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pexpect
import psutil
import pytest

from evloop.net.endpoint import TcpEndpoint
from evloop_bench.common import processes
from evloop_bench.common.keeper import end_group
from evloop_bench.common.patience import Heartbeat, Patience
from evloop_bench.loadgen import coordinator, target
from evloop_bench.loadgen.runner import run_once
from evloop_bench.loadgen.settings import Settings
from paths import ROOT
from variants import first_of
from waiting import wait_until

LOAD = str(ROOT / "benchmarks" / "load.py")
PYTHON = shlex.quote(sys.executable)
FAULTY = f"{PYTHON} {shlex.quote(str(Path(__file__).with_name('faulty_server.py')))} {{port}}"
NULL_SERVER = shlex.quote(str(ROOT / "evloop_bench" / "loadgen" / "nullserver.py"))

Start = Callable[..., tuple[subprocess.Popen[bytes], list[psutil.Process]]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts ``load.py``, after some Python (``before``); gives it and, once it measures, what it has started."""
    started: list[subprocess.Popen[bytes]] = []
    children: list[psutil.Process] = []

    def start_one(*arguments: str, before: str = "pass") -> Any:
        launcher = f"import os, signal, sys; {before}; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        command = [sys.executable, "-c", launcher, LOAD, "-c", "4", "--warmup", "0", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        started.append(process)

        def at_work() -> list[psutil.Process]:
            found = psutil.Process(process.pid).children(recursive=True)
            sending = [one for one in found if "evloop_bench.loadgen.generator" in command_of(one)]
            return found if sending and sending[0].net_connections("tcp") else []

        found = wait_until(at_work, "load.py at work")
        children.extend(found)
        return process, found

    yield start_one
    for process in started:
        process.kill()
        process.communicate(timeout=10)
    wait_until(lambda: not any(alive(child) for child in children), f"an end of {children}")


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def alive(process: psutil.Process) -> bool:
    """It runs; a zombie, which nobody in a bare container reaps, does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@pytest.mark.parametrize("number", first_of(signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
def test_a_signal_ends_it_with_what_there_is_and_leaves_nothing_running(
    number: signal.Signals, start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    blocked = f"signal.pthread_sigmask(signal.SIG_BLOCK, [{number:d}])"  # as some parents leave it
    process, children = start("-d", "60", "--json", str(path), before=blocked)
    end_once_it_measures(process, children, number)
    stdout, _ = process.communicate(timeout=20)
    assert process.returncode == 130, stdout
    (run,) = json.loads(path.read_text())["runs"]
    assert run["interrupted"]
    assert 0 < run["seconds"] < 50
    assert not any(alive(child) for child in children)


def end_once_it_measures(
    process: subprocess.Popen[bytes], children: list[psutil.Process], number: signal.Signals
) -> None:
    """A signal before the measuring ends it with nothing to tell: wait until the generator has used some time."""
    (generator,) = (child for child in children if "evloop_bench.loadgen.generator" in command_of(child))
    before_s = generator.cpu_times().user
    wait_until(lambda: generator.cpu_times().user > before_s + 0.05, "a generator at work")
    process.send_signal(number)


@pytest.mark.slow
def test_what_ignores_hangups_goes_on(start: Start) -> None:
    process, children = start("-d", "2", before="signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    end_once_it_measures(process, children, signal.SIGHUP)
    stdout, _ = process.communicate(timeout=20)
    assert process.returncode in (0, 4), "as nohup means it"
    assert b"interrupted" not in stdout


@pytest.mark.parametrize(
    "spawn",
    [
        None,
        f"{PYTHON} {NULL_SERVER} {{port}}",
        f"sh -c '{PYTHON} {NULL_SERVER} {{port}} & wait'",
        pytest.param(f"sh -c 'trap \"\" TERM; {PYTHON} {NULL_SERVER} {{port}} & wait'", marks=pytest.mark.slow),
    ],
    ids=["ours", "another", "in a shell", "deaf to SIGTERM"],
)
@pytest.mark.slow
def test_a_kill_ends_the_server_as_well(spawn: str | None, start: Start) -> None:
    process, children = start("-d", "60", *([] if spawn is None else ["--spawn", spawn]))
    assert len(children) >= 3, "a server, its keeper and a generator"
    process.kill()
    process.wait(10)
    wait_until(lambda: not any(alive(child) for child in children), "an end of all")


def test_the_keeper_ends_a_stopped_group_and_knows_an_empty_one() -> None:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    process.send_signal(signal.SIGSTOP)
    thread = threading.Thread(target=end_group, args=[process.pid])
    thread.start()
    assert process.wait(10) == -signal.SIGTERM
    thread.join(10)
    end_group(process.pid)


def test_ctrl_c_while_it_waits_for_the_last_replies_does_not_wait_for_them(tmp_path: Path) -> None:
    # Each of them loses its fiftieth reply, and would be waited for until the time-out.
    path = tmp_path / "x.json"
    arguments = ["-c", "3", "-d", "0.2", "--warmup", "0", "--timeout", "600", "--json", str(path)]
    child = pexpect.spawn(
        sys.executable, [LOAD, *arguments, "--spawn", f"{FAULTY} mute 50"], timeout=20, encoding="utf-8"
    )
    child.expect("waiting for replies")
    child.sendintr()
    child.expect("throughput")
    child.expect("not waited for")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    (run,) = json.loads(path.read_text())["runs"]
    assert run["interrupted"]
    assert run["messages"]["sent"] > run["messages"]["replies"]


def test_a_terminal_that_is_gone_loses_the_report_and_no_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    arguments = ["-c", "3", "-d", "60", "--warmup", "0", "--json", str(path)]
    child = pexpect.spawn(sys.executable, [LOAD, *arguments], timeout=20)
    child.expect("[1-9][0-9,]* replies")
    children = psutil.Process(child.pid).children(recursive=True)
    child.ptyproc.fileobj.close()  # the kernel sends SIGHUP, and writes fail from now on
    child.closed = child.ptyproc.closed = True
    wait_until(lambda: os.waitpid(child.pid, os.WNOHANG) == (child.pid, 5 << 8), "an end with status 5")
    (run,) = json.loads(path.read_text())["runs"]
    assert run["interrupted"]
    assert not any(alive(process) for process in children)


@pytest.mark.slow
def test_an_interrupt_between_runs_keeps_those_that_are_over(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    arguments = ["-c", "3", "-d", "0.2", "--warmup", "0", "--repeat", "1000", "--json", str(path)]
    child = pexpect.spawn(sys.executable, [LOAD, *arguments], timeout=20, encoding="utf-8")
    for _ in range(2):
        child.expect("waiting for replies")
    child.expect("connecting")
    child.sendintr()
    child.expect("run 2 of 1000")
    child.expect("all [23] runs")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    assert len(json.loads(path.read_text())["runs"]) in (2, 3)


# ---------------------------------------------------------------------- processes that were stopped meanwhile


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_patience_counts_the_time_in_which_it_could_look() -> None:
    clock = FakeClock()
    patience = Patience(10.0, clock)
    for _ in range(7):
        clock.now_s += 3600.0  # asleep, again and again
        assert not patience.over()
    clock.now_s += 3600.0
    assert patience.over()
    patience = Patience(10.0, clock)
    for _ in range(99):
        clock.now_s += 0.1
        assert not patience.over()
    clock.now_s += 0.2
    assert patience.over()
    patience = Patience(600.0, clock)
    patience.shorten(1.0)
    patience.shorten(50.0)
    clock.now_s += 3600.0
    assert not patience.over()
    for _ in range(8):
        clock.now_s += 0.125
        over = patience.over()
    assert over


def test_a_heartbeat_tells_a_standstill_from_a_busy_machine() -> None:
    clock, cpu_clock = FakeClock(), FakeClock()
    heartbeat = Heartbeat(0.1, clock, cpu_clock)
    for pause_s in (0.1, 0.9, 0.1):
        clock.now_s += pause_s
        heartbeat.beat()
    assert heartbeat.stalled_s == 0
    clock.now_s += 7.1
    heartbeat.beat()
    assert heartbeat.stalled_s == pytest.approx(7.0)
    clock.now_s += 3.0
    cpu_clock.now_s += 2.5
    heartbeat.beat()
    assert heartbeat.stalled_s == pytest.approx(7.0), "it was busy"


def generator_of_this_process() -> psutil.Process:
    return next(one for one in psutil.Process().children() if "evloop_bench.loadgen.generator" in command_of(one))


@pytest.mark.slow
def test_a_generator_that_was_stopped_does_not_blame_the_server() -> None:
    timers: list[threading.Timer] = []

    def stop_the_generator(phase: str, done: float, replies: int) -> None:
        if phase == "measuring" and replies and not timers:
            generator = generator_of_this_process()
            generator.suspend()
            timers.append(threading.Timer(1.5, generator.resume))
            timers[0].start()

    settings = Settings(connections=4, duration_s=1.0, warmup_s=0.0, timeout_s=0.5)
    result = run_once(settings, progress=stop_the_generator)
    timers[0].join()
    assert result["error_total"] == 0, result["errors"]
    assert result["latency"]["max_ms"] > 1000
    assert result["verdict"]["reasons"][0].startswith("a generator stood still for ")


@pytest.mark.slow
def test_replies_that_came_while_the_generator_was_stopped_are_looked_at_before_it_judges() -> None:
    servers: list[psutil.Process] = []
    timers: list[threading.Timer] = []

    def stop(phase: str, done: float, replies: int) -> None:
        if phase == "measuring" and replies and not servers:
            servers.extend(one for one in psutil.Process().children() if "--port" in command_of(one))
            servers[0].suspend()  # so that everything is in flight at the end
        elif phase == "waiting for replies":
            generator = generator_of_this_process()
            generator.suspend()
            servers[0].resume()
            timers.append(threading.Timer(0.8, generator.resume))
            timers[0].start()

    # So many replies are more than one receive takes.
    settings = Settings(connections=1, pipeline=200_000, size="2", duration_s=0.6, warmup_s=0.0, timeout_s=0.4)
    result = run_once(settings, progress=stop)
    timers[0].join()
    assert result["errors"]["timed_out"] == 0
    assert result["messages"]["sent"] == result["messages"]["replies"] > 0


def test_generators_that_were_stopped_like_us_get_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "_CONNECT_TIMEOUT_S", 0.4)
    phases: list[str] = []

    def all_stand_still(phase: str, done: float, replies: int) -> None:
        if phase == "connecting":
            generator = generator_of_this_process()
            generator.suspend()
            time.sleep(0.6)  # as if we were stopped as well
            generator.resume()
        phases.append(phase)

    result = run_once(Settings(connections=4, messages=50, warmup_s=0.0), progress=all_stand_still)
    assert phases[0] == "connecting"
    assert result["messages"]["measured"] == 50


def test_a_server_that_began_to_listen_while_we_were_stopped_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    accepts = target.accepts
    looks: list[bool] = []

    def stopped_after_the_first_look(host: str, port: int) -> bool:
        looks.append(accepts(host, port))
        if len(looks) > 1:
            return looks[-1]
        began_s = time.monotonic()
        wait_until(lambda: accepts(host, port) and time.monotonic() > began_s + 0.2)
        return False

    monkeypatch.setattr(target, "accepts", stopped_after_the_first_look)
    monkeypatch.setattr(processes, "START_TIMEOUT_S", 0.1)
    with target.spawned_server(target.default_command(100), None) as ready:
        assert ready.spawned
    assert looks[1:] == [True]


# ---------------------------------------------------------------------- a port at which nobody listens but ourselves


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode != 0,
    reason="makes a network namespace, which needs root and Linux",
)
def test_a_client_that_would_be_connected_to_itself_is_refused(tmp_path: Path) -> None:
    server = shlex.join([sys.executable, str(Path(__file__).with_name("vanishing_server.py"))])
    load = shlex.join([sys.executable, LOAD, "-c", "4", "--churn", "-d", "0.5", "--warmup", "0", "--no-pin"])
    load += f" --json {shlex.quote(str(tmp_path / 'x.json'))} --spawn {shlex.quote(server + ' {port} 50')}"
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", f"ip link set lo up && {load}"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1, done.stderr
    (run,) = json.loads((tmp_path / "x.json").read_text())["runs"]
    assert run["messages"]["measured"] == 49, "one of the fifty found the server ready"
    assert run["errors"]["wrong"] == 0, run["examples"]
    assert run["connect_errors"]["Connection refused"] >= 1


def test_a_probe_that_is_connected_to_itself_has_found_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    port = target.free_port()
    connect = target.socket.create_connection
    # The kernel may choose this port for our end as well; here it has to.
    to_itself = partial(connect, source_address=("127.0.0.1", port))
    with to_itself(("127.0.0.1", port)) as sock:
        assert sock.getsockname() == sock.getpeername()
    monkeypatch.setattr(target.socket, "create_connection", to_itself)
    assert not target.accepts("127.0.0.1", port)
    with pytest.raises(target.CannotRun, match="nothing accepts connections"):
        target.running_server(TcpEndpoint("127.0.0.1", port))
