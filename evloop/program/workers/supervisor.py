"""The supervisor: it holds the sockets, keeps the workers running, and serves nobody.

How it keeps them running is in `evloop.program.workers.crew`. Here is what it does when something happens to one of
them, and what it is told to do as a whole: reload, upgrade, tell its status, stop.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from evloop.core.loop import Loop
from evloop.limits import Limits
from evloop.log import ERROR, INFO, NOTICE, WARNING, Logger
from evloop.program.workers.crew import Crew
from evloop.program.workers.messages import Message
from evloop.program.workers.reload import Reload
from evloop.program.workers.slot import Slot
from evloop.program.workers.slotsockets import Place, close_all
from evloop.program.workers.spawn import Children
from evloop.program.workers.statusround import StatusRound
from evloop.program.workers.succession import Predecessor, Successor
from evloop.program.workers.workerprocess import WorkerProcess
from evloop.server.countdown import Countdown

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.program.notify import Notifier
    from evloop.server.sharedcounts import CountsMemory

_log = Logger("evloop.supervisor")

# When all workers have ended, it looks so often whether the new service has got all that it was sent.
_LOOK_AGAIN_S = 0.005

# A drain is the workers' business, and they end it in time. Who has not, so long after, is killed.
_GRACE_AFTER_DRAIN_S = 5.0


class Supervisor(Crew):
    """Workers, from the first start to the end of the last one.

    Args:
        places: where the service listens, with a socket for each slot. Owned.
        limits: those of the workers; here some of its times count.
        on_listening: called once, when all workers serve, with the addresses.
        inherited: as in `evloop.program.workers.role.Role`.
        predecessor: the service that this one takes over from.
        counts: as in `WorkerProcess`.
        notifier: tells the service manager, if there is one.

    Attributes:
        failure: why it ended before it served: one line; None if it did not.
        aborted: connections were not ended in order when it stopped.
    """

    def __init__(
        self,
        loop: Loop,
        children: Children,
        places: Sequence[Place],
        workers: int,
        limits: Limits,
        on_listening: Callable[[list[str]], object],
        inherited: dict[int, str] | None = None,
        predecessor: Predecessor | None = None,
        counts: CountsMemory | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        super().__init__(loop, children, places, workers, limits, inherited, counts)
        self._notifier = notifier
        self._on_listening = on_listening
        self.aborted = False
        self.failure: str | None = None
        self._reload: Reload | None = None
        self._reload_again = False
        self._status_round: StatusRound | None = None
        self._countdown: Countdown | None = None
        self._successor: Successor | None = None
        self._told_to_stop = False
        self._is_late = False  # what should be over is not
        self._predecessor = predecessor
        if predecessor is not None:
            predecessor.listen_to(loop, self._heard_predecessor)
        for _ in range(workers):
            if self.stopping:  # one could not be started
                break
            self.add_slot()

    # ------------------------------------------------------------------ what happens to workers

    def _could_not_start(self, slot: Slot, as_heir: bool, why: str) -> None:
        if as_heir and self._reload is not None:
            self._reload.failed(why)
            if slot.worker is None and slot.restart is None:
                self.restart(slot, why, 0.0)
        elif not self.serving:
            self.fail(why)
        else:
            self.restart(slot, why, 0.0)

    def _is_ready(self, worker: WorkerProcess) -> None:
        if self.stopping:  # and it was told to
            return
        slot = self.slots[worker.slot] if worker.slot < len(self.slots) else None
        if slot is not None and worker is slot.heir:
            slot.heir = None
            old, slot.worker = slot.worker, worker
            if self._reload is not None:
                self._reload.heir_is_ready(old, worker)
            elif old is not None:
                old.retire(worker, self.limits.handover_timeout_s)
        self.update_doors()
        if not self.serving and all(slot.ready for slot in self.slots):
            self.serving = True
            if self._predecessor is not None:
                for place in self.places:
                    place.take_path(True)
                self._predecessor.say_ready(worker.speaks)
            self._on_listening([str(place) for place in self.places])
            if self._notifier is not None:
                self._notifier.begin(self._line, self._somebody_serves)
            if self._reload_again:
                self.reload()

    def _heard(self, worker: WorkerProcess, message: Message) -> None:
        if message.kind == "retired":
            self.accepts_no_more(worker)
            if self._reload is not None:
                self._reload.made_way(worker)
        elif message.kind == "moved":
            heir = worker.successor
            if heir is None or heir.gone:
                heir = self.next_worker()
            if heir is not None:
                heir.forward(message)
                worker.rest_while_behind(heir)
                return
        elif message.kind == "status" and self._status_round is not None:
            self._status_round.answered(worker, message)
        for descriptor in message.descriptors:
            os.close(descriptor)

    def _heard_predecessor(self, message: Message) -> None:
        worker = self.next_worker()
        if message.kind == "moved" and worker is not None:
            worker.forward(message)
            if self._predecessor is not None:
                self._predecessor.rest_while_behind(worker)
        for descriptor in message.descriptors:
            os.close(descriptor)

    def _ended(self, worker: WorkerProcess, status: int) -> None:
        self.workers.discard(worker)
        self.pass_again(worker)
        slot = self.slots[worker.slot] if worker.slot < len(self.slots) else Slot(worker.slot, [])
        was_heir = worker is slot.heir
        if was_heir:
            slot.heir = None
        elif worker is slot.worker:
            slot.worker = None
        how = worker.how_it_ended(status)
        self.accepts_no_more(worker)
        if self.stopping:
            self.aborted = self.aborted or (status != 0 and worker.pulse.ready)
            self._look_whether_over()
        elif was_heir:
            if self._reload is not None:
                self._reload.failed(how)
            if slot.worker is None and slot.restart is None:
                self.restart(slot, how, 0.0)
        elif worker.leaving:
            _log.log(INFO if status == 0 else WARNING, "%s", how)
            if self._reload is not None:
                self._reload.made_way(worker)
        elif not self.serving:
            self.fail(how)
        elif slot.heir is None:
            self.restart(slot, how, worker.lived_s)
        else:
            _log.log(WARNING, "%s; its heir is being started", how)
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
        if self._told_to_stop:
            self._abort()
            return
        self._told_to_stop = True
        if self.serving:
            connections = sum(worker.connections for worker in self.workers)
            _log.log(INFO, "stopping: about %d connections to finish; signal again to abort", connections)
        if self.stopping:  # it makes way for a new service
            for worker in self.workers:
                worker.stop()
            return
        if self._successor is not None:
            self._successor.cancel()
        if self.serving:
            # Whoever waits where nobody will come any more.
            for door in [door for slot in self.slots if not slot.served for door in slot.doors] + self._shared_doors:
                door.accept_all()
            self._give_away_waiting()
        self._begin_to_stop()
        if self._notifier is not None:
            self._notifier.stopping(self.limits.drain_timeout_s + 2 * _GRACE_AFTER_DRAIN_S, self._line())
        # Before the workers close theirs, so that the last to close it is one that has accepted all that waited.
        close_all(self.places)
        for worker in self.workers:
            worker.stop()
        self._countdown = Countdown(self.loop, self.limits.drain_timeout_s + _GRACE_AFTER_DRAIN_S, self._kill_all)
        self._look_whether_over()

    def _give_away_waiting(self) -> None:
        """To whoever lives: they are served by it, or by nobody."""
        for place, sock in self._waiting:
            worker = self.next_worker()
            with sock:
                if worker is not None:
                    worker.pass_connection(place, sock.fileno())
        self._waiting.clear()

    def _begin_to_stop(self) -> None:
        self.stopping = True
        self._reload = None
        for slot in self.slots:
            slot.set_doors(False)
            if slot.restart is not None:
                slot.restart.cancel()
        for door in [*self._shared_doors, *(door for doors in self._doors_left.values() for door in doors)]:
            door.set_open(False)
        self._doors_left.clear()

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
        self._is_late = True
        for worker in self.workers:
            _log.log(ERROR, "%s does not end: killed", worker)
            worker.kill()

    def _look_whether_over(self) -> None:
        if self.workers:
            return
        for _, sock in self._waiting:
            sock.close()
        self._waiting.clear()
        if self._successor is not None and not self._successor.gone:
            if self._successor.is_full() and not self._is_late:  # of connections that were handed over
                self.loop.call_later(_LOOK_AGAIN_S, self._look_whether_over)
                return
            self._successor.let_go()
        self.loop.stop()

    # ------------------------------------------------------------------ orders

    def reload(self) -> None:
        """Replace all workers, one after another."""
        if self.stopping:
            return
        if self._reload is not None or not self.serving:
            self._reload_again = True
            return
        _log.log(NOTICE, "reloading: %d workers are replaced, one after another", len(self.slots))
        self._reload_again = False
        if self._notifier is not None:
            self._notifier.reloading()
        self._reload = Reload(self.slots, self.start_heir, self.limits.handover_timeout_s, self._reloaded)
        self._reload.begin()

    def _reloaded(self, failure: str | None) -> None:
        assert self._reload is not None
        replaced, self._reload = self._reload.replaced, None
        if failure is None:
            _log.log(NOTICE, "reloaded: %d workers", len(self.slots))
        else:
            failure = f"{failure}; {replaced} of {len(self.slots)} workers were replaced"
            _log.log(ERROR, "not reloaded: %s; those that serve go on", failure)
        if self._notifier is not None:
            self._notifier.ready(self._line() if failure is None else f"not reloaded: {failure}")
        if self._reload_again:
            self.loop.call_soon(self.reload)

    def upgrade(self) -> None:
        """Have a new service, from the program that is on disk now, take over."""
        if self.stopping or self._successor is not None or not self.serving:
            return
        _log.log(NOTICE, "upgrading: starting the new service")
        try:
            self._successor = Successor(
                self.loop,
                self._children,
                self.places,
                self._inherited,
                self.limits.worker_boot_timeout_s,
                self._succeeded,
                self._not_upgraded,
                None if self._notifier is None else self._notifier.environment(),
            )
        except OSError as error:
            self._not_upgraded(f"it cannot be started: {error.strerror or error}")

    def _not_upgraded(self, why: str) -> None:
        self._successor = None
        _log.log(ERROR, "not upgraded: %s; this one goes on", why)

    def _succeeded(self) -> None:
        """The new one serves: this one's workers make way."""
        successor = self._successor
        assert successor is not None
        _log.log(NOTICE, "upgraded: the new service has pid %d; this one makes way", successor.pid)
        if self._notifier is not None:
            self._notifier.main_pid(successor.pid)
        self._give_away_waiting()
        self._begin_to_stop()
        for place in self.places:
            place.take_path(False)
        close_all(self.places)
        for worker in self.workers:
            if worker.pulse.ready:
                worker.retire(successor, self.limits.handover_timeout_s)
            else:
                worker.stop()
        limits = self.limits
        in_all_s = limits.handover_timeout_s + limits.drain_timeout_s + _GRACE_AFTER_DRAIN_S
        self._countdown = Countdown(self.loop, in_all_s, self._kill_all)
        self._look_whether_over()

    def _busy_with(self) -> str:
        if self._reload is not None:
            return "a reload"
        return "" if self._successor is None else "an upgrade"

    def _somebody_serves(self) -> bool:
        return any(slot.served for slot in self.slots)

    def _line(self) -> str:
        """The service in one line."""
        served = sum(slot.served for slot in self.slots)
        connections = sum(worker.connections for worker in self.workers)
        state = "stopping" if self.stopping else f"{served} of {len(self.slots)} workers serve"
        return f"{state}, {connections} connections now"

    def report(self) -> None:
        """Log one status for the whole service."""
        if self._status_round is None:
            self._status_round = StatusRound(self.loop, sorted(self.workers, key=lambda one: one.slot), self._reported)

    def _reported(self, text: str) -> None:
        self._status_round = None
        _log.log(NOTICE, "status:\n%s", text)
