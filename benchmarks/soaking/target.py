"""The server under soak: a process of its own that also answers how it is.

It is the service as the command runs it, with limits at which abuse is noticed within seconds. On stdin it is asked by
a line; on stdout it answers with a line of JSON. The end of stdin, or SIGTERM, stops it in order.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from evloop import EventLoop, Limits, TLSServerSettings
from evloop.charcount.server import CharCountServer, ServiceSettings
from evloop_bench.common.certificate import write_certificate
from evloop_bench.common.descriptors import raise_descriptor_limit
from evloop_bench.common.paths import ROOT

MAX_CONNECTIONS = 300
MAX_CONNECTIONS_PER_ADDRESS = 200
MAX_MESSAGE_BYTES = 100_000

LIMITS = Limits(
    max_connections=MAX_CONNECTIONS,
    max_connections_per_address=MAX_CONNECTIONS_PER_ADDRESS,
    idle_timeout_s=3.0,
    message_timeout_s=1.0,
    write_timeout_s=1.0,
    linger_timeout_s=0.5,
    proxy_header_timeout_s=1.0,
    linger_bytes=200_000,
    drain_timeout_s=10.0,
    # Much lower than usual, so that a client that does not read is noticed by these and not only by the kernel.
    high_water_bytes=32_768,
    low_water_bytes=8_192,
    # The mark, and the replies to one piece of a receive: 5,120 errors of 27 bytes. So it can't be reached.
    max_unsent_bytes=200_000,
)
# How long a handshake may take.
HANDSHAKE_TIMEOUT_S = 1.0
# Where the proxy is, for which alone the server takes the word for whom it speaks for.
PROXY = "127.0.0.9"
# What the kernel holds for a client that does not read. Left alone it makes that megabytes, where no limit is hit.
SEND_BUFFER_BYTES = 65_536
# What the server needs beside its connections: those it refuses are open for a while, too.
OTHER_DESCRIPTORS = 128
# Descriptors that the server may have while they are scarce, beside those it has with nobody connected.
FEW_DESCRIPTORS = 4


@dataclass
class Status:
    """What the server says of itself, and what can be seen of it from outside."""

    connections: int
    timers: int
    handlers: int
    accepted: int
    probes: int
    failed: int
    limits: dict[str, int]
    tls: dict[str, int]
    descriptors: int
    memory_bytes: int
    cpu_s: float


class Target:
    """The server's process. Use it as a context manager; it is killed at the end if it did not stop.

    Args:
        dev: run it in Python's development mode with warnings as errors.
    """

    def __init__(self, dev: bool) -> None:
        options = ["-X", "dev", "-W", "error"] if dev else []
        self._directory = tempfile.TemporaryDirectory(prefix="soak-")
        certificate = write_certificate(Path(self._directory.name))
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close
        self.process = subprocess.Popen(
            [sys.executable, *options, "-m", "benchmarks.soaking.target", str(certificate)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self._psutil = psutil.Process(self.process.pid)
        first = self._read_answer()
        self.address = ("127.0.0.1", first["port"])
        self.tls_address = ("127.0.0.1", first["tls_port"])
        self._at_start = self.status()

    def status(self) -> Status:
        """Ask it how it is."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"status\n")
        self.process.stdin.flush()
        answer = self._read_answer()
        times = self._psutil.cpu_times()
        return Status(
            **answer,
            descriptors=self._psutil.num_fds(),
            memory_bytes=self._psutil.memory_info().rss,
            cpu_s=times.user + times.system,
        )

    def wait_until_calm(self, timeout_s: float) -> Status:
        """Wait until nothing is left to do; return how it is then, or at the end of the time."""
        deadline = time.monotonic() + timeout_s
        before = self.status()
        while True:
            time.sleep(0.25)
            now = self.status()
            idle = not now.connections and now.cpu_s - before.cpu_s < 0.05
            # Those who were refused are no connections of the server's, but have handlers until they are gone. The
            # log's own timer, which says how many lines were left out, is gone after a second as well.
            start = self._at_start
            done = now.handlers <= start.handlers and now.timers <= start.timers
            if (idle and done) or time.monotonic() > deadline:
                return now
            before = now

    @contextlib.contextmanager
    def few_descriptors(self) -> Iterator[None]:
        """Lower its descriptor limit for a while, below what it has open by now. Nothing happens except on Linux."""
        if not hasattr(self._psutil, "rlimit"):
            yield
            return
        usual = self._psutil.rlimit(psutil.RLIMIT_NOFILE)
        self._psutil.rlimit(psutil.RLIMIT_NOFILE, (self._at_start.descriptors + FEW_DESCRIPTORS, usual[1]))
        try:
            yield
        finally:
            self._psutil.rlimit(psutil.RLIMIT_NOFILE, usual)

    def stop(self) -> tuple[int, str]:
        """SIGTERM, and wait. Returns its exit status and all it has logged."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(LIMITS.drain_timeout_s + 10)
        self._log.seek(0)
        return status, self._log.read().decode()

    def _read_answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"the server is gone:\n{self._log.read().decode()[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        for stream in (self.process.stdin, self.process.stdout, self._log):
            assert stream is not None
            stream.close()
        self._directory.cleanup()


# ---------------------------------------------------------------------- in the process itself


def serve() -> None:
    """Run the server; see above."""
    logging.basicConfig(level="INFO", format="%(levelname)s %(message)s", stream=sys.stderr)
    raise_descriptor_limit(MAX_CONNECTIONS + OTHER_DESCRIPTORS)
    stdin = sys.stdin.fileno()
    with EventLoop() as loop:
        settings = ServiceSettings(max_message_bytes=MAX_MESSAGE_BYTES, limits=LIMITS, proxy_from=PROXY)
        server = CharCountServer(loop, settings)
        tls = TLSServerSettings([(sys.argv[1], sys.argv[1])], handshake_timeout_s=HANDSHAKE_TIMEOUT_S)
        server.listen()
        server.listen(tls=tls)
        for listener in server.listeners:  # its connections inherit it
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

        def answer(**what: object) -> None:
            print(json.dumps(what), flush=True)

        def stop() -> None:
            if stdin in loop.poller.handlers:
                loop.poller.watch(stdin, 0, asked)
            server.drain(loop.stop)

        def asked() -> None:
            question = os.read(stdin, 100)
            if not question:
                stop()
            for _ in range(question.count(b"\n")):
                stats = server.stats
                answer(
                    connections=len(server.connections),
                    timers=loop.timers,
                    handlers=len(loop.poller.handlers),
                    accepted=stats.accepted,
                    probes=stats.probes,
                    failed=stats.failed,
                    limits=dict(stats.limits),
                    tls={**tls.tally.failures, "handshakes": tls.tally.handshakes, "resumed": tls.tally.resumed},
                )

        loop.poller.register(stdin, selectors.EVENT_READ, asked)
        loop.add_signal_handler(signal.SIGTERM, stop)
        ports = [listener.socket.getsockname()[1] for listener in server.listeners]
        answer(port=ports[0], tls_port=ports[-1])
        loop.run()


if __name__ == "__main__":
    serve()
