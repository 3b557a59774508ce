"""`load.py` as it is run: whole runs against real servers, its output and its exit status."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import psutil
import pytest
from hdrh.histogram import HdrHistogram

from evloop_bench.loadgen.options import parse_options
from paths import ROOT
from waiting import wait_until

LOAD = str(ROOT / "benchmarks" / "load.py")
SERVER = shlex.quote(str(ROOT / "bin" / "charcount-server"))

Load = Callable[..., Any]

SHORT = ("--duration", "0.2", "--warmup", "0.05")


def own_totals(log: Path) -> tuple[int, int, int]:
    """Connections, bytes received and bytes sent, from the server's last line."""
    match = re.search(r"stopped: connections=(\d+) received=(\d+) sent=(\d+)", log.read_text())
    assert match is not None, log.read_text()
    connections, received, sent = map(int, match.groups())
    return connections, received, sent


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", "20"),
        ("-c", "7", "--pipeline", "16", "--text", "mixed", "--size", "uniform:0-200", "--processes", "2"),
        ("-c", "5", "--idle", "40", "--rate", "2000"),
        ("-c", "5", "--churn", "--pipeline", "3"),
    ],
    ids=["closed", "pipelined", "open", "churn"],
)
def test_counts_and_totals_agree_with_the_servers_own(load: Load, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    log = tmp_path / "server.log"
    command = f"{sys.executable} {SERVER} --log-level info --port {{port}}"
    done = load(*arguments, *SHORT, "--seed", "5", "--spawn", command, "--server-log", str(log))
    assert done.status in (0, 4), done.stderr + done.stdout
    result = done.result
    assert result["error_total"] == 0, result
    messages = result["messages"]
    assert messages["sent"] == messages["replies"] > 0
    assert 0 < messages["measured"] <= messages["sent"]
    connections, received, sent = own_totals(log)
    assert connections == result["connections"] + 1, "and the one that found the server ready"
    assert (received, sent) == (result["bytes"]["sent"], result["bytes"]["received"])


def test_every_message_is_in_the_servers_disconnect_log(load: Load, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    command = f"{sys.executable} {SERVER} --log-level info --port {{port}}"
    done = load("-c", "4", "-n", "2000", "--warmup", "0", "--spawn", command, "--server-log", str(log))
    counted = [int(number) for number in re.findall(r"disconnect .* messages=(\d+)", log.read_text())]
    assert sum(counted) == 2000 == done.result["messages"]["replies"] == done.result["latency"]["n"]
    assert len([number for number in counted if number]) == 4


def test_json_says_what_was_run_and_on_what_and_can_be_compared(load: Load, tmp_path: Path) -> None:
    done = load("-c", "3", "--seed", "9", "--repeat", "2", *SHORT)
    document = done.document
    assert (document["schema"], document["version"], document["seed"]) == ("evloop-load", 2, 9)
    assert document["machine"]["python"] == sys.version.split()[0]
    assert document["machine"]["cpu"]
    assert set(document["code"]) == {"commit", "modified"}
    first, second = document["runs"]
    assert (first["settings"]["seed"], second["settings"]["seed"]) == (9, 10)
    assert first["server"]["pids"] != second["server"]["pids"], "each run has a fresh server"
    for run in document["runs"]:
        histogram = HdrHistogram.decode(run["latency"]["hdr"].encode())
        assert histogram.get_total_count() == run["latency"]["n"] > 0
        assert run["server"]["cpu_s"] >= 0
        assert run["server"]["rss_max_bytes"] > 1 << 20
        assert run["generator"]["cpu_us_per_message"] > 0
    path = str(tmp_path / "run.json")
    compared = subprocess.run(
        [sys.executable, LOAD, "compare", "--force", path, path], capture_output=True, text=True, timeout=30
    )
    assert compared.returncode == 0, compared.stderr
    assert "throughput: no clear difference" in compared.stdout


@pytest.mark.slow
def test_files_for_other_programs(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("t.json", "t.csv", "t.hgrm", "t.html")]
    files = [f"--{path.suffix[1:]}={path}" for path in paths]
    arguments = ["-c", "10", "--rate", "3000", "-d", "0.6", "--warmup", "0.1", "--repeat", "2", *files]
    # A process of its own: matplotlib keeps fonts open.
    done = subprocess.run([sys.executable, "-W", "error", LOAD, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 4), done.stderr
    results = json.loads(paths[0].read_text())["runs"]
    table, hgrm, page = paths[1:]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert sum(int(row["replies"]) for row in rows) == sum(result["messages"]["measured"] for result in results)
    assert f"TotalCount     = {sum(result['latency']['n'] for result in results):12.3f}]" in hgrm.read_text()
    text = page.read_text()
    assert text.count("<svg") == 8
    for title in ("Throughput", "Latency by percentile", "Latency over time", "CPU and memory", "Run 2 of 2"):
        assert title in text
    assert "\n<pre>all 2 runs  " in text
    for verdict in ("valid", "invalid"):
        of_it = sum(result["verdict"]["valid"] == (verdict == "valid") for result in results)
        assert text.count(f'<span class="badge {verdict}">') == of_it
    # Self-contained: nothing is fetched, nothing runs.
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"|url\((?!#)|<script|@import|<link', text)


def test_connections_without_a_message_are_held(load: Load) -> None:
    done = load("-c", "0", "--idle", "300", *SHORT)
    assert done.status == 0, done.stdout
    assert done.result["connections"] == 300


@pytest.mark.slow
def test_memory_per_connection_is_what_one_more_costs(load: Load) -> None:
    # The first connection alone makes the server grow by half a megabyte, which others don't.
    costs = {}
    for count in (1, 300, 2000):
        done = load("-c", "0", "--idle", str(count), "-d", "0.1", "--warmup", "0", "--ramp", "10k")
        costs[count] = done.result["server"]["rss_per_connection_bytes"]
        assert ("per connection" in done.stdout) == (count > 1)
    assert costs[1] is None
    assert 500 < costs[300] < 1200
    assert 500 < costs[2000] < 1200


def test_a_broken_condition_is_status_1_and_an_unreliable_run_status_4(load: Load) -> None:
    few = ("-c", "2", "--warmup", "0", "-n")
    unreliable = load(*few, "50")
    assert unreliable.status == 4
    assert "INVALID" in unreliable.stdout
    assert "too few samples: 50" in unreliable.stdout
    broken = load(*few, "3000", "--assert", "errors==0", "--assert", "messages==2999")
    assert broken.status == (1 if broken.result["verdict"]["valid"] else 4)
    assert "broken: messages==2999: it is 3,000" in broken.stdout
    assert broken.stdout.count("broken: ") == 1


def test_calibration_prints_the_ceiling(load: Load) -> None:
    done = load("--calibrate", "-c", "20", "--pipeline", "4", *SHORT)
    assert done.result["error_total"] == 0
    assert re.search(r"the harness spends [\d.]+ us per message", done.stdout)
    assert re.search(r"its ceiling with 1 process: [\d,]+ messages/s", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--size big", "is not a size"),
        ("--assert p98<1ms", "there is no 'p98'"),
        ("--rate 0", "is not a rate"),
        ("--rate 5 --pipeline 2", "--pipeline is of the closed loop"),
        ("--spawn server", "--spawn needs {port}"),
        ("--spawn x{port} --server 127.0.0.1:1", "not allowed with argument"),
        ("--connections 0", "nothing to do"),
        ("--connections 0 --idle 5 --rate 3", "sends nothing"),
        ("--processes 5 -c 4", "more --processes"),
        ("--messages 2 --processes 3", "more --processes"),
        ("--server nowhere", "is no endpoint: the port is missing; did you mean nowhere:PORT?"),
        ("--server 192.0.2.1:5 --pin", "on this machine"),
        ("--messages 1.5", "is not a whole number"),
        ("--duration 0", "is not a number of seconds"),
        ("--duration 10d", "is not a number of seconds above 0: write 10, 10s, 500ms, 2m or 1h"),
        ("--timeout s", "is not a number of seconds"),
        ("--timeout 5ks", "is not a number of seconds"),
        ("--server 127.0.0.1:²", "is not the number of a port"),
    ],
)
def test_wrong_usage_is_status_2(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(arguments.split())
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10", 10), ("10s", 10), ("1.5s", 1.5), ("500ms", 0.5), ("2m", 120), ("2min", 120), ("1h", 3600)],
)
def test_times_may_have_a_unit(text: str, seconds: float) -> None:
    settings = parse_options(["-d", text, "--warmup", text, "--timeout", text]).settings
    assert (settings.duration_s, settings.warmup_s, settings.timeout_s) == (seconds, seconds, seconds)
    assert parse_options(["--warmup", "0s"]).settings.warmup_s == 0


def test_defaults_are_those_promised() -> None:
    settings = parse_options([]).settings
    assert (settings.connections, settings.pipeline, settings.mode, settings.size) == (300, 1, "closed", "32")
    assert parse_options([]).settings.seed != parse_options([]).settings.seed
    assert parse_options(["-c", "1k", "--rate", "20k"]).settings.rate_per_s == 20_000
    assert parse_options(["--rate", "1.5M"]).settings.rate_per_s == 1_500_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--server 127.0.0.1:1", "nothing accepts connections at 127.0.0.1:1"),
        ("--spawn no-such-program{port}", "cannot start no-such-program"),
        ("compare none.json none.json", "cannot read none.json"),
    ],
)
def test_what_can_not_run_is_status_3_and_one_line(arguments: str, said: str) -> None:
    done = subprocess.run([sys.executable, LOAD, *arguments.split()], capture_output=True, text=True, timeout=30)
    assert done.returncode == 3
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_server_that_does_not_start_is_quoted(load: Load) -> None:
    script = "import sys; sys.exit('no such option: {port}')"
    done = load("--spawn", f"{sys.executable} -c {shlex.quote(script)}")
    assert done.status == 3
    assert re.search(r"the server ended with status 1; it said: no such option: \d+", done.stderr)


def test_help_ends_with_three_examples_that_are_understood() -> None:
    done = subprocess.run([sys.executable, LOAD, "--help"], capture_output=True, text=True, timeout=30, check=True)
    examples, _, documentation = done.stdout.partition("\nexamples:\n")[2].partition("\ndocumentation:\n")
    commands = re.findall(r"^  (load\.py.*)$", examples, re.M)
    assert len(commands) == 3
    for command in commands:
        if " compare " not in command:
            parse_options(shlex.split(command)[1:])
    assert max(map(len, done.stdout.splitlines())) <= 80
    (page,) = re.findall(r"docs/\w+\.md", documentation)
    assert (ROOT / page).exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--conections 5", "load.py: unrecognized arguments: --conections 5 (did you mean --connections?)"),
        ("compare a b --forse", "load.py compare: unrecognized arguments: --forse (did you mean --force?)"),
    ],
)
def test_a_misspelt_option_is_one_line_with_a_guess(arguments: str, said: str) -> None:
    done = subprocess.run([sys.executable, LOAD, *arguments.split()], capture_output=True, text=True, timeout=30)
    program = said.partition(":")[0]
    assert (done.returncode, done.stderr) == (2, f"{said}; see {program} --help\n")


def test_without_the_extra_it_says_how_to_get_it() -> None:
    # -S: no site-packages, as in a Python with nothing installed.
    done = subprocess.run([sys.executable, "-S", LOAD], capture_output=True, text=True, timeout=30)
    assert done.returncode == 6
    assert "pip install -e '.[bench]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_prints_what_there_is_and_leaves_nothing_running(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    child = pexpect.spawn(
        sys.executable,
        [LOAD, "-c", "5", "-d", "60", "--warmup", "0.1", "--json", str(path)],
        timeout=20,
        encoding="utf-8",
    )
    child.expect("measuring")
    processes = psutil.Process(child.pid).children(recursive=True)
    assert len(processes) == 3, "a server, its keeper and a generator"
    child.expect("[1-9][0-9,]* replies +[1-9][0-9,]*/s")
    child.sendintr()
    child.expect("throughput")
    child.expect("interrupted: these are the numbers up to then")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    document = json.loads(path.read_text())
    assert document["argv"][:5] == ["load.py", "-c", "5", "-d", "60"]
    (run,) = document["runs"]
    assert run["interrupted"]
    assert 0 < run["seconds"] < 50
    assert run["error_total"] == 0
    assert run["messages"]["sent"] == run["messages"]["replies"] > 0
    wait_until(lambda: not any(process.is_running() for process in processes), "they have ended")
