"""Scenarios that measure whole programs: start-up, one huge message, the client.

Each function runs the contestants once, in turn, and returns the figures of each by its name.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.comparison.payload import make_messages
from benchmarks.comparison.reloading import ReloadError, reload
from benchmarks.comparison.runner import RunError, cores, memory_bytes, running, settled
from benchmarks.comparison.scenarios import HUGE_TEXTS
from benchmarks.peers.registry import OURS, PEERS
from evloop_bench.common.paths import ROOT
from evloop_bench.common.processes import pinned_to

Figures = dict[str, dict[str, float]]

PYTHON_PASS = "python3 -c pass"
CLIENT_TEXT = "charcount-client TEXT"
CLIENT_PIPE = "charcount-client < lines"
WC = "wc -m"

_HUGE_BYTES = 1024 * 1024 * 1024
_BLOCK_BYTES = 1024 * 1024
_LINES = 1_000_000


def startup(directory: Path) -> Figures:
    """From starting the process to the first answer, beside an interpreter that does nothing.

    Best of five of each, as what disturbs a start only ever makes it longer.
    """
    found: dict[str, list[float]] = {PYTHON_PASS: [], OURS: [], CLIENT_TEXT: []}
    for _ in range(5):
        found[PYTHON_PASS].append(_wall_ms([sys.executable, "-c", "pass"]))
        found[OURS].append(_first_answer_ms())
    with running(PEERS[OURS]) as server:
        for _ in range(5):
            found[CLIENT_TEXT].append(_wall_ms([*_client(server.port), "text"]))
    return {name: {"wall_ms": min(times)} for name, times in found.items()}


def huge(text_kind: str, directory: Path) -> Figures:
    """One message of 1 GiB, beside ``wc -m`` on the same bytes.

    Both read on a core of their own; the bytes come from memory, through a socket and through a pipe.
    """
    text = b"".join(make_messages(text_kind, 8192, 256))
    block = text[:_BLOCK_BYTES].decode(errors="ignore").encode()
    repeats = _HUGE_BYTES // len(block)
    found: Figures = {}
    with running(PEERS[OURS]) as server:
        # A long message before: what a server loads once, and the buffers it takes at full speed, are not growth.
        _send_huge(server.port, block, 64)
        settled(lambda: memory_bytes(server.pid))
        before = _peak_kib(server.pid)
        cpu = _process_cpu_ms(server.pid)
        start = time.perf_counter()
        _send_huge(server.port, block, repeats)
        wall_ms = (time.perf_counter() - start) * 1000
        found[OURS] = {
            "cpu_ms": _process_cpu_ms(server.pid) - cpu,
            "wall_ms": wall_ms,
            "growth_kib": _peak_kib(server.pid) - before,
        }
    if shutil.which("wc"):
        # A pipe and not a file: a gibibyte on disk would measure the disk, and not everyone has it to spare in memory.
        with pinned_to(cores()[1:]):
            feeder = subprocess.Popen(
                [sys.executable, "-c", _FEEDER, str(repeats)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        assert feeder.stdin is not None
        assert feeder.stdout is not None
        with feeder, tempfile.TemporaryFile() as output:
            feeder.stdin.write(block)
            feeder.stdin.close()
            found[WC] = _run(["wc", "-m"], cores()[0], stdin=feeder.stdout, stdout=output)
            output.seek(0)
            if int(output.read()) != len(block.decode()) * repeats:
                raise RunError("wc -m counted something else")
    return found


def client_lines(directory: Path) -> Figures:
    """A million short lines through the client's standard input."""
    lines = directory / "lines"
    lines.write_text("".join(f"line {number}\n" for number in range(_LINES)))
    with running(PEERS[OURS]) as server, lines.open("rb") as source, tempfile.TemporaryFile() as replies:
        figures = _run(_client(server.port), cores()[1], stdin=source, stdout=replies)
        replies.seek(0)
        expected = "".join(f"{len(f'line {number}')}\n" for number in range(_LINES)).encode()
        if replies.read() != expected:
            raise RunError("the client's output is wrong")
    return {CLIENT_PIPE: figures}


def _reload(directory: Path) -> Figures:
    try:
        return reload(directory)
    except ReloadError as error:
        raise RunError(str(error)) from None


COMMANDS: dict[str, Callable[[Path], Figures]] = {
    "startup": startup,
    **{f"huge-{text}": partial(huge, text) for text in HUGE_TEXTS},
    "client-lines": client_lines,
    "reload": _reload,
}


def _client(port: int) -> list[str]:
    return [sys.executable, str(ROOT / "bin" / "charcount-client"), "--port", str(port)]


def _wall_ms(command: list[str]) -> float:
    with pinned_to(cores()[:1]):
        start = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=60, env=_keeping_bytecode())
        return (time.perf_counter() - start) * 1000


def _keeping_bytecode() -> dict[str, str]:
    """The environment, but Python compiles a module once and keeps the result, as it does unless told otherwise.

    Else one that was told not to would compile ours on each start, and its own library on none.
    """
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _first_answer_ms() -> float:
    """Connect over and over while the server starts, on the other core, until it answers."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "bin" / "charcount-server"), "--log-level", "warning", "--port", str(port)]
    start = time.perf_counter()
    with pinned_to(cores()[:1]):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=_keeping_bytecode())
    try:
        while time.perf_counter() - start < 30:
            try:
                client = socket.create_connection(("127.0.0.1", port), timeout=10)
            except ConnectionRefusedError:
                time.sleep(0.0005)
                continue
            with client:
                client.sendall(b"hello\n")
                if client.recv(16) != b"5\n":
                    raise RunError("wrong reply")
            return (time.perf_counter() - start) * 1000
        raise RunError("the server does not start")
    finally:
        process.terminate()
        process.wait(10)


def _run(command: list[str], core: int, **streams: Any) -> dict[str, float]:
    """Run to the end; CPU, wall time and largest memory of the process."""
    start = time.perf_counter()
    with pinned_to([core]):
        process = subprocess.Popen(command, env=_utf8_environment(), **streams)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RunError(f"{command[0]} ended with status {process.returncode}")
    return {"cpu_ms": _cpu_ms(usage), "wall_ms": (time.perf_counter() - start) * 1000}


def _cpu_ms(usage: resource.struct_rusage) -> float:
    return (usage.ru_utime + usage.ru_stime) * 1000


def _utf8_environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def _send_huge(port: int, block: bytes, repeats: int) -> None:
    """Send one message and check the reply: from a process of its own, so that it can have the other core."""
    with pinned_to(cores()[1:]):
        sender = subprocess.run(
            [sys.executable, "-c", _SENDER, str(port), str(repeats)],
            input=block,
            stdout=subprocess.PIPE,
            timeout=300,
        )
    characters = len(block.decode()) * repeats
    if sender.stdout != b"%d\n" % characters:
        raise RunError(f"wrong reply: expected {characters}, got {sender.stdout[:40]!r}")


_SENDER = """
import socket, sys
block = sys.stdin.buffer.read()
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as sock:
    for _ in range(int(sys.argv[2])):
        sock.sendall(block)
    sock.sendall(b"\\n")
    print(sock.recv(64).decode(), end="")
"""

_FEEDER = """
import os, sys
block = sys.stdin.buffer.read()
for _ in range(int(sys.argv[1])):
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(1, rest):]
"""


def _peak_kib(pid: int) -> float:
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if found is None:
        raise RunError("no VmHWM in the server's status")
    return float(found[1])


def _process_cpu_ms(pid: int) -> float:
    """The CPU time of another process so far: what clock_getcpuclockid(3) would read, in nanoseconds' precision."""
    return time.clock_gettime((~pid << 3) | 2) * 1000
