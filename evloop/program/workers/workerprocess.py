"""A worker, as its supervisor sees it: a process, the channel to it, and its pulse."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from evloop.core.loop import Loop
from evloop.core.timers import Timer
from evloop.log import WARNING, Logger
from evloop.program.workers.channel import Channel, MessageReader, channel_pair
from evloop.program.workers.health import Pulse
from evloop.program.workers.lifeline import LifeLine
from evloop.program.workers.messages import Message, MessageError
from evloop.program.workers.passing import Passing
from evloop.program.workers.role import WORKER, Role
from evloop.program.workers.slotsockets import Place
from evloop.program.workers.spawn import Child, Children, status_text

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Protocol

    from evloop.server.sharedcounts import CountsMemory

    class Heir(Protocol):
        """Who gets a worker's connections: another worker, or another service."""

        speaks: str
        gone: bool

        def forward(self, message: Message) -> None: ...
        @property
        def behind(self) -> bool: ...


_log = Logger("evloop.supervisor")

# Long before it is called stuck, this is worth a line in the log; and if the supervisor is gone then, so shall it be.
_HELD_UP_S = 1.0

# After SIGABRT, which tells what it hangs in, a stuck worker has so long until SIGKILL.
_LAST_WORDS_S = 1.0


class WorkerProcess:
    """A worker that was started. It is one until ``on_end`` is called.

    Args:
        slot: which one it serves in, counted from 0.
        places: where the service listens; it gets its slot's sockets.
        inherited: as in `Role`.
        pulse: a new one.
        counts: what the workers count together; None if each has limits of its own. It gets a row there while it lives.
        on_ready: called once, when it serves.
        on_message: called with each message that is not for this class; after its end also with the connections that it
            was sent in the middle of their life and has not read.
        on_end: called once when it has ended, after all that it had said, with its exit status as `subprocess` has it.

    Attributes:
        name: for people, who count from 1: ``worker 1``.
        leaving: it was told to end.
        closing: it ends by itself, and accepts no more; it will have to be replaced.
        successor: who gets its connections, when it was told to end.
        gone: it has ended.
        connections: how many it has, as it said last.
        speaks: what its clients see of it, as text; connections can be handed over between those that speak the same.

    Raises:
        OSError: it can't be started.
    """

    def __init__(
        self,
        loop: Loop,
        children: Children,
        slot: int,
        places: Sequence[Place],
        inherited: dict[int, str],
        pulse: Pulse,
        counts: CountsMemory | None,
        on_ready: Callable[[WorkerProcess], object],
        on_message: Callable[[WorkerProcess, Message], object],
        on_end: Callable[[WorkerProcess, int], object],
    ) -> None:
        self.slot = slot
        self.name = f"worker {slot + 1}"
        self.pulse = pulse
        self.leaving = False
        self.closing = False
        self.successor: Heir | None = None
        self.gone = False
        self.connections = 0
        self.speaks = ""
        self._loop = loop
        self._on_ready = on_ready
        self._on_message = on_message
        self._on_end = on_end
        self._ready_at: float | None = None
        self._told_held_up = False
        self._killing: Timer | None = None
        self._counts = counts
        self._row: int | None = None
        with ExitStack() as undo:  # if anything fails, nothing of it is left
            # Its end is kept, so that what the worker was sent and had not read when it died is not lost with it.
            ours, self._its_end = channel_pair()
            undo.callback(ours.close)
            undo.callback(self._its_end.close)
            self._channel = Channel(loop, ours, self._heard, lambda: None)
            undo.callback(self._channel.close)
            self._life = LifeLine()
            undo.callback(self._life.close)
            self._passing = Passing()
            undo.callback(self._passing.close)
            descriptors = [place.socket_of(slot).fileno() for place in places]
            if counts is not None:
                self._row = counts.take_row()
            if counts is not None and self._row is not None:
                undo.callback(counts.give_back, self._row)
                descriptors.append(counts.descriptor)
            descriptors.append(self._passing.worker_end)
            # It waits there until the process reads it.
            self._channel.send(
                "serve",
                descriptors=descriptors,
                slot=slot,
                name=self.name,
                row=self._row,
                places=[{"endpoint": str(place.endpoint), "passed": place.passed} for place in places],
            )
            role = Role(WORKER, self._its_end.fileno(), self._life.worker_end, self.name, inherited)
            kept = [self._its_end.fileno(), self._life.worker_end]
            self._child: Child = children.start(role, kept, self._ended)
            undo.callback(self._child.discard)
            self._life.tie(self._child.pid)
            undo.pop_all()

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"

    @property
    def pid(self) -> int:
        """Its process."""
        return self._child.pid

    @property
    def well(self) -> bool:
        """It can be given new connections."""
        return self.pulse.well and not self.leaving and not self.closing and not self.gone

    @property
    def lived_s(self) -> float:
        """How long it has served: 0 if it never did."""
        return 0.0 if self._ready_at is None else self._loop.clock() - self._ready_at

    def _heard(self, message: Message) -> None:
        self.pulse.heard()
        if self._told_held_up:
            self._told_held_up = False
            self._life.be_hard(False)
        if message.kind == "ready":
            self._ready_at = self._loop.clock()
            self.speaks = message.fields.get("speaks", "")
            self.pulse.became_ready()
            self._on_ready(self)
        elif message.kind == "beat":
            self.connections = message.fields["connections"]
        elif message.kind == "closing":
            self.closing = True
        else:
            self._on_message(self, message)

    # ------------------------------------------------------------------ orders

    def pass_connection(self, place: int, descriptor: int) -> bool:
        """Give it a connection that was accepted from the socket of a place. The descriptor stays the caller's.

        Returns:
            False if it has too many already that it has not taken.
        """
        return self._passing.put(place, descriptor)

    def take_back(self) -> list[tuple[int, socket.socket]]:
        """The connections that it was given and has not taken, and their places: it is held up, or gone."""
        return self._passing.take_back()

    def forward(self, message: Message) -> None:
        """Give it what another one has said, with its descriptors, which are closed here."""
        self._channel.forward(message)

    @property
    def behind(self) -> bool:
        """As `Channel.behind`."""
        return self._channel.behind

    def rest_while_behind(self, heir: Heir) -> None:
        """Hear no more of it until its heir has taken what was said so far."""
        self._channel.rest_while(lambda: heir.behind)

    def ask_status(self, number: int) -> None:
        """It answers by a message ``status`` with this ``id``."""
        self._channel.send("status", id=number)

    def retire(self, successor: Heir, timeout_s: float) -> None:
        """Have it make way: what waits for it in its sockets stays there.

        Args:
            successor: who gets its connections, if it speaks the same as this one.
            timeout_s: how long they may take until they can be handed over.
        """
        self.leaving = True
        self.successor = successor
        how = "handover" if self.speaks and self.speaks == successor.speaks else "drain"
        self._channel.send("retire", how=how, timeout_s=timeout_s)

    def stop(self) -> None:
        """Have it end in order, with all that waits for it."""
        self.leaving = True
        if self.pulse.ready:
            self._channel.send("stop")
        else:
            self._child.signal(signal.SIGTERM)

    def abort(self) -> None:
        """Have it end at once."""
        self.leaving = True
        self._channel.send("abort")

    def kill(self) -> None:
        """End it, whatever it does."""
        self._child.signal(signal.SIGKILL)

    # ------------------------------------------------------------------ its end

    def let_pass(self, seconds: float) -> None:
        """So much time is over: judge whether it still works."""
        if self._channel.rests:  # its beats may be there, unread
            return
        self.pulse.let_pass(seconds)
        if self.pulse.ready and self.pulse.silent_s >= _HELD_UP_S and not self._told_held_up:
            self._told_held_up = True
            self._life.be_hard(True)
            _log.log(WARNING, "%s is held up: nothing heard of it for %.1f s", self, self.pulse.silent_s)
        if self.pulse.given_up and self._killing is None:
            what = "is stuck" if self.pulse.ready else "does not get ready"
            _log.log(WARNING, "%s %s: nothing heard of it for %.1f s; ending it", self, what, self.pulse.silent_s)
            self._child.signal(signal.SIGABRT)
            self._killing = self._loop.call_later(_LAST_WORDS_S, self.kill)

    def _ended(self, status: int) -> None:
        self.gone = True
        self._channel.receive_all()  # what it said last: there may be connections in it
        unread = self._unread()
        self._channel.close()
        self._life.close()
        if self._counts is not None and self._row is not None:
            self._counts.give_back(self._row)
        if self._killing is not None:
            self._killing.cancel()
        self._on_end(self, status)
        self._passing.close()
        for message in unread:
            self._on_message(self, message)

    def _unread(self) -> list[Message]:
        """Connections that it was sent and has not read."""
        found: list[Message] = []
        with self._its_end:
            self._its_end.setblocking(False)
            reader = MessageReader(self._its_end)
            while True:
                try:
                    message = reader.read()
                except BlockingIOError:
                    if self._channel.flush():  # of what the kernel had no room for
                        continue
                    break
                except (OSError, MessageError):  # it had read one in part
                    break
                if message is None:
                    break
                if message.kind == "moved":
                    found.append(message)
                else:
                    for descriptor in message.descriptors:
                        os.close(descriptor)
            reader.close()
        return found

    def how_it_ended(self, status: int) -> str:
        """As a sentence for people."""
        when = "before it was ready" if self._ready_at is None else f"after {self.lived_s:.1f} s"
        return f"{self} {status_text(status)} {when}"
