"""`benchmarks/keyvalue.py`: both figures, and clear words when it can't measure."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paths import ROOT
from waiting import DEADLINE_S


def keyvalue(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": os.environ["PATH"] if path is None else path}
    command = [sys.executable, str(ROOT / "benchmarks" / "keyvalue.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=3 * DEADLINE_S, env=environment)


def test_both_servers_in_turns_with_one_and_sixteen_in_flight() -> None:
    if shutil.which("redis-server") is None or shutil.which("redis-benchmark") is None:
        pytest.skip("redis is not installed")
    done = keyvalue("--rounds", "1", "--requests", "4000", "--clients", "5")
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| (\w+) \| (\d+) \| ([\d,]+) \| ([\d,]+) \| ×([\d.]+) \(", done.stdout, re.M)
    assert [(test, pipeline) for test, pipeline, *_ in rows] == [
        (test, pipeline) for pipeline in ("1", "16") for test in ("SET", "GET", "INCR")
    ]
    assert all(float(figure.replace(",", "")) > 0 for row in rows for figure in row[2:4])


def test_without_redis_it_says_what_to_do(tmp_path: Path) -> None:
    done = keyvalue(path=str(tmp_path))
    assert (done.returncode, done.stdout) == (3, "")
    assert (
        done.stderr == "keyvalue.py: redis-server is not installed: it comes with redis (Debian: apt install redis)\n"
    )


def play_benchmark(folder: Path, script: str) -> None:
    """Put the real server into a folder of programs, and a benchmark that is that script."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("redis is not installed")
    (folder / "redis-server").symlink_to(server)
    benchmark = folder / "redis-benchmark"
    benchmark.write_text(script)
    benchmark.chmod(0o755)


def test_a_run_that_fails_is_no_figure(tmp_path: Path) -> None:
    play_benchmark(tmp_path, "#!/bin/sh\necho 'Could not connect' >&2\nexit 1\n")
    done = keyvalue("--rounds", "1", path=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "keyvalue.py: redis-benchmark ended with status 1 and said: Could not connect\n"


def test_a_run_that_is_too_short_is_no_figure(tmp_path: Path) -> None:
    play_benchmark(tmp_path, '#!/bin/sh\nprintf \'"test","rps"\\n"SET","inf"\\n"GET","10.00"\\n"INCR","0.00"\\n\'\n')
    done = keyvalue("--rounds", "1", path=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "keyvalue.py: a run was too short to be measured: ask for more --requests\n"


def test_wrong_usage() -> None:
    done = keyvalue("--rounds", "0")
    assert done.returncode == 2
    assert done.stderr.startswith("keyvalue.py: argument --rounds/-r:")
