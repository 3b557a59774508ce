"""Single runs from a script: where processes run, what is found out about a server, what ends a run early."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import psutil
import pytest
from loadgen.runner import run_once
from loadgen.settings import Settings
from loadgen.target import CannotRun, default_command, spawned_server

BRIEF = Settings(connections=4, duration_s=0.3, warmup_s=0.0, seed=1)


def test_a_server_that_runs_already_is_found_and_measured() -> None:
    with spawned_server(default_command(100), None) as target:
        result = run_once(BRIEF, server=(target.host, target.port))
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
            children = psutil.Process().children()
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
        result = run_once(settings, server=(target.host, target.port), progress=kill)
    assert result["seconds"] < 20, "there was nobody left to talk to"
    assert result["errors"]["reset"] == 4


def test_a_generator_that_dies_is_an_error() -> None:
    def kill(phase: str, done: float, replies: int) -> None:
        if phase == "warming up":
            for child in psutil.Process().children():
                if "loadgen.generator" in child.cmdline():
                    child.kill()

    with pytest.raises(CannotRun, match="a generator process died"):
        run_once(BRIEF, progress=kill)


def test_a_refused_connection_is_told_why() -> None:
    command = '{python} -c \'import socket,sys,time; s=socket.create_server(("127.0.0.1", int(sys.argv[1])));'
    command += " s.accept(); s.close(); time.sleep(60)' {{port}}"
    with pytest.raises(CannotRun, match="none of 4 connections could be opened: Connection refused"):
        run_once(BRIEF, spawn=command.format(python=sys.executable))


def test_the_same_seed_sends_the_same_messages() -> None:
    def totals(seed: int) -> Any:
        settings = Settings(connections=1, messages=500, size="uniform:1-90", text="mixed", warmup_s=0.0, seed=seed)
        return run_once(settings, pin=False)["bytes"]

    assert totals(5) == totals(5) != totals(6)
