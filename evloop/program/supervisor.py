"""The supervisor: it holds the sockets, keeps the workers running, and serves nobody.

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

import os
import socket
from collections.abc import Callable, Sequence
from functools import partial

from evloop.core.loop import Loop
from evloop.log import ERROR, INFO, NOTICE, WARNING, Logger
from evloop.program.door import Door
from evloop.program.health import Pulse
from evloop.program.messages import Message
from evloop.program.reload import Reload
from evloop.program.slot import Slot
from evloop.program.slotsockets import Place, close_all
from evloop.program.spawn import Children
from evloop.program.statusround import StatusRound
from evloop.program.workerprocess import WorkerProcess
from evloop.server.countdown import Countdown

_log = Logger("evloop.supervisor")

# How often it looks who is late.
_TICK_S = 0.1

# A drain is the workers' business, and they end it in time. Who has not, so long after, is killed.
_GRACE_AFTER_DRAIN_S = 5.0


class Options:
    """What a supervisor goes by.

    Args:
        backlog: how many connections may wait in a socket's queue.
        drain_timeout_s: how long a worker takes to stop in order, at most.
        boot_timeout_s: how long a worker may take until it serves; 0 for any time.
        stuck_timeout_s: how long a worker may say nothing; 0 for any time.
        handover_timeout_s: how long connections may take until they can be handed over; who can't by then is drained.
        on_listening: called once, when all workers serve, with the addresses.
    """

    def __init__(
        self,
        *,
        backlog: int,
        drain_timeout_s: float,
        boot_timeout_s: float = 60.0,
        stuck_timeout_s: float = 30.0,
        handover_timeout_s: float = 5.0,
        on_listening: Callable[[list[str]], object] = lambda addresses: None,
    ) -> None:
        self.backlog = backlog
        self.drain_timeout_s = drain_timeout_s
        self.boot_timeout_s = boot_timeout_s
        self.stuck_timeout_s = stuck_timeout_s
        self.handover_timeout_s = handover_timeout_s
        self.on_listening = on_listening


class Supervisor:
    """Workers, from the first start to the end of the last one.

    Args:
        places: where the service listens, with a socket for each slot. Owned.
        inherited: as in `evloop.program.role.Role`.

    Attributes:
        slots: where workers serve.
        workers: all that live, those that make way included.
        serving: all workers were ready once.
        stopping: it was told to end.
        failure: why it ended before it served: one line; None if it did not.
        aborted: connections were not ended in order when it stopped.
    """

    def __init__(
        self,
        loop: Loop,
        children: Children,
        places: Sequence[Place],
        workers: int,
        options: Options,
        inherited: dict[int, str] | None = None,
    ) -> None:
        self.loop = loop
        self.places = list(places)
        self.options = options
        self.slots: list[Slot] = []
        self.workers: set[WorkerProcess] = set()
        self.serving = self.stopping = self.aborted = False
        self.failure: str | None = None
        self.reloading: Reload | None = None
        self._reload_again = False
        self._status_round: StatusRound | None = None
        self._children = children
        self._inherited = {} if inherited is None else inherited
        self._turn = 0
        self._ticked_at = loop.now
        self._countdown: Countdown | None = None
        self._shared_doors = [
            self._door(index, place.sockets[0]) for index, place in enumerate(self.places) if place.passed
        ]
        for _ in range(workers):
            self.add_slot()
        loop.call_later(_TICK_S, self._tick)

    def _door(self, place: int, sock: socket.socket) -> Door:
        return Door(self.loop, sock, self.options.backlog, partial(self._accepted, place))

    def _accepted(self, place: int, sock: socket.socket) -> None:
        worker = self.next_worker()
        with sock:
            if worker is not None:
                worker.pass_connection(place, sock.fileno())

    def next_worker(self) -> WorkerProcess | None:
        """Whose turn it is to get a connection: one that is well; if none is, one that lives; None if none does."""
        live = [slot.worker for slot in self.slots if slot.worker is not None]
        able = [worker for worker in live if worker.well] or live
        self._turn += 1
        return able[self._turn % len(able)] if able else None

    # ------------------------------------------------------------------ slots and workers

    def add_slot(self) -> None:
        """One worker more.

        Raises:
            OSError: there can't be more sockets.
        """
        number = len(self.slots)
        for place in self.places:
            place.make_room(number + 1)
        own = [(index, place) for index, place in enumerate(self.places) if not place.passed]
        slot = Slot(number, [self._door(index, place.sockets[number]) for index, place in own])
        self.slots.append(slot)
        self.start(slot)

    def remove_slot(self) -> None:
        """One worker less: the last one makes way for the others."""
        slot = self.slots.pop()
        slot.removed = True
        if slot.restart is not None:
            slot.restart.cancel()
        for door in slot.doors:
            if not slot.served:
                door.accept_all()
            door.set_open(False)
        for place in self.places:
            place.close_slot(slot.number)
        for worker in (slot.worker, slot.heir):
            if worker is not None:
                worker.stop()

    def start_heir(self, slot: Slot) -> None:
        """Start who takes the place of a slot's worker."""
        self.start(slot, as_heir=True)

    def start(self, slot: Slot, as_heir: bool = False) -> None:
        """Start a worker for a slot. If that can't be done, it is tried again later; or the heir has failed."""
        slot.restart = None
        pulse = Pulse(self.options.boot_timeout_s, self.options.stuck_timeout_s)
        try:
            worker = WorkerProcess(
                self.loop,
                self._children,
                slot.number,
                self.places,
                self._inherited,
                pulse,
                self._is_ready,
                self._heard,
                self._ended,
            )
        except OSError as error:
            self._cannot_start(slot, as_heir, error)
            return
        self.workers.add(worker)
        if as_heir:
            slot.heir = worker
        else:
            slot.worker = worker

    def _cannot_start(self, slot: Slot, as_heir: bool, error: OSError) -> None:
        why = f"cannot start worker {slot.number + 1}: {error.strerror or error}"
        if as_heir and self.reloading is not None:
            self.reloading.failed(why)
        elif not self.serving:
            self.fail(why)
        else:
            self._restart(slot, why, 0.0)

    def _restart(self, slot: Slot, why: str, lived_s: float) -> None:
        delay_s = slot.backoff.after(lived_s)
        when = f"in {delay_s:g} s" if delay_s else "at once"
        _log.log(WARNING, "%s; starting another one %s", why, when)
        if delay_s:
            slot.restart = self.loop.call_later(delay_s, self.start, slot)
        else:
            self.start(slot)

    def _is_ready(self, worker: WorkerProcess) -> None:
        slot = self.slots[worker.slot] if worker.slot < len(self.slots) else None
        if slot is not None and worker is slot.heir:
            slot.heir = None
            old, slot.worker = slot.worker, worker
            if self.reloading is not None:
                self.reloading.heir_is_ready(old, worker)
            elif old is not None:
                old.retire(worker, self.options.handover_timeout_s)
        self.update_doors()
        if not self.serving and not self.stopping and all(slot.served for slot in self.slots):
            self.serving = True
            self.options.on_listening([str(place) for place in self.places])
            if self._reload_again:
                self.reload()

    def _heard(self, worker: WorkerProcess, message: Message) -> None:
        if message.kind == "retired" and self.reloading is not None:
            self.reloading.made_way(worker)
        elif message.kind == "moved":
            heir = worker.successor
            if heir is None or heir not in self.workers:
                heir = self.next_worker()
            if heir is not None:
                heir.forward(message)
                return
        elif message.kind == "status" and self._status_round is not None:
            self._status_round.answered(worker, message)
        for descriptor in message.descriptors:
            os.close(descriptor)

    def _ended(self, worker: WorkerProcess, status: int) -> None:
        self.workers.discard(worker)
        slot = self.slots[worker.slot] if worker.slot < len(self.slots) else Slot(worker.slot, [])
        was_heir = worker is slot.heir
        if was_heir:
            slot.heir = None
        elif worker is slot.worker:
            slot.worker = None
        how = worker.how_it_ended(status)
        if self.stopping:
            self.aborted = self.aborted or (status != 0 and worker.pulse.ready)
            self._look_whether_over()
        elif was_heir:
            if self.reloading is not None:
                self.reloading.failed(how)
            if slot.worker is None and slot.restart is None:
                self._restart(slot, how, 0.0)
        elif worker.leaving:
            _log.log(INFO if status == 0 else WARNING, "%s", how)
            if self.reloading is not None:
                self.reloading.made_way(worker)
        elif not self.serving:
            self.fail(how)
        elif slot.heir is None:
            self._restart(slot, how, worker.lived_s)
        else:
            _log.log(WARNING, "%s; its heir is being started", how)
        self.update_doors()

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
        self.update_doors()

    # ------------------------------------------------------------------ its end

    def fail(self, why: str) -> None:
        """It can't serve."""
        if self.failure is None:
            self.failure = why
        self.stop()
        for worker in self.workers:
            worker.kill()

    def stop(self) -> None:
        """End in order; the second time: at once."""
        if self.stopping:
            self._abort()
            return
        if self.serving:
            connections = sum(worker.connections for worker in self.workers)
            _log.log(INFO, "stopping: about %d connections to finish; signal again to abort", connections)
            # Whoever waits where nobody will come any more.
            for door in [door for slot in self.slots if not slot.served for door in slot.doors] + self._shared_doors:
                if self.next_worker() is not None:
                    door.accept_all()
        self.stopping = True
        for slot in self.slots:
            slot.set_doors(False)
            if slot.restart is not None:
                slot.restart.cancel()
        for door in self._shared_doors:
            door.set_open(False)
        # Before the workers close theirs, so that the last to close it is one that has accepted all that waited.
        close_all(self.places)
        for worker in self.workers:
            worker.stop()
        self._countdown = Countdown(self.loop, self.options.drain_timeout_s + _GRACE_AFTER_DRAIN_S, self._kill_all)
        self._look_whether_over()

    def _abort(self) -> None:
        self.aborted = self.aborted or bool(self.workers)
        for worker in self.workers:
            if worker.pulse.ready:
                worker.abort()
            else:
                worker.kill()
        if self._countdown is not None:
            self._countdown.cancel()
        self._countdown = Countdown(self.loop, _GRACE_AFTER_DRAIN_S, self._kill_all)
        self._look_whether_over()

    def _kill_all(self) -> None:
        for worker in self.workers:
            _log.log(ERROR, "%s does not end: killed", worker)
            worker.kill()

    def _look_whether_over(self) -> None:
        if not self.workers:
            self.loop.stop()

    # ------------------------------------------------------------------ orders

    def reload(self) -> None:
        """Replace all workers, one after another."""
        if self.stopping:
            return
        if self.reloading is not None or not self.serving:
            self._reload_again = True
            return
        _log.log(NOTICE, "reloading: %d workers are replaced, one after another", len(self.slots))
        self._reload_again = False
        self.reloading = Reload(self.slots, self.start_heir, self.options.handover_timeout_s, self._reloaded)
        self.reloading.begin()

    def _reloaded(self, failure: str | None) -> None:
        self.reloading = None
        if failure is None:
            _log.log(NOTICE, "reloaded: %d workers", len(self.slots))
        else:
            _log.log(ERROR, "not reloaded: %s; those that serve go on", failure)
        if self._reload_again:
            self.loop.call_soon(self.reload)

    def one_more(self) -> None:
        """A worker more."""
        if self.serving and not self.stopping:
            try:
                self.add_slot()
            except OSError as error:
                _log.log(ERROR, "no worker more: its socket cannot be opened: %s", error.strerror or error)
            else:
                _log.log(NOTICE, "one worker more: %d", len(self.slots))

    def one_less(self) -> None:
        """A worker less, unless it is the last one."""
        if self.serving and not self.stopping and len(self.slots) > 1:
            self.remove_slot()
            _log.log(NOTICE, "one worker less: %d", len(self.slots))

    def report(self) -> None:
        """Log one status for the whole service."""
        if self._status_round is None:
            self._status_round = StatusRound(self.loop, sorted(self.workers, key=lambda one: one.slot), self._reported)

    def _reported(self, text: str) -> None:
        self._status_round = None
        _log.log(NOTICE, "status:\n%s", text)
