"""What becomes of `load.py` when it can't write what it has to say: never a traceback, never a wrong status."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from paths import ROOT
from variants import first_of

LOAD = str(ROOT / "benchmarks" / "load.py")
TINY = "-c 2 -n 300 --warmup 0"

# What a login shell has, and with what images of containers set.
PLAIN = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
UNBUFFERED = PLAIN | {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
environments = pytest.mark.parametrize(
    "environment",
    [pytest.param(PLAIN, id="plain"), pytest.param(UNBUFFERED, id="unbuffered", marks=pytest.mark.slow)],
)


def shell(line: str, environment: dict[str, str] = PLAIN, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which ``load.py`` stands for the program."""
    line = line.replace("load.py", f"exec {shlex.quote(sys.executable)} {shlex.quote(LOAD)}", 1)
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, env=environment, cwd=cwd)


@environments
@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("load.py --help >/dev/full", 5, "load.py: cannot write to stdout: No space left on device\n"),
        ("load.py --help >&-", 5, "load.py: cannot write to stdout: it is closed\n"),
        ("load.py --help >&- 2>&-", 5, ""),
        ("load.py --help 2>/dev/full", 0, ""),
        ("load.py compare --help >/dev/full", 5, "load.py: cannot write to stdout: No space left on device\n"),
        ("load.py --bogus 2>/dev/full", 2, ""),
        ("load.py --bogus 2>&-", 2, ""),
        ("load.py --server 127.0.0.1:1 2>/dev/full", 3, ""),
        ("load.py --server 127.0.0.1:1 2>&-", 3, ""),
        ("load.py compare none none 2>/dev/full", 3, ""),
        ("load.py --server 127.0.0.1:1 <&- >&-", 3, "load.py: nothing accepts connections at 127.0.0.1:1"),
    ],
)
def test_streams_that_take_nothing_change_no_status(
    line: str, status: int, said: str, environment: dict[str, str]
) -> None:
    done = shell(line, environment)
    assert done.returncode == status
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == bool(said)


@environments
def test_a_report_that_can_not_be_printed_is_status_5_and_the_files_are_there(
    environment: dict[str, str], tmp_path: Path
) -> None:
    full = shell(f"load.py {TINY} --json full.json >/dev/full", environment, tmp_path)
    assert (full.returncode, full.stderr) == (5, "load.py: cannot write to stdout: No space left on device\n")
    closed = shell(f"load.py {TINY} --json closed.json >&- 2>&-", environment, tmp_path)
    assert closed.returncode == 5
    for name in ("full.json", "closed.json"):
        (run,) = json.loads((tmp_path / name).read_text())["runs"]
        assert run["messages"]["measured"] == 300


def test_a_reader_that_is_gone_is_status_5() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, LOAD, "--help"], stdout=writer, stderr=subprocess.PIPE, timeout=30, env=PLAIN
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (5, b"load.py: cannot write to stdout: Broken pipe\n")


@environments
def test_a_stdout_that_takes_little_at_a_time_gets_all(environment: dict[str, str]) -> None:
    whole = subprocess.run([sys.executable, LOAD, "--help"], stdout=subprocess.PIPE, timeout=30, env=environment).stdout
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    os.write(writer, b"x" * 4000)  # the rest does not fit
    with subprocess.Popen([sys.executable, LOAD, "--help"], stdout=writer, env=environment) as process:
        os.close(writer)
        with open(reader, "rb") as file:
            received = file.read()
    assert process.returncode == 0
    assert received == b"x" * 4000 + whole


@pytest.mark.parametrize("kind", first_of("json", "csv", "hgrm", "html"))
def test_a_disk_that_is_full_costs_that_file_only(kind: str, tmp_path: Path) -> None:
    other = "csv" if kind == "json" else "json"
    done = shell(f"load.py {TINY} --{kind} /dev/full --{other} other", PLAIN, tmp_path)
    assert (done.returncode, done.stderr) == (5, "load.py: cannot write /dev/full: No space left on device\n")
    assert re.search(r"^throughput +[\d,]+ messages/s", done.stdout, re.MULTILINE)
    assert (tmp_path / "other").stat().st_size > 100


@pytest.mark.parametrize("kind", first_of("json", "csv", "hgrm", "html"))
def test_a_file_that_can_not_be_made_is_found_before_the_run(kind: str, tmp_path: Path) -> None:
    done = shell(f"load.py -d 3600 --{kind} no/such/file", PLAIN, tmp_path)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == "load.py: cannot write no/such/file: No such file or directory\n"


def test_a_run_that_does_not_take_place_leaves_no_empty_file_and_an_old_one_alone(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("precious")
    done = shell("load.py --server 127.0.0.1:1 --json new --csv old", PLAIN, tmp_path)
    assert done.returncode == 3
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "old").read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (f"--server {'a' * 70}.example:80", "cannot resolve 'aaaa"),
        ("--server a..b:80", "cannot resolve 'a..b'"),
        ("--spawn 'x \"{port}'", "cannot understand the command of --spawn: No closing quotation"),
        ("--server-log no/such/file", "cannot write no/such/file: No such file or directory"),
    ],
)
def test_arguments_that_can_not_be_used_are_status_3_and_one_line(arguments: str, said: str) -> None:
    done = shell(f"load.py {arguments}")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"load.py: {said}")
    assert len(done.stderr.splitlines()) == 1


def test_wrong_usage_is_one_line() -> None:
    done = shell("load.py --size big")
    assert done.returncode == 2
    assert re.fullmatch(r"load\.py: argument --size: 'big' is not a size: .*; see load\.py --help\n", done.stderr)


@pytest.mark.slow
def test_an_argument_that_is_no_text_is_in_the_page(tmp_path: Path) -> None:
    done = shell(f"load.py {TINY} --html page.html --server-log $'\\xff.log'", PLAIN, tmp_path)
    assert done.returncode in (0, 4), done.stderr
    assert "\\udcff.log" in (tmp_path / "page.html").read_text()


def test_the_runs_before_one_that_can_not_take_place_are_told(tmp_path: Path) -> None:
    # A server that starts once: the second run of two can't begin.
    command = f"{sys.executable} -c {shlex.quote(ONCE)} {shlex.quote(str(tmp_path / 'used'))} {{port}}"
    done = shell(f"load.py {TINY} --repeat 2 --json x.json --spawn {shlex.quote(command)}", PLAIN, tmp_path)
    assert done.returncode == 3
    assert done.stderr == "load.py: the server ended with status 1; it said: used up\n"
    assert "run 1 of 2" in done.stdout
    assert len(json.loads((tmp_path / "x.json").read_text())["runs"]) == 1


ONCE = f"""
import os, sys
if os.path.exists(sys.argv[1]):
    sys.exit("used up")
open(sys.argv[1], "w").close()
os.execv(sys.executable, [sys.executable, {str(ROOT / "bin" / "charcount-server")!r}, "--port", sys.argv[2]])
"""
