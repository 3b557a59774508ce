"""The server under every abuse at once, in Python's development mode and with warnings as errors."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from paths import ROOT


@pytest.mark.slow
def test_abuse_in_development_mode_leaves_no_warning_and_no_trace():
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "benchmarks" / "soak.py"), "--seconds", "10", "--dev"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert re.search(r"right answers +[1-9]", done.stdout)


@pytest.mark.parametrize(
    "abuse",
    [
        b"forged\n2030-01-01 00:00:00,000 ERROR everything is lost\n",
        b"\x1b[2J\x1b]0;owned\x07\n",
        b"\r\r\r 2030 WARNING \xff\n",
    ],
)
def test_abuse_of_the_log_is_not_possible_with_what_is_sent(spawn, abuse):
    """Nothing that a client sends is ever logged: what it can't write, it can't forge."""
    server = spawn("--log-level", "debug", "--max-message", "10")
    client = server.connect()
    client.send(abuse * 100)
    client.half_close()
    client.receive_rest()
    client.close()
    server.wait_for_log("disconnect ")
    assert "\x1b" not in server.log
    lines = server.log.splitlines()
    assert len(lines) == 3, lines
    assert lines[0].startswith("charcount-server: listening on ")
    for line in lines[1:]:
        assert re.fullmatch(r"[-0-9]+ [:0-9,]+ INFO (dis)?connect 127\.0\.0\.1:\d+( [a-z]+=[0-9.]+)*", line), line


def test_abuse_by_many_at_once_writes_few_lines(spawn):
    server = spawn()
    for _ in range(500):
        client = server.connect()
        assert client.ask(b"x\n", 2) == b"1\n"  # who says nothing is a probe, and not logged anyway
        client.reset()
    server.wait_for_log(" connect ")  # logging is loaded, and has said what waited for that
    # Two lines each would be 1000. Twenty of a kind pass in a second, and this does not take many.
    assert server.log.count("\n") < 300
