"""A generator process: one event loop, its share of the connections.

It speaks JSON, one object a line. On stdin: first the plan (``settings``, ``server``, ``sources``), then
``{"do": "ramp"}``, ``{"do": "go"}``, and ``{"do": "stop"}`` to end early; end of input means that the parent
is gone. On stdout, as ``event``: ``base`` (the first connections are open; ``ramp`` opens the others), ``connected``
(waits for ``go``), ``measuring`` (the warm-up is over), ``progress``, ``measured`` (nothing more is sent), ``result``.

While it measures it does nothing else: no JSON, no percentiles, no garbage collection. Each interval's counts are put
aside, and handed over when all is done.
"""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from evloop.core.poller import READ
from evloop.eventloop import EventLoop
from evloop.net.endpoint import Endpoint, parse_endpoint
from evloop_bench.common.patience import Heartbeat, Patience
from evloop_bench.loadgen.clients import (
    CheckedClient,
    ClosedLoopClient,
    IdleClient,
    OpenLoopClient,
    clock_ns,
)
from evloop_bench.loadgen.corewait import core_wait_s
from evloop_bench.loadgen.drivers import ChurnDriver, Driver, OpenDriver, SteadyDriver
from evloop_bench.loadgen.histogram import count_above, merge
from evloop_bench.loadgen.opener import Opener
from evloop_bench.loadgen.ramp import Ramp
from evloop_bench.loadgen.selector import PreciseSelector
from evloop_bench.loadgen.settings import Settings
from evloop_bench.loadgen.tally import Run
from evloop_bench.loadgen.workload import make_pool, parse_sizes

_DRAIN_TICK_S = 0.01
_CLOSE_TIMEOUT_S = 10.0
# For replies in flight, and then for the end of the connections, when somebody waits for us to stop.
_INTERRUPTED_GRACE_S = 1.0
_HEARTBEAT_S = 0.1
_PROGRESS_S = 0.25
_BUDGET_TICK_S = 0.02
# A run of fewer messages counts every one of them; for more, the counting starts when the end is near.
_SMALL_BUDGET = 20000


class Generator:
    """Connects, warms up, measures, waits for what is in flight, reports."""

    def __init__(self, settings: Settings, server: Endpoint, sources: list[str]) -> None:
        self.settings = settings
        self.loop = EventLoop(selector=PreciseSelector() if settings.mode == "open" else None)
        sizes = parse_sizes(settings.size)
        # The processes share what the pool is made from, and differ in where they begin.
        pool = make_pool(sizes, settings.text, settings.pipeline, settings.seed // 1000, null=settings.null)
        window = settings.pipeline if settings.mode == "closed" or settings.churn else 1
        self.run = Run(self.loop, pool, window, settings.timeout_s)
        rng = random.Random(settings.seed)
        active = 0 if settings.churn else settings.connections
        kind = OpenLoopClient if settings.mode == "open" else ClosedLoopClient
        self.clients = [kind(self.run, rng.randrange(pool.size)) for _ in range(active)]
        self.idle = [IdleClient(self.run, 0) for _ in range(settings.idle)]
        opener = Opener(self.loop, server, sources)
        self.driver: Driver
        if settings.churn:
            self.driver = ChurnDriver(self.run, opener, settings)
        elif settings.mode == "open":
            self.driver = OpenDriver(self.run, self.clients, settings)  # type: ignore[arg-type]
        else:
            self.driver = SteadyDriver(self.clients)  # type: ignore[arg-type]
        self._lasting: list[CheckedClient] = [*self.idle, *self.clients]
        self._ramp = Ramp(
            self.loop,
            self._lasting,
            opener,
            base=settings.base_sockets,
            per_s=settings.ramp_per_s,
            on_base=lambda: self._emit("base"),
            on_all=self._emit_connected,
        )
        self._commands = b""
        self._intervals: list[dict[str, Any]] = []
        self._ending = False
        self._stopped_early = False
        self._measuring = False
        self._begin_ns = self._end_ns = 0
        self._begin_cpu_ns = self._end_cpu_ns = 0
        self._interval_from_ns = 0
        self._interval_cpu_ns = 0
        self._measured_replies = 0
        self._patience = Patience(0)
        self._heartbeat = Heartbeat(_HEARTBEAT_S)

    def main(self) -> None:
        """Run all of it."""
        os.set_blocking(0, False)
        self.loop.poller.register(0, READ, self._read_commands)
        self._ramp.start()
        gc.collect()
        gc.freeze()
        gc.disable()
        with self.loop:
            self.loop.run()

    def _emit(self, event: str, **fields: Any) -> None:
        sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
        sys.stdout.flush()

    def _read_commands(self) -> None:
        try:
            data = os.read(0, 65536)
        except BlockingIOError:
            return
        if not data:
            os._exit(1)  # the parent is gone
        *lines, self._commands = (self._commands + data).split(b"\n")
        for line in lines:
            do = json.loads(line)["do"]
            if do == "ramp":
                self._ramp.go_on()
            elif do == "go":
                self._start()
            elif do == "stop":
                self._stopped_early = True
                self._patience.shorten(_INTERRUPTED_GRACE_S)
                self._end()

    def _emit_connected(self) -> None:
        opened = sum(client.opened for client in self._lasting)
        seconds = self.loop.clock() - self._ramp.began_s
        self._emit("connected", opened=opened, seconds=seconds, reasons=self.run.tally.connect_errors)

    # ------------------------------------------------------------------ warming up and measuring

    def _start(self) -> None:
        run = self.run
        run.sending = True
        self._heartbeat = Heartbeat(_HEARTBEAT_S)
        self.loop.call_later(_HEARTBEAT_S, self._beat)
        warmup_s = self.settings.warmup_s
        start_ns = clock_ns()
        run.from_ns = start_ns + int(warmup_s * 1e9)
        if self.settings.messages is None:
            run.to_ns = run.from_ns + int(self.settings.duration_s * 1e9)
        if warmup_s > 0:
            # Before the start, which takes its time with thousands of connections.
            self.loop.call_later(warmup_s, self._end_warmup)
            self.driver.start()
        else:
            self._begin()
            self.driver.start()

    def _beat(self) -> None:
        self._heartbeat.beat()
        self.loop.call_later(_HEARTBEAT_S, self._beat)

    def _end_warmup(self) -> None:
        if self._ending:
            return
        if self.settings.messages is not None and self.settings.mode == "closed":
            # So that exactly so many are measured: begin with nothing in flight.
            self.run.sending = False
            self.driver.settle()
            self._patience = Patience(self.settings.timeout_s)
            self._wait_idle(self._begin_again)
        else:
            self._begin()

    def _begin_again(self) -> None:
        if self._ending:
            return
        self.run.sending = True
        self._begin()
        self.driver.start()

    def _begin(self) -> None:
        """The measured part begins."""
        run = self.run
        if self.settings.messages is not None:
            run.from_ns = clock_ns()
            self._ration()
        elif self.settings.mode == "closed":
            # On time or not, it lasts as long as it should. An open loop's schedule can't be moved.
            run.from_ns = clock_ns()
            run.to_ns = run.from_ns + int(self.settings.duration_s * 1e9)
        if self.settings.mode == "closed" or self.settings.messages is not None:
            # An open loop of a set duration has recorded by what was intended, and may have begun already.
            for counts in (run.tally.latency, run.tally.service, run.tally.lateness):
                counts.clear()
            run.tally.late_sends = run.tally.missed_sends = 0
        if self.settings.churn:
            run.tally.connect.clear()
        self._measuring = True
        self._replies_before = run.tally.replies
        self._emit("measuring")
        self._begin_ns = self._interval_from_ns = clock_ns()
        self._begin_cpu_ns = self._interval_cpu_ns = time.process_time_ns()
        self._switches = resource.getrusage(resource.RUSAGE_SELF)
        self._core_wait_s = core_wait_s()
        self.loop.call_later(self.settings.interval_s, self._next_interval)
        self.loop.call_later(_PROGRESS_S, self._progress)
        if self.settings.messages is None:
            self.loop.call_later((run.to_ns - self._begin_ns) / 1e9, self._end)

    def _ration(self) -> None:
        """Keep the run to its number of messages, at no cost for each of them until the end is near."""
        wanted = self.settings.messages
        assert wanted is not None
        if wanted <= _SMALL_BUDGET or self.settings.mode == "open" or self.settings.churn:
            self.run.budget = wanted
        self._last_count = 0
        self._patience = Patience(self.settings.timeout_s)
        self.loop.call_later(0, self._watch_budget)

    def _watch_budget(self) -> None:
        if self._ending:
            return
        run = self.run
        wanted = self.settings.messages
        assert wanted is not None
        count = self._count_replies()
        if run.budget is None:
            left = wanted - count
            if left < 3 * (count - self._last_count) + _SMALL_BUDGET:
                run.budget = max(left - self.driver.in_flight, 0)  # which has settled all clients, too
        elif run.budget == 0 and not self.driver.in_flight:
            self._end()
            return
        if count != self._last_count:
            self._last_count = count
            self._patience = Patience(self.settings.timeout_s)
        # Replies that don't come must not keep it from ending; an open loop that still sends doesn't depend on them.
        waiting = self.settings.mode == "closed" or run.budget == 0
        over = self._patience.over()  # asked each time, or the time between would count as a gap
        if (over and waiting) or not self.driver.alive:
            self._end()
            return
        self.loop.call_later(_BUDGET_TICK_S, self._watch_budget)

    def _next_interval(self) -> None:
        if self._ending:
            return
        self._close_interval()
        if not self.driver.alive and not self.idle:
            self._end()
            return
        # From the beginning, not from now: they must not drift against those of the other processes.
        due_s = (len(self._intervals) + 1) * self.settings.interval_s - (clock_ns() - self._begin_ns) / 1e9
        self.loop.call_later(max(due_s, 0.001), self._next_interval)

    def _count_replies(self) -> int:
        """Replies since the measuring began, whenever their messages were meant to be sent.

        In an overload the latencies are those of few: what comes back was meant for earlier.
        """
        tally = self.run.tally
        if self.settings.messages is None and (self.settings.mode == "open" or self.settings.churn):
            return tally.replies - self._replies_before
        return self._measured_replies + sum(tally.latency.values())

    def _close_interval(self) -> None:
        tally = self.run.tally
        now_ns, cpu_ns = clock_ns(), time.process_time_ns()
        replies = self._count_replies() - self._measured_replies
        self._measured_replies += replies
        self._intervals.append(
            {
                "replies": replies,
                "from_s": (self._interval_from_ns - self._begin_ns) / 1e9,
                "to_s": (now_ns - self._begin_ns) / 1e9,
                "cpu_s": (cpu_ns - self._interval_cpu_ns) / 1e9,
                "latency": tally.latency.copy(),
                "service": tally.service.copy(),
            }
        )
        tally.latency.clear()
        tally.service.clear()
        self._interval_from_ns, self._interval_cpu_ns = now_ns, cpu_ns

    def _progress(self) -> None:
        if self._ending:
            return
        self._emit("progress", replies=self._count_replies(), seconds=(clock_ns() - self._begin_ns) / 1e9)
        self.loop.call_later(_PROGRESS_S, self._progress)

    # ------------------------------------------------------------------ the end

    def _end(self) -> None:
        """The measured part ends: nothing more is sent; what is in flight may still come."""
        if self._ending:
            return
        self._ending = True
        run = self.run
        run.to_ns = min(run.to_ns, clock_ns())
        run.sending = False
        if self._measuring:
            self._close_interval()
            self._end_ns, self._end_cpu_ns = clock_ns(), time.process_time_ns()
            self._core_wait_s = core_wait_s() - self._core_wait_s
            before, self._switches = self._switches, resource.getrusage(resource.RUSAGE_SELF)
            self._context_switches = (
                self._switches.ru_nvcsw - before.ru_nvcsw,
                self._switches.ru_nivcsw - before.ru_nivcsw,
            )
        self._emit("measured")
        self.driver.stop()
        self._patience = Patience(self.settings.timeout_s)
        if self._stopped_early:
            self._patience.shorten(_INTERRUPTED_GRACE_S)
        self._wait_idle(self._close_all)

    def _wait_idle(self, then: Callable[[], None]) -> None:
        """Call ``then`` when nothing is in flight any more, or ``_patience`` is over."""
        if self.driver.in_flight and not self._patience.over():
            self.loop.call_later(_DRAIN_TICK_S, self._wait_idle, then)
        else:
            then()

    def _close_all(self) -> None:
        self._left = self.driver.in_flight
        self.driver.finish()
        for client in self.idle:
            client.finish()
        self._patience = Patience(_INTERRUPTED_GRACE_S if self._stopped_early else _CLOSE_TIMEOUT_S)
        self._wait_closed()

    def _wait_closed(self) -> None:
        closed = self.driver.all_closed and all(client.closed or not client.opened for client in self.idle)
        if closed or self._patience.over():
            self._emit("result", **self._result())
            self.loop.stop()
        else:
            self.loop.call_later(_DRAIN_TICK_S, self._wait_closed)

    def _result(self) -> dict[str, Any]:
        tally = self.run.tally
        service = merge([*(interval["service"] for interval in self._intervals), tally.service])
        latency = merge([*(interval["latency"] for interval in self._intervals), tally.latency])
        # What this process slept through, the server is not late by.
        late = count_above(service or latency, int((self.settings.timeout_s + self._heartbeat.stalled_s) * 1e9))
        for interval in self._intervals:
            del interval["service"]
            interval["latency"] = list(interval["latency"].items())
        return {
            "begin_ns": self._begin_ns,
            "end_ns": self._end_ns,
            "cpu_s": (self._end_cpu_ns - self._begin_cpu_ns) / 1e9,
            "core_wait_s": self._core_wait_s if self._measuring else 0.0,
            "stalled_s": self._heartbeat.stalled_s,
            "context_switches": list(self._context_switches) if self._measuring else [0, 0],
            "measured_replies": self._measured_replies,
            "sent": tally.sent,
            "replies": tally.replies,
            "connections": tally.connections,
            "bytes_sent": tally.bytes_sent,
            "bytes_received": tally.bytes_received,
            "errors": {
                "wrong": tally.wrong,
                "missing": tally.missing,
                "late": late,
                "refused": tally.refused,
                "reset": tally.reset,
                "timed_out": 0 if self._stopped_early else self._left,
            },
            "examples": tally.examples,
            "connect_errors": tally.connect_errors,
            "late_sends": tally.late_sends,
            "missed_sends": tally.missed_sends,
            "latency": list(latency.items()),
            "service": list(service.items()),
            "lateness": list(tally.lateness.items()),
            "connect": list(tally.connect.items()),
            "intervals": self._intervals,
        }


def main() -> None:
    """Entry point of the process."""
    plan = json.loads(sys.stdin.buffer.raw.readline())  # type: ignore[union-attr]  # unbuffered: the rest is the loop's
    Generator(Settings(**plan["settings"]), parse_endpoint(plan["server"]), plan["sources"]).main()


if __name__ == "__main__":
    main()
