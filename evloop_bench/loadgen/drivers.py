"""Who sends when: the closed loop, the open loop, and connections that come and go."""

from __future__ import annotations

import itertools
import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator

from evloop.core.timers import Timer
from evloop_bench.loadgen.clients import (
    ChurnClient,
    ClosedLoopClient,
    IdleClient,
    OpenLoopClient,
    clock_ns,
)
from evloop_bench.loadgen.histogram import SUB_BUCKET_BITS
from evloop_bench.loadgen.opener import Opener
from evloop_bench.loadgen.settings import LATE_SEND_S, Settings
from evloop_bench.loadgen.tally import Run

# Sends in one go before replies are looked at again, when a schedule has fallen behind.
_SENDS_PER_TURN = 64
# What a schedule still holds at the end of an overload is counted one by one up to here: minutes of 2 million a second
# would take minutes to count.
_COUNTED_ONE_BY_ONE = 100_000


class Driver(ABC):
    """Starts the sending of one process's clients, and knows when they have nothing left to send."""

    @abstractmethod
    def start(self) -> None:
        """Begin to send."""

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """Messages that are still to be answered."""

    @abstractmethod
    def stop(self) -> None:
        """Nothing new is sent from now on."""

    @abstractmethod
    def finish(self) -> None:
        """Close all connections."""

    @property
    @abstractmethod
    def alive(self) -> bool:
        """False when no connection is left, and there won't be one."""

    @property
    @abstractmethod
    def all_closed(self) -> bool:
        """True once `finish` has taken effect."""

    @abstractmethod
    def settle(self) -> None:
        """Bring the tally up to date."""


class SteadyDriver(Driver):
    """Of connections that stay."""

    def __init__(self, clients: list[ClosedLoopClient] | list[OpenLoopClient] | list[IdleClient]) -> None:
        self.clients = clients

    def start(self) -> None:
        for client in self.clients:
            if isinstance(client, ClosedLoopClient) and client.opened and not client.closed:
                client.start()

    @property
    def in_flight(self) -> int:
        self.settle()
        return sum(client.in_flight for client in self.clients if not client.closed)

    def stop(self) -> None:
        self.settle()

    def settle(self) -> None:
        for client in self.clients:
            client.settle()

    def finish(self) -> None:
        for client in self.clients:
            client.finish()

    @property
    def alive(self) -> bool:
        return any(not client.closed for client in self.clients)

    @property
    def all_closed(self) -> bool:
        return all(client.closed or not client.opened for client in self.clients)


class Schedule:
    """When something is due at a given rate: a clock of its own that does not wait for anybody.

    Args:
        arrivals: ``"poisson"``: the gaps are exponential, as of many users who don't know of each other;
            ``"uniform"``: all gaps are the same.
        phase: with uniform arrivals, which part of a gap passes before the first, from 0 to 1, so that processes
            take turns.

    Attributes:
        next_ns: the next moment.
        gap_ns: from one to the next, on average.
    """

    def __init__(self, rate_per_s: float, arrivals: str, rng: random.Random, start_ns: int, phase: float = 1.0) -> None:
        self.gap_ns = gap_ns = 1e9 / rate_per_s
        self._times = (
            self._poisson(rng, start_ns, gap_ns) if arrivals == "poisson" else self._even(start_ns, gap_ns, phase)
        )
        self.next_ns = next(self._times)

    @staticmethod
    def _poisson(rng: random.Random, start_ns: int, gap_ns: float) -> Iterator[int]:
        at = float(start_ns)
        exponential = rng.expovariate
        while True:
            at += exponential(1.0) * gap_ns
            yield int(at)

    @staticmethod
    def _even(start_ns: int, gap_ns: float, phase: float) -> Iterator[int]:
        return (start_ns + int((count + phase) * gap_ns) for count in itertools.count())

    def advance(self) -> int:
        """Take out the next moment."""
        due = self.next_ns
        self.next_ns = next(self._times)
        return due


class OpenDriver(SteadyDriver):
    """Sends on a schedule, whatever the server does."""

    clients: list[OpenLoopClient]

    def __init__(self, run: Run, clients: list[OpenLoopClient], settings: Settings) -> None:
        super().__init__(clients)
        self._run = run
        self._settings = settings
        self._rng = random.Random(settings.seed)
        self._turn = itertools.cycle(clients) if settings.arrivals == "uniform" else None
        self._schedule: Schedule | None = None
        self._timer: Timer | None = None

    def start(self) -> None:
        rate = self._settings.rate_per_s
        assert rate is not None
        self._schedule = Schedule(rate, self._settings.arrivals, self._rng, clock_ns(), self._rng.random())
        self._send_due()

    def _send_due(self) -> None:
        self._timer = None
        run = self._run
        schedule = self._schedule
        if not run.sending or schedule is None:
            return
        for _ in range(_SENDS_PER_TURN):
            now_ns = clock_ns()
            if schedule.next_ns > now_ns or schedule.next_ns >= run.to_ns:
                break
            # What was due in the warm-up and is late doesn't count, so it isn't rationed.
            if schedule.next_ns >= run.from_ns and not run.grant(1):
                return
            self._send_one(schedule.advance(), now_ns)
        if schedule.next_ns < run.to_ns:
            wait_s = max(schedule.next_ns - clock_ns(), 0) / 1e9
            self._timer = run.loop.call_later(wait_s, self._send_due)

    def _send_one(self, intended_ns: int, now_ns: int) -> None:
        clients = self.clients
        client = clients[int(self._rng.random() * len(clients))] if self._turn is None else next(self._turn)
        sent = client.send(intended_ns, now_ns)
        run = self._run
        if intended_ns >= run.from_ns:
            if sent:
                count_lateness(run, now_ns - intended_ns)
            else:
                run.tally.missed_sends += 1

    def stop(self) -> None:
        super().stop()
        if self._timer is not None:
            self._timer.cancel()
        count_missed(self._run, self._schedule)


class ChurnDriver(Driver):
    """Connections that are opened, ask, and are closed: as many at a time as there are to be, or on a schedule."""

    def __init__(self, run: Run, opener: Opener, settings: Settings) -> None:
        self._run = run
        self._opener = opener
        self._settings = settings
        self._rng = random.Random(settings.seed)
        self._active: set[ChurnClient] = set()
        self._schedule: Schedule | None = None
        self._waiting: deque[int] = deque()  # intended moments for which no slot was free
        self._failures_in_a_row = 0

    def start(self) -> None:
        rate = self._settings.rate_per_s
        if rate is None:
            for _ in range(self._settings.connections):
                self._connect(clock_ns())
        else:
            self._schedule = Schedule(rate, self._settings.arrivals, self._rng, clock_ns(), self._rng.random())
            self._open_due()

    def _connect(self, intended_ns: int) -> None:
        run = self._run
        position = self._rng.randrange(run.pool.size)
        client = ChurnClient(run, position, intended_ns, self._one_is_over)
        self._active.add(client)
        self._opener.open(client, self._settings.timeout_s)

    def _one_is_over(self, client: ChurnClient) -> None:
        self._active.discard(client)
        run = self._run
        if not run.sending or run.budget == 0:
            return
        if self._schedule is None:
            if client.opened:
                self._connect(clock_ns())
            else:
                run.loop.call_later(0.1, self._connect_again)  # refused: don't turn in a circle
        elif self._waiting:
            self._open(self._waiting.popleft())

    def _connect_again(self) -> None:
        if self._run.sending:
            self._connect(clock_ns())

    def _open_due(self) -> None:
        run = self._run
        schedule = self._schedule
        if not run.sending or schedule is None:
            return
        for _ in range(_SENDS_PER_TURN):
            if schedule.next_ns > clock_ns() or schedule.next_ns >= run.to_ns:
                break
            intended_ns = schedule.advance()
            if len(self._active) >= self._settings.connections:
                self._waiting.append(intended_ns)
            else:
                self._open(intended_ns)
        if schedule.next_ns < run.to_ns:
            run.loop.call_later(max(schedule.next_ns - clock_ns(), 0) / 1e9, self._open_due)

    def _open(self, intended_ns: int) -> None:
        if intended_ns >= self._run.from_ns:
            count_lateness(self._run, clock_ns() - intended_ns)
        self._connect(intended_ns)

    def stop(self) -> None:
        run = self._run
        run.tally.missed_sends += sum(1 for intended_ns in self._waiting if run.from_ns <= intended_ns < run.to_ns)
        self._waiting.clear()
        count_missed(run, self._schedule)

    def settle(self) -> None:
        pass  # it always is

    @property
    def in_flight(self) -> int:
        return sum(client.in_flight for client in self._active)

    def finish(self) -> None:
        for client in list(self._active):
            client.finish()

    @property
    def alive(self) -> bool:
        return True

    @property
    def all_closed(self) -> bool:
        return not self._active


def count_lateness(run: Run, late_ns: int) -> None:
    """Count one send of the measured time, and by how much it was late."""
    shift = late_ns.bit_length() - SUB_BUCKET_BITS
    run.tally.lateness[late_ns >> shift << shift if shift > 0 else late_ns] += 1
    if late_ns > LATE_SEND_S * 1e9:
        run.tally.late_sends += 1


def count_missed(run: Run, schedule: Schedule | None) -> None:
    """Count what was due in the measured time and can't be sent any more; of very many, so many as the rate says."""
    if schedule is None or run.budget == 0:
        return
    for _ in range(_COUNTED_ONE_BY_ONE):
        if schedule.next_ns >= run.to_ns:
            return
        if schedule.advance() >= run.from_ns:
            run.tally.missed_sends += 1
    rest_ns = run.to_ns - max(schedule.next_ns, run.from_ns)
    run.tally.missed_sends += max(round(rest_ns / schedule.gap_ns), 0)
