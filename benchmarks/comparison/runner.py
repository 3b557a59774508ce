"""Runs one scenario against one server: a fresh process, pinned, driven, measured, stopped."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison.payload import Payload, write_payload
from benchmarks.comparison.scenarios import Scenario
from benchmarks.peers.registry import Peer
from evloop_bench.common import native
from evloop_bench.common.certificate import write_certificate
from evloop_bench.common.descriptors import raise_descriptor_limit
from evloop_bench.common.paths import ROOT
from evloop_bench.common.processes import NotStarted, pinned_to, started, usable_cores

_DRIVER_SOURCE = Path(__file__).resolve().parents[1] / "drive.c"
_TLS_PART = _DRIVER_SOURCE.with_name("drive_tls.h")
# For 10,000 connections, and some to spare.
DESCRIPTORS = 20_000
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
    usable = usable_cores()
    return usable[0], usable[-1] if len(usable) < 3 else usable[1]


@contextmanager
def running(peer: Peer, certificate: Path | None = None) -> Iterator[RunningServer]:
    """Start a server on the first core, wait until it listens; stop it afterwards.

    Args:
        certificate: a file with a certificate and its key; then it serves by TLS.

    Raises:
        RunError: it does not start; with what it said.
    """

    def port(said: bytes) -> int | None:
        found = _LISTENING.search(said)
        return None if found is None else int(found[1])

    # "As it comes" must not depend on what malloc was told in the shell that this runs in.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment = {**ours, "PYTHONPATH": str(ROOT), **peer.environment}
    try:
        if certificate is None:
            command = peer.command()
        elif peer.over_tls is None:
            raise RunError("it does not speak TLS")
        else:
            command = peer.over_tls(certificate)
        with started(command, port, cores=cores()[:1], environment=environment, directory=ROOT) as (pid, number):
            yield RunningServer(pid, number)
    except (NotStarted, native.BuildError) as error:
        raise RunError(str(error)) from None


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
        self._tls_driver: Path | None = None
        self._certificate: Path | None = None
        self._payloads: dict[tuple[str, int, int], Payload] = {}

    def prepare_tls(self) -> None:
        """Have what scenarios with TLS need. To be called before the first of them.

        Raises:
            native.BuildError: the generator can't be compiled with TLS.
            NoCertificate: there is nothing that makes one.
        """
        self._tls_driver = native.build(_DRIVER_SOURCE, _TLS_PART)
        self._certificate = write_certificate(self.directory)

    def run(self, scenario: Scenario, peer: Peer, seed: int, rate: float = 0) -> dict[str, float]:
        """One run; its figures by name.

        Args:
            rate: for open loop: messages a second in total.

        Raises:
            RunError: no figure; a wrong or missing reply is such a reason.
        """
        with running(peer, self._certificate if scenario.tls else None) as server:
            if scenario.mode == "memory":
                return measure_memory(server, scenario.idle, tls=scenario.tls)
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
        command = [str(self._tls_driver if scenario.tls else self._driver)]
        command += [f"--{name}={value}" for name, value in options.items()]
        command += [f"--{name}" for name in ("tls", "records", "resume") if getattr(scenario, name)]
        try:
            with pinned_to(cores()[1:]):
                result = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    timeout=self._timing.warmup_s + self._timing.duration_s + 60,
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


def measure_memory(server: RunningServer, connections: int, *, tls: bool = False) -> dict[str, float]:
    """Memory per connection that has exchanged one message and is silent now.

    What a server takes once and for all is no connection's share: code that is loaded when it is first needed, pools
    that are filled for the first time. So the baseline is that of a server that has served before, and has settled.
    Some connections are open then, as many as were before them: else those that are counted would find the memory
    that these gave back.
    """
    raise_descriptor_limit(DESCRIPTORS)
    clients: list[socket.socket] = []
    context: ssl.SSLContext | None = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # what is measured is the server's memory
        context.verify_mode = ssl.CERT_NONE

    def open_some(number: int) -> None:
        for _ in range(number):
            clients.append(_ask_once(server.port, context))

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


def _ask_once(port: int, context: ssl.SSLContext | None) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    if context is not None:
        client = context.wrap_socket(client)
    client.sendall(b"hello\n")
    reply = client.recv(64)
    if reply != b"5\n":
        raise RunError(f"wrong reply: expected 5, got {reply!r}")
    return client
