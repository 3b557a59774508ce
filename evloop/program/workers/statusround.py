"""Asking all workers for their status."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evloop.core.loop import Loop
from evloop.program.workers.messages import Message
from evloop.program.workers.statuses import service_status
from evloop.program.workers.workerprocess import WorkerProcess

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.server.stats import Value

# Whoever has not answered by then does not: it is held up.
_TIMEOUT_S = 1.0


class StatusRound:
    """One question to all of them.

    Args:
        on_over: called once with the status of the whole service, as text.
    """

    def __init__(self, loop: Loop, workers: Sequence[WorkerProcess], on_over: Callable[[str], object]) -> None:
        self._answers: dict[WorkerProcess, list[dict[str, Value]] | None] = {
            worker: None for worker in workers if worker.pulse.ready
        }
        self._on_over = on_over
        self._over = False
        self._timer = loop.call_later(_TIMEOUT_S, self._finish)
        for worker in self._answers:
            worker.ask_status(id(self))
        if not self._answers:
            loop.call_soon(self._finish)

    def answered(self, worker: WorkerProcess, message: Message) -> None:
        """One of them has."""
        if message.fields["id"] != id(self) or worker not in self._answers:
            return
        self._answers[worker] = message.fields["servers"]
        if None not in self._answers.values():
            self._finish()

    def _finish(self) -> None:
        if self._over:
            return
        self._over = True
        self._timer.cancel()
        self._on_over(service_status({str(worker): servers for worker, servers in self._answers.items()}))
