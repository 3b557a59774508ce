"""A reload: all workers are replaced, one slot after another, and nobody notices.

The heir is started first. Its start is what checks whether the new program, its settings and certificates are any good:
if it does not get ready, nothing more happens, and if it was the first one, nothing has. When it serves, the old one
makes way, and the next slot has its turn as soon as all that can be handed over was; what drains, drains meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from evloop.program.workers.slot import Slot
from evloop.program.workers.workerprocess import WorkerProcess


class Reload:
    """One reload, while it goes on.

    Args:
        slots: those to be renewed.
        start_heir: starts the heir of a slot.
        handover_timeout_s: how long connections may take until they can be handed over.
        on_over: called once at the end, with the reason if it was given up.

    Attributes:
        replaced: in how many slots a new worker serves.
    """

    def __init__(
        self,
        slots: Iterable[Slot],
        start_heir: Callable[[Slot], object],
        handover_timeout_s: float,
        on_over: Callable[[str | None], object],
    ) -> None:
        self.replaced = 0
        self._slots = list(slots)
        self._start_heir = start_heir
        self._handover_timeout_s = handover_timeout_s
        self._on_over = on_over
        self._waiting_for: WorkerProcess | None = None
        self._over = False

    def begin(self) -> None:
        """Start with the first one."""
        self._next()

    def _next(self) -> None:
        self._waiting_for = None
        while self._slots:
            slot = self._slots.pop(0)
            if not slot.removed:
                if slot.restart is not None:  # it has crashed: who is started now is new already
                    slot.restart.cancel()
                    slot.restart = None
                self._start_heir(slot)
                return
        self._finish(None)

    def _finish(self, failure: str | None) -> None:
        if not self._over:
            self._over = True
            self._on_over(failure)

    def heir_is_ready(self, old: WorkerProcess | None, heir: WorkerProcess) -> None:
        """A slot has a new worker."""
        self.replaced += 1
        if old is None:
            self._next()
        else:
            self._waiting_for = old
            old.retire(heir, self._handover_timeout_s)

    def made_way(self, worker: WorkerProcess) -> None:
        """A worker that was to leave has handed over what it could, or is gone."""
        if worker is self._waiting_for:
            self._next()

    def failed(self, why: str) -> None:
        """An heir could not be started."""
        self._finish(why)
