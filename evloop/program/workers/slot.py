"""A slot: where one worker serves, until it ends and another one takes its place."""

from __future__ import annotations

from evloop.core.timers import Timer
from evloop.program.workers.door import Door
from evloop.program.workers.health import Backoff
from evloop.program.workers.workerprocess import WorkerProcess


class Slot:
    """Where one worker serves.

    Attributes:
        number: counted from 0.
        worker: who serves there, or is being started; None if there is nobody now.
        heir: who is being started to take its place.
        doors: at its own sockets.
        restart: what starts another one soon.
        removed: there is no such slot any more.
    """

    def __init__(self, number: int, doors: list[Door]) -> None:
        self.number = number
        self.worker: WorkerProcess | None = None
        self.heir: WorkerProcess | None = None
        self.doors = doors
        self.restart: Timer | None = None
        self.removed = False
        self.backoff = Backoff()

    @property
    def served(self) -> bool:
        """Somebody who is well accepts from its sockets."""
        return self.worker is not None and self.worker.well

    @property
    def ready(self) -> bool:
        """Somebody has begun to serve there, and lives, even if he is held up just now."""
        return self.worker is not None and self.worker.pulse.ready

    def set_doors(self, wanted: bool) -> None:
        """Stand in at its sockets, or not."""
        for door in self.doors:
            door.set_open(wanted)
