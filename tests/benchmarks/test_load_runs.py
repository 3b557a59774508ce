"""Single runs from a script: where processes run, what is found out about a server, what ends a run early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import psutil
import pytest

from evloop_bench.loadgen.coordinator import Coordinator, GeneratorProcess
from evloop_bench.loadgen.runner import run_once
from evloop_bench.loadgen.settings import Settings
from evloop_bench.loadgen.target import CannotRun, default_command, spawned_server
from paths import ROOT
from waiting import wait_until

BRIEF = Settings(connections=4, duration_s=0.3, warmup_s=0.0, seed=1)


def test_a_server_that_runs_already_is_found_and_measured() -> None:
    with spawned_server(default_command(100), None) as target:
        result = run_once(BRIEF, server=target.endpoint)
        assert result["server"]["pids"] == list(target.pids)
        assert result["server"]["rss_max_bytes"] > 1 << 20
        assert result["generator"]["cores"] is None, "a server of somebody else's is not pinned, unless asked for"
        assert psutil.pid_exists(target.pids[0]), "nor is it stopped"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_server_and_generators_are_pinned_to_different_cores() -> None:
    before = os.sched_getaffinity(0)
    first, *others = sorted(before)
    seen: list[list[int]] = []

    def look(phase: str, done: float, replies: int) -> None:
        if phase == "warming up":
            children = [child for child in psutil.Process().children() if child not in keepers_of(psutil.Process())]
            seen.extend(sorted(child.cpu_affinity() or [] for child in children))

    result = run_once(Settings(connections=4, processes=2, duration_s=0.2, warmup_s=0.0), progress=look)
    assert seen == sorted([[first], [others[0]], [others[1 % len(others)]]])
    assert (result["server"]["cores"], result["generator"]["cores"]) == ([first], others)
    assert os.sched_getaffinity(0) == before


def test_a_server_that_dies_ends_the_run_with_errors() -> None:
    with spawned_server(default_command(100), None) as target:
        killed: list[int] = []

        def kill(phase: str, done: float, replies: int) -> None:
            if phase == "measuring" and not killed:
                killed.append(target.pids[0])
                os.kill(target.pids[0], signal.SIGKILL)

        settings = Settings(connections=4, duration_s=30.0, warmup_s=0.0, seed=1)
        result = run_once(settings, server=target.endpoint, progress=kill)
    assert result["seconds"] < 20, "there was nobody left to talk to"
    assert result["errors"]["reset"] == 4


def command_of(process: psutil.Process) -> list[str]:
    """Its words; none if it ends just now."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def generators_of(process: psutil.Process) -> list[psutil.Process]:
    """Those of its children that are generators, the first one first."""
    found = [child for child in process.children() if "evloop_bench.loadgen.generator" in command_of(child)]
    return sorted(found, key=lambda child: (child.create_time(), child.pid))  # numbers start again at some time


def keepers_of(process: psutil.Process) -> list[psutil.Process]:
    """Those that end its server if it can't."""
    return [child for child in process.children() if "keeper.py" in " ".join(command_of(child))]


def test_a_generator_that_ends_before_the_others_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reads_after_end: list[int] = []
    read_events = GeneratorProcess.read_events

    def counted(generator: GeneratorProcess) -> list[dict[str, Any]]:
        if generator.ended:
            reads_after_end.append(generator.process.pid)
        return read_events(generator)

    def stop_the_first(phase: str, done: float, replies: int) -> None:
        if phase == "measuring":
            coordinator._generators[0].tell({"do": "stop"})

    monkeypatch.setattr(GeneratorProcess, "read_events", counted)
    with spawned_server(default_command(100), None) as target:
        settings = Settings(connections=4, processes=2, duration_s=0.5, warmup_s=0.0)
        coordinator = Coordinator(settings, target, pin=False, progress=stop_the_first)
        result = coordinator.run()
    first, second = (generator.events["result"] for generator in coordinator._generators)
    assert first["end_ns"] - first["begin_ns"] < second["end_ns"] - second["begin_ns"]
    assert result["error_total"] == 0
    assert reads_after_end == []


@pytest.mark.parametrize("phase", ["connecting", "warming up", "measuring"])
def test_a_generator_that_dies_ends_the_run_at_once(phase: str) -> None:
    settings = Settings(connections=4, processes=2, duration_s=30.0, warmup_s=0.0)
    killed: list[psutil.Process] = []

    def kill(current: str, done: float, replies: int) -> None:
        if current == phase and not killed:
            killed.append(generators_of(psutil.Process())[0])
            killed[0].kill()

    with pytest.raises(CannotRun, match=r"^generator process 1 of 2 was killed by SIGKILL$"):
        run_once(settings, progress=kill)
    assert killed
    assert psutil.Process().children() == [], "neither the other generator nor the server is left"


def test_a_generator_that_can_not_take_a_command_any_more_keeps_nobody_running() -> None:
    def kill_and_tell(phase: str, done: float, replies: int) -> None:
        if phase == "measuring":
            generator = coordinator._generators[0]
            generator.process.kill()
            generator.process.wait(10)
            generator.tell({"do": "stop"})

    with spawned_server(default_command(100), None) as target:
        settings = Settings(connections=4, processes=2, duration_s=30.0, warmup_s=0.0)
        coordinator = Coordinator(settings, target, pin=False, progress=kill_and_tell)
        with pytest.raises(CannotRun, match="killed by SIGKILL"):
            coordinator.run()
    assert psutil.Process().children() == []


def test_a_generator_that_dies_is_one_line_on_stderr_and_status_3() -> None:
    command = [sys.executable, "benchmarks/load.py", "-c", "4", "--processes", "2", "-d", "30", "--warmup", "0"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        parent = psutil.Process(process.pid)

        def at_work() -> list[psutil.Process]:
            """Both generators, once the second has connections."""
            found = generators_of(parent)
            return found if len(found) == 2 and found[1].net_connections("tcp") else []

        second = wait_until(at_work)[1]
        all_children = parent.children()
        second.kill()
        stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (3, b"")
    assert stderr == b"load.py: generator process 2 of 2 was killed by SIGKILL\n"
    assert len(all_children) == 4, "two generators, a server and its keeper"
    assert not any(child.is_running() for child in all_children)


def test_a_refused_connection_is_told_why() -> None:
    command = '{python} -c \'import socket,sys,time; s=socket.create_server(("127.0.0.1", int(sys.argv[1])));'
    command += " s.accept(); s.close(); time.sleep(60)' {{port}}"
    with pytest.raises(CannotRun, match="none of 4 connections could be opened: Connection refused"):
        run_once(BRIEF, spawn=command.format(python=sys.executable))


@pytest.mark.slow
def test_the_same_seed_sends_the_same_messages() -> None:
    def totals(seed: int) -> Any:
        settings = Settings(connections=1, messages=500, size="uniform:1-90", text="mixed", warmup_s=0.0, seed=seed)
        return run_once(settings, pin=False)["bytes"]

    assert totals(5) == totals(5) != totals(6)
