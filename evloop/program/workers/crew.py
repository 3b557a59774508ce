"""The crew of a service: slots, the workers in them, and who stands in where none works.

Theory of operation
-------------------
Each *slot* has one worker, which serves there until it ends; then another one takes its place. During a reload a slot
has two for a moment: the *heir* is started first, and only when it serves does the old one make way. Everything runs in
one ordinary loop of this library: the ends of processes are descriptors, what workers say are messages, the rest are
timers.

A slot whose worker does not work (dead, still loading, or held up) has sockets, to which the kernel sends clients as
ever. At these the supervisor stands in: it accepts, and passes each connection to a worker that is well. If none is,
clients wait in the kernel's queues. From sockets that exist only once it accepts always.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import partial

from evloop.core.loop import Loop
from evloop.limits import Limits
from evloop.log import ERROR, NOTICE, WARNING, Logger
from evloop.program.workers.door import Door
from evloop.program.workers.health import Pulse
from evloop.program.workers.messages import Message
from evloop.program.workers.slot import Slot
from evloop.program.workers.slotsockets import Place
from evloop.program.workers.spawn import Children
from evloop.program.workers.workerprocess import WorkerProcess

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.server.sharedcounts import CountsMemory

_log = Logger("evloop.supervisor")

# How often it looks who is late.
_TICK_S = 0.1


class Crew:
    """Keeps a worker in each slot. What happens to them is told to a `Supervisor`, which this is a part of.

    Args:
        places: where the service listens. Owned.
        workers: how many slots there will be at first.
        limits: those of the workers; here some of its times count.
        inherited: as in `evloop.program.workers.role.Role`.
        counts: as in `WorkerProcess`.

    Attributes:
        slots: where workers serve.
        workers: all that live, those that make way included.
        serving: all workers were ready once.
        stopping: no worker is started any more.
    """

    def __init__(
        self,
        loop: Loop,
        children: Children,
        places: Sequence[Place],
        workers: int,
        limits: Limits,
        inherited: dict[int, str] | None = None,
        counts: CountsMemory | None = None,
    ) -> None:
        self.loop = loop
        self.places = list(places)
        self.limits = limits
        self.slots: list[Slot] = []
        self.workers: set[WorkerProcess] = set()
        self.serving = self.stopping = False
        self._children = children
        self._inherited = {} if inherited is None else inherited
        self._counts = counts
        self._turn = 0
        self._waiting: list[tuple[int, socket.socket]] = []  # accepted, and nobody can have them now
        self._ticked_at = loop.now
        self._doors_left: dict[WorkerProcess, list[Door]] = {}
        # At sockets that exist once; and at those that a predecessor had more workers for.
        self._shared_doors = [
            self._door(index, sock)
            for index, place in enumerate(self.places)
            for sock in (place.sockets if place.passed else place.sockets[workers:])
        ]
        loop.call_later(_TICK_S, self._tick)

    # ------------------------------------------------------------------ for the supervisor to say what happens then

    def _is_ready(self, worker: WorkerProcess) -> None:
        raise NotImplementedError

    def _heard(self, worker: WorkerProcess, message: Message) -> None:
        raise NotImplementedError

    def _ended(self, worker: WorkerProcess, status: int) -> None:
        raise NotImplementedError

    def _could_not_start(self, slot: Slot, as_heir: bool, why: str) -> None:
        raise NotImplementedError

    def _busy_with(self) -> str:
        """What goes on in which each slot gets another worker, so that there can't be more or fewer; empty: nothing."""
        raise NotImplementedError

    # ------------------------------------------------------------------ slots and workers

    def add_slot(self) -> None:
        """One worker more.

        Raises:
            OSError: there can't be more sockets.
        """
        number = len(self.slots)
        try:
            for place in self.places:
                place.make_room(number + 1)
        except OSError:
            for place in self.places:
                place.close_slots(number)  # clients would come to a socket that nobody serves
            raise
        own = [(index, place) for index, place in enumerate(self.places) if not place.passed]
        slot = Slot(number, [self._door(index, place.sockets[number]) for index, place in own])
        self.slots.append(slot)
        self.start(slot)

    def one_more(self) -> None:
        """A worker more."""
        if not self._can_change("no worker more"):
            return
        try:
            self.add_slot()
        except OSError as error:
            _log.log(ERROR, "no worker more: its socket cannot be opened: %s", error.strerror or error)
        else:
            _log.log(NOTICE, "one worker more: %d", len(self.slots))

    def one_less(self) -> None:
        """A worker less, unless it is the last one, or nobody else lives who could have its connections."""
        if not self._can_change("no worker less") or len(self.slots) == 1:
            return
        if all(slot.worker is None for slot in self.slots[:-1]):
            _log.log(ERROR, "no worker less: no other one lives")
            return
        self.remove_slot()
        _log.log(NOTICE, "one worker less: %d", len(self.slots))

    def _can_change(self, otherwise: str) -> bool:
        if not self.serving or self.stopping:
            return False
        if busy := self._busy_with():
            _log.log(ERROR, "%s: %s goes on; try again when it is over", otherwise, busy)
        return not busy

    def remove_slot(self) -> None:
        """One worker less: the last one makes way for another one, which there must be."""
        slot = self.slots.pop()
        slot.removed = True
        if slot.restart is not None:
            slot.restart.cancel()
        if slot.heir is not None:
            slot.heir.stop()
        worker, others = slot.worker, self.next_worker()
        slot.set_doors(True)
        for place in self.places:
            place.close_slots(slot.number)
        if worker is None or others is None:
            self._close_doors(slot.doors)
            return
        # The doors hold the sockets open until it has closed its own: then nobody can come any more.
        self._doors_left[worker] = slot.doors
        worker.retire(others, self.limits.handover_timeout_s)

    def accepts_no_more(self, worker: WorkerProcess) -> None:
        """It was told to make way, and has closed its sockets, or it has ended."""
        self._close_doors(self._doors_left.pop(worker, []))

    def _close_doors(self, doors: list[Door]) -> None:
        for door in doors:
            door.accept_all()
            door.set_open(False)

    def start_heir(self, slot: Slot) -> None:
        """Start who takes the place of a slot's worker."""
        self.start(slot, as_heir=True)

    def start(self, slot: Slot, as_heir: bool = False) -> None:
        """Start a worker for a slot. If that can't be done, it is tried again later; or the heir has failed."""
        slot.restart = None
        pulse = Pulse(self.limits.worker_boot_timeout_s, self.limits.worker_stuck_timeout_s)
        try:
            worker = WorkerProcess(
                self.loop,
                self._children,
                slot.number,
                self.places,
                self._inherited,
                pulse,
                self._counts,
                self._is_ready,
                self._heard,
                self._ended,
            )
        except OSError as error:
            why = f"cannot start worker {slot.number + 1}: {error.strerror or error}"
            self._could_not_start(slot, as_heir, why)
            return
        self.workers.add(worker)
        if as_heir:
            slot.heir = worker
        else:
            slot.worker = worker

    def restart(self, slot: Slot, why: str, lived_s: float) -> None:
        """Start another worker, at once or after a delay.

        Args:
            why: what has happened, for the log.
            lived_s: how long the last one has served.
        """
        delay_s = slot.backoff.after(lived_s)
        when = f"in {delay_s:g} s" if delay_s else "at once"
        _log.log(WARNING, "%s; starting another one %s", why, when)
        if delay_s:
            slot.restart = self.loop.call_later(delay_s, self.start, slot)
        else:
            self.start(slot)

    # ------------------------------------------------------------------ doors

    def _door(self, place: int, sock: socket.socket) -> Door:
        return Door(self.loop, sock, self.limits.backlog, partial(self._accepted, place))

    def _accepted(self, place: int, sock: socket.socket) -> None:
        """Pass a connection to a worker that is well; if none is, it waits for one."""
        for _ in self.slots:
            worker = self._next_one_well()
            if worker is not None and worker.pass_connection(place, sock.fileno()):
                sock.close()
                return
        self._waiting.append((place, sock))

    def pass_again(self, worker: WorkerProcess) -> None:
        """Pass on to others what a worker has not taken."""
        for place, sock in worker.take_back():
            self._accepted(place, sock)

    def _pass_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for place, sock in waiting:
            self._accepted(place, sock)

    def next_worker(self) -> WorkerProcess | None:
        """Whose turn it is to get a connection: one that is well, else who was heard of last; None if none lives."""
        live = [slot.worker for slot in self.slots if slot.worker is not None]
        last = min(
            live, key=lambda worker: (worker.closing, not worker.pulse.ready, worker.pulse.silent_s), default=None
        )
        return self._next_one_well() or last

    def _next_one_well(self) -> WorkerProcess | None:
        able = [slot.worker for slot in self.slots if slot.worker is not None and slot.worker.well]
        self._turn += 1
        return able[self._turn % len(able)] if able else None

    def update_doors(self) -> None:
        """Stand in where nobody serves, if there is somebody who can."""
        if self.stopping:
            return
        anybody = any(slot.served for slot in self.slots)
        for slot in self.slots:
            slot.set_doors(anybody and not slot.served)
        for door in self._shared_doors:
            door.set_open(anybody)

    def _tick(self) -> None:
        self.loop.call_later(_TICK_S, self._tick)
        passed_s, self._ticked_at = self.loop.now - self._ticked_at, self.loop.now
        for worker in list(self.workers):
            worker.let_pass(passed_s)
            if not worker.well:
                self.pass_again(worker)
        if self._waiting:
            self._pass_waiting()
        self.update_doors()
