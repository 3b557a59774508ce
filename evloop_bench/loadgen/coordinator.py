"""One run from outside: generator processes, the server's samples, and the result they add up to.

The coordinator is itself a program on the event loop: the generators' pipes and an interrupt are its events. It sleeps
nearly all of the time, for it shares a core with the generators.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import psutil

from evloop.core.poller import READ
from evloop.eventloop import EventLoop
from evloop_bench.common.paths import ROOT
from evloop_bench.common.patience import Patience
from evloop_bench.common.processes import pinned_to
from evloop_bench.common.streams import handled_interrupts
from evloop_bench.loadgen.preflight import pick_cores, source_addresses
from evloop_bench.loadgen.results import assemble
from evloop_bench.loadgen.sampling import Sampler, Usage, machine_cpu
from evloop_bench.loadgen.settings import MIN_SOCKETS_FOR_MEMORY, Settings
from evloop_bench.loadgen.target import CannotRun, Target

# Often enough for a plot, seldom enough not to be seen in the generators' latencies: a sample takes some 0.3 ms.
_SAMPLE_S = 0.25
_MAX_SAMPLES = 400
# From the end of a generator's output to its end, which takes a while on a machine that is out of breath.
_EXIT_TIMEOUT_S = 5.0
# Beside what the ramp takes, and the wait for the last replies: far more than it takes when all is well.
_CONNECT_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 30.0
_PATIENCE_TICK_S = 0.25
# For a server to accept what is open already.
_ACCEPT_TIMEOUT_S = 1.0
_ACCEPT_TICK_S = 0.005

Progress = Callable[[str, float, int], None]


class GeneratorProcess:
    """A generator, seen from its parent: commands go in, events come out."""

    def __init__(self, settings: Settings, target: Target, sources: list[str], core: int | None) -> None:
        environment = dict(os.environ)
        paths = [str(ROOT), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        with pinned_to(None if core is None else [core]):
            self.process = subprocess.Popen(
                [sys.executable, "-m", "evloop_bench.loadgen.generator"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,  # a command that could not be sent must not be left for `close` to fail on
                env=environment,
                start_new_session=True,  # an interrupt from the terminal is for us
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin = self.process.stdin
        self.stdout = self.process.stdout
        os.set_blocking(self.stdout.fileno(), False)
        self._partial = b""
        self.ended = False
        self.replies = 0
        self.events: dict[str, dict[str, Any]] = {}
        self.tell({"settings": settings.to_dict(), "server": str(target.endpoint), "sources": sources})

    def tell(self, command: dict[str, Any]) -> None:
        """Send a command, unless the process is gone."""
        try:
            self.stdin.write(json.dumps(command).encode() + b"\n")  # short enough for a pipe to take it whole
        except OSError:
            pass

    def read_events(self) -> list[dict[str, Any]]:
        """What it has said since."""
        try:
            data = os.read(self.stdout.fileno(), 1 << 20)
        except BlockingIOError:
            return []
        self.ended = not data
        # A result is large and comes in many pieces; joining them one by one is fine for the few there are.
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def how_it_ended(self) -> str:
        """For a message, once it has `ended`."""
        try:
            status = self.process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "closed its output"
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def kill(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.stdin.close()
        self.stdout.close()


class Coordinator:
    """Drives one run.

    Args:
        settings: what to do.
        target: the server, ready.
        pin: see `evloop_bench.loadgen.preflight.pick_cores`.
        progress: called now and then with a phase, a part done from 0 to 1, and replies so far.

    Raises:
        CannotRun: it can't have so many connections to there.
    """

    def __init__(self, settings: Settings, target: Target, *, pin: bool | None, progress: Progress) -> None:
        self.settings = settings
        self.target = target
        self.interrupted = False
        self._sources = source_addresses(settings.sockets, target.endpoint)
        self._progress = progress
        self._server_cores, self._generator_cores = pick_cores(pin, target.spawned)
        self._sampler = Sampler(target.pids)
        self._generators: list[GeneratorProcess] = []
        self._marks: dict[str, Usage | None] = {}
        self._machine: dict[str, tuple[float, float]] = {}
        self._error: str | None = None
        self._idle_descriptors: int | None = None  # of the server, before the first connection
        self._sample_s = max(_SAMPLE_S, settings.duration_s / _MAX_SAMPLES)

    def run(self) -> dict[str, Any]:
        """Run it. Ctrl-C, SIGTERM or SIGHUP ends it early, with what there is so far; a second one at once.

        Returns:
            the result; see docs/benchmarking.md for what is in it.

        Raises:
            CannotRun: it could not begin, or a generator died.
            KeyboardInterrupt: interrupted twice, or before there was anything to tell.
        """
        with EventLoop() as loop:
            self._loop = loop
            for number in handled_interrupts():
                loop.add_signal_handler(number, self._on_interrupt)
            affinity = os.sched_getaffinity(0) if self._generator_cores is not None else None
            try:
                if self._generator_cores is not None:
                    os.sched_setaffinity(0, self._generator_cores)
                    self._pin_foreign_server()
                self._mark("start")
                self._idle_descriptors = self._sampler.descriptors()
                self._start_generators()
                ramp_s = self.settings.sockets / self.settings.ramp_per_s
                self._wait_for(_CONNECT_TIMEOUT_S + ramp_s, "the connections were not opened in time")
                loop.run()
            finally:
                for generator in self._generators:
                    loop.poller.watch(generator.stdout.fileno(), 0, loop.stop)
                    generator.kill()
                if affinity is not None:
                    os.sched_setaffinity(0, affinity)
        if self._error is not None:
            if self.interrupted:
                raise KeyboardInterrupt
            raise CannotRun(self._error)
        return assemble(
            self.settings,
            self.target,
            [generator.events["result"] for generator in self._generators],
            marks=self._marks,
            samples=self._sampler.samples,
            machine_cpu=self._machine,
            cores=(self._server_cores, self._generator_cores),
            interrupted=self.interrupted,
        )

    def _pin_foreign_server(self) -> None:
        if not self.target.spawned and self._server_cores is not None:
            for pid in self.target.pids:
                try:
                    psutil.Process(pid).cpu_affinity(self._server_cores)
                except psutil.Error:
                    raise CannotRun(f"--pin: may not set the cores of the server, process {pid}") from None

    def _start_generators(self) -> None:
        cores = self._generator_cores
        for index in range(self.settings.processes):
            core = None if cores is None else cores[index % len(cores)]
            generator = GeneratorProcess(self.settings.share(index), self.target, self._sources, core)
            self._generators.append(generator)
            self._loop.poller.register(generator.stdout.fileno(), READ, partial(self._on_readable, generator))
        self._progress("connecting", 0.0, 0)

    def _on_readable(self, generator: GeneratorProcess) -> None:
        for event in generator.read_events():
            name = event.pop("event")
            generator.events[name] = event
            if name == "progress":
                self._show_progress(generator, event)
            elif all(name in other.events for other in self._generators):
                getattr(self, f"_on_all_{name}")()
            elif name == "measuring":
                self._mark_once("begin")
        if generator.ended:
            self._loop.poller.watch(generator.stdout.fileno(), 0, self._loop.stop)  # an end stays readable for ever
            if "result" not in generator.events:
                number = self._generators.index(generator) + 1
                which = f"generator process {number} of {self.settings.processes}"
                self._fail(f"{which} {generator.how_it_ended()}")

    def _wait_for(self, seconds: float, failure: str) -> None:
        """Fail after a time, unless ``_waiting`` is cancelled before."""
        patience = Patience(seconds)

        def look() -> None:
            if patience.over():
                self._fail(failure)
            else:
                self._waiting = self._loop.call_later(_PATIENCE_TICK_S, look)

        look()

    def _on_all_base(self) -> None:
        """As many connections as make the server grow to its working size are open; each more costs what it costs."""
        self._mark_when_accepted("base", self.settings.base_sockets, lambda: self._tell_all("ramp"))

    def _on_all_connected(self) -> None:
        opened = sum(generator.events["connected"]["opened"] for generator in self._generators)
        wanted = self.settings.lasting_sockets
        if wanted and not opened:
            reasons = [reason for generator in self._generators for reason in generator.events["connected"]["reasons"]]
            self._fail(f"none of {wanted} connections could be opened: {', '.join(sorted(set(reasons)))}")
            return
        self._waiting.cancel()
        self._mark_when_accepted("connected", wanted, self._go)

    def _go(self) -> None:
        self._tell_all("go")
        self._progress("warming up", 0.0, 0)

    def _tell_all(self, do: str) -> None:
        for generator in self._generators:
            generator.tell({"do": do})

    def _mark_when_accepted(self, name: str, connections: int, then: Callable[[], None]) -> None:
        """Take the server's usage once it has accepted so many connections: to a client they are open before that."""
        if not self.target.spawned or self.settings.lasting_sockets < MIN_SOCKETS_FOR_MEMORY:
            then()
            return
        patience = Patience(_ACCEPT_TIMEOUT_S)

        def look() -> None:
            now = self._sampler.descriptors()
            if self._idle_descriptors is None or now is None or patience.over():
                then()  # without a mark: not known
            elif now >= self._idle_descriptors + connections - 1:  # one of the idle ones may have been our probe's
                self._mark(name)
                then()
            else:
                self._loop.call_later(_ACCEPT_TICK_S, look)

        look()

    def _on_all_measuring(self) -> None:
        self._mark_once("begin")
        self._loop.call_later(self._sample_s, self._sample)
        self._progress("measuring", 0.0, 0)

    def _on_all_measured(self) -> None:
        if "begin" in self._marks:
            self._mark("end")
        self._progress("waiting for replies", 1.0, sum(generator.replies for generator in self._generators))
        self._wait_for(self.settings.timeout_s + _END_TIMEOUT_S, "a generator does not end")

    def _on_all_result(self) -> None:
        if "begin" not in self._marks:
            self._fail("nothing was measured")
        self._loop.stop()

    def _sample(self) -> None:
        if "end" not in self._marks:
            self._sampler.sample()
            self._loop.call_later(self._sample_s, self._sample)

    def _mark_once(self, name: str) -> None:
        if name not in self._marks:
            self._mark(name)

    def _mark(self, name: str) -> None:
        self._machine[name] = machine_cpu()
        self._marks[name] = self._sampler.sample()

    def _show_progress(self, generator: GeneratorProcess, event: dict[str, Any]) -> None:
        generator.replies = event["replies"]
        replies = sum(other.replies for other in self._generators)
        if self.settings.messages is not None:
            done = replies / self.settings.messages
        else:
            done = event["seconds"] / self.settings.duration_s
        self._progress("measuring", min(done, 1.0), replies)

    def _on_interrupt(self) -> None:
        if self.interrupted or not any("measuring" in generator.events for generator in self._generators):
            self.interrupted = True
            self._fail("interrupted")
            return
        self.interrupted = True
        self._tell_all("stop")

    def _fail(self, text: str) -> None:
        self._error = self._error or text
        self._loop.stop()
