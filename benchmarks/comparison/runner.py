"""Runs one scenario against one server: a fresh process, pinned, driven, measured, stopped."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison import native
from benchmarks.comparison.payload import Payload, write_payload
from benchmarks.comparison.scenarios import Scenario
from benchmarks.peers.registry import ROOT, Peer

_DRIVER_SOURCE = Path(__file__).resolve().parents[1] / "drive.c"
_START_TIMEOUT_S = 15.0
_STOP_TIMEOUT_S = 10.0
# Memory is steady when it stays so for 0.4 s: our server, say, loads what it logs with 50 ms after its first answer.
_LOOK_INTERVAL_S = 0.05
_STEADY_LOOKS = 9
_STEADY_WITHIN_BYTES = 16 * 1024
_WARMING_CONNECTIONS = 300
_LISTENING = re.compile(rb"listening on \S*:(\d+)")


class RunError(Exception):
    """A run gave no figure. The text says why."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long each run warms up and measures, in seconds."""

    warmup_s: float = 0.3
    duration_s: float = 1.0


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that accepts connections on ``port`` of 127.0.0.1."""

    pid: int
    port: int


def cores() -> tuple[int, int]:
    """The cores for the server and for the generator; the same one twice if there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1] if len(usable) < 3 else usable[1]


def pinned_to(core: int) -> Callable[[], None]:
    """What pins a child to a core before it starts any thread: for ``preexec_fn``."""
    return lambda: os.sched_setaffinity(0, {core})


@contextmanager
def running(peer: Peer) -> Iterator[RunningServer]:
    """Start a server on the first core, wait until it listens; stop it with SIGTERM afterwards.

    Raises:
        RunError: it does not start; with what it said.
    """
    command = peer.command()
    # A file and not a pipe: nobody reads along, and a full pipe would stop the server.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            preexec_fn=pinned_to(cores()[0]),
        )
        try:
            deadline = time.monotonic() + _START_TIMEOUT_S
            while not (found := _LISTENING.search(said := os.pread(output.fileno(), 65536, 0))):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RunError(f"{peer.name} does not start: {said.decode(errors='replace').strip()[-300:]}")
                time.sleep(0.005)
            yield RunningServer(process.pid, int(found[1]))
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def memory_bytes(pid: int) -> int:
    """Memory that only this process has (its unique set size): what its end would give back."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    private_kib = re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", rollup, re.MULTILINE)
    if len(private_kib) != 2:
        raise RunError("no private memory in smaps_rollup")
    return sum(map(int, private_kib)) * 1024


def settled(look: Callable[[], int], timeout_s: float = 10.0) -> int:
    """What ``look`` says, once it has said the same, but for a few pages, for a while.

    Raises:
        RunError: it never does.
    """
    deadline = time.monotonic() + timeout_s
    looks: list[int] = []
    while time.monotonic() < deadline:
        looks = [*looks[1 - _STEADY_LOOKS :], look()]
        if len(looks) == _STEADY_LOOKS and max(looks) - min(looks) <= _STEADY_WITHIN_BYTES:
            return looks[-1]
        time.sleep(_LOOK_INTERVAL_S)
    raise RunError(f"its memory does not settle: still changing after {timeout_s:g} s")


class Runner:
    """Runs scenarios. Holds the payload files, which it makes as they are needed, in ``directory``.

    Raises:
        native.BuildError: the generator can't be compiled.
    """

    def __init__(self, directory: Path, timing: Timing) -> None:
        self.directory = directory
        self._timing = timing
        self._driver = native.build(_DRIVER_SOURCE)
        self._payloads: dict[tuple[str, int, int], Payload] = {}

    def run(self, scenario: Scenario, peer: Peer, seed: int, rate: float = 0) -> dict[str, float]:
        """One run; its figures by name.

        Args:
            rate: for open loop: messages a second in total.

        Raises:
            RunError: no figure; a wrong or missing reply is such a reason.
        """
        with running(peer) as server:
            if scenario.mode == "memory":
                return measure_memory(server, scenario.idle)
            return self._drive(scenario, server, seed, rate)

    def _drive(self, scenario: Scenario, server: RunningServer, seed: int, rate: float) -> dict[str, float]:
        payload = self._payload(scenario)
        options = {
            "mode": scenario.mode,
            "port": server.port,
            "server-pid": server.pid,
            "payload": payload.messages,
            "replies": payload.replies,
            "connections": scenario.connections,
            "depth": scenario.depth,
            "idle": scenario.idle,
            "rate": rate,
            "seed": seed,
            "warmup-s": self._timing.warmup_s,
            "duration-s": self._timing.duration_s,
        }
        try:
            result = subprocess.run(
                [str(self._driver), *(f"--{name}={value}" for name, value in options.items())],
                capture_output=True,
                text=True,
                timeout=self._timing.warmup_s + self._timing.duration_s + 60,
                preexec_fn=pinned_to(cores()[1]),
            )
        except subprocess.TimeoutExpired:
            raise RunError("the generator did not end") from None
        if result.returncode != 0:
            raise RunError(result.stderr.strip()[-200:])
        return figures(json.loads(result.stdout), scenario, payload.mean_bytes)

    def _payload(self, scenario: Scenario) -> Payload:
        key = scenario.text, scenario.size_bytes, scenario.depth
        if key not in self._payloads:
            self._payloads[key] = write_payload(self.directory, *key)
        return self._payloads[key]


def figures(raw: dict[str, float], scenario: Scenario, mean_bytes: float) -> dict[str, float]:
    """What tables show, from what the generator printed.

    ``cpu_us`` is per message, except for churn: per connection.
    """
    done = raw["connections_done"] if scenario.mode == "churn" else raw["messages"]
    if done <= 0:
        raise RunError("no message was answered in the measured phase")
    ticks = raw["server_user_s"] + raw["server_system_s"]
    return {
        "cpu_us": raw["server_cpu_s"] / done * 1e6,
        "per_s": done / raw["seconds"],
        "p50_us": raw["p50_us"],
        "p99_us": raw["p99_us"],
        "p999_us": raw["p999_us"],
        "server_busy": raw["server_cpu_s"] / raw["seconds"],
        "generator_busy": raw["generator_cpu_s"] / raw["seconds"],
        "kernel_share": raw["server_system_s"] / ticks if ticks else 0.0,
        "mean_message_bytes": mean_bytes,
        "messages": raw["messages"],
    }


def measure_memory(server: RunningServer, connections: int) -> dict[str, float]:
    """Memory per connection that has exchanged one message and is silent now.

    What a server takes once and for all is no connection's share: code that is loaded when it is first needed, pools
    that are filled for the first time. So the baseline is that of a server that has served before, and has settled.
    Some connections are open then, as many as were before them: else those that are counted would find the memory
    that these gave back.
    """
    raise_descriptor_limit()
    clients: list[socket.socket] = []

    def open_some(number: int) -> None:
        for _ in range(number):
            clients.append(_ask_once(server.port))

    def close_all() -> None:
        while clients:
            clients.pop().close()

    try:
        open_some(_WARMING_CONNECTIONS)
        close_all()
        open_some(_WARMING_CONNECTIONS)
        before = settled(lambda: memory_bytes(server.pid))
        open_some(connections)
        after = settled(lambda: memory_bytes(server.pid))
    finally:
        close_all()
    return {"bytes": (after - before) / connections, "total_bytes": after}


def _ask_once(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    client.sendall(b"hello\n")
    reply = client.recv(64)
    if reply != b"5\n":
        raise RunError(f"wrong reply: expected 5, got {reply!r}")
    return client


def raise_descriptor_limit() -> None:
    """Let this process, and those it starts, have as many descriptors as the hard limit allows."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
