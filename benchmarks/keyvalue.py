"""The key-value server of examples/ beside redis itself, by redis' own load generator.

``redis-benchmark`` asks both in turns, each round with the same requests, one and sixteen of them in flight on a
connection. What counts is the ratio of requests a second within a round: a busy machine is as busy for both.
"""

from __future__ import annotations

import csv
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if not __package__:
    __import__("_root")

from benchmarks.comparison.statistics import estimate, paired_ratio
from evloop_bench.common.arguments import Parser, positive
from evloop_bench.common.machine import cpu_model
from evloop_bench.common.paths import ROOT
from evloop_bench.common.processes import NotStarted, started
from evloop_bench.common.streams import EXIT_CANNOT_RUN, EXIT_OK, print_error, print_out, run_program

EXIT_NOT_MEASURED = 1

PIPELINES = (1, 16)
TESTS = "set,get,incr"
_MISSING = "{} is not installed: it comes with redis (Debian: apt install redis)"


class NotMeasured(Exception):
    """A run of redis-benchmark failed. The text is one line that says why."""


@contextmanager
def _ours() -> Iterator[int]:
    def port(said: bytes) -> int | None:
        found = re.search(rb"listening on 127\.0\.0\.1:(\d+)", said)
        return int(found[1]) if found else None

    command = [sys.executable, "-u", str(ROOT / "examples" / "keyvalue.py"), "0"]
    with started(command, port, environment={"PYTHONPATH": str(ROOT)}) as (_, found):
        yield found


@contextmanager
def _redis() -> Iterator[int]:
    with socket.socket() as sock:  # redis does not know "any port"
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with tempfile.TemporaryDirectory() as folder:
        ready = b"Ready to accept connections"
        with started(command, lambda said: ready in said or None, directory=Path(folder)):
            yield port


def requests_per_second(port: int, pipeline: int, requests: int, clients: int) -> dict[str, float]:
    """One run of redis-benchmark: requests a second for each of `TESTS`.

    Raises:
        NotMeasured: it failed, or its output is not understood.
    """
    command = ["redis-benchmark", "-h", "127.0.0.1", "-p", str(port), "-n", str(requests), "-c", str(clients)]
    command += ["-P", str(pipeline), "-t", TESTS, "--csv"]
    done = subprocess.run(command, capture_output=True, text=True)
    rows = [row for row in csv.reader(done.stdout.splitlines()) if len(row) > 1 and row[0] != "test"]
    try:
        rates = {row[0]: float(row[1]) for row in rows}
    except ValueError:
        rates = {}
    if done.returncode or [name.lower() for name in rates] != TESTS.split(","):
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise NotMeasured(f"redis-benchmark ended with status {done.returncode} and said: {said[-1]}")
    if not all(0 < rate < math.inf for rate in rates.values()):  # it counts whole milliseconds
        raise NotMeasured("a run was too short to be measured: ask for more --requests")
    return rates


def measured(rounds: int, requests: int, clients: int) -> list[str]:
    """The lines of the table: each test and number in flight, requests a second of both, and ours over redis'."""
    rates: dict[tuple[str, int], dict[str, dict[int, float]]] = {}
    with _ours() as ours, _redis() as redis:
        servers = [("ours", ours), ("redis", redis)]
        for number in range(rounds):
            for pipeline in PIPELINES:
                for name, port in servers:
                    for test, rate in requests_per_second(port, pipeline, requests, clients).items():
                        by_server = rates.setdefault((test, pipeline), {"ours": {}, "redis": {}})
                        by_server[name][number] = rate
            servers.reverse()  # who goes first changes from round to round
    lines = ["| | `-P` | ours, requests/s | redis, requests/s | ours / redis |", "|---|---:|---:|---:|---|"]
    for (test, pipeline), by_server in sorted(rates.items(), key=lambda entry: entry[0][1]):
        ratio = paired_ratio(by_server["ours"], by_server["redis"])
        assert ratio is not None
        ours_per_s, redis_per_s = (estimate(list(by_server[name].values())).value for name in ("ours", "redis"))
        lines.append(
            f"| {test} | {pipeline} | {ours_per_s:,.0f} | {redis_per_s:,.0f} "
            f"| ×{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f}) |"
        )
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="keyvalue.py",
        description="Compare examples/keyvalue.py with redis, by redis-benchmark, with 1 and 16 in flight.",
        epilog="Exit status: 0 done; 1 a run failed; 2 wrong usage; 3 cannot run, as redis is not installed, say.",
    )
    parser.add_argument("--rounds", "-r", type=positive, default=7, metavar="N", help="default: 7")
    parser.add_argument(
        "--requests", "-n", type=positive, default=50_000, metavar="N", help="of a run; default: 50,000"
    )
    parser.add_argument("--clients", "-c", type=positive, default=50, metavar="N", help="connections; default: 50")
    args = parser.parse_args(argv)
    for program in ("redis-server", "redis-benchmark"):
        if shutil.which(program) is None:
            print_error(f"keyvalue.py: {_MISSING.format(program)}")
            return EXIT_CANNOT_RUN
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    try:
        lines = measured(args.rounds, args.requests, args.clients)
    except NotStarted as error:
        print_error(f"keyvalue.py: {error}")
        return EXIT_CANNOT_RUN
    except NotMeasured as error:
        print_error(f"keyvalue.py: {error}")
        return EXIT_NOT_MEASURED
    print_out("\n".join(lines))
    print_out(
        f"\nMedians of {args.rounds} rounds in turns, {args.clients} connections, {cores} cores of {cpu_model()}; "
        "the ratio is taken within each round, with its 95 % interval."
    )
    if load > cores / 2:
        print_out(f"The machine was busy when it began (load {load:.1f}): believe the ratios, not the rates.")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_program("keyvalue.py", main))
