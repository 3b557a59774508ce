"""Several threads that take their steps in an order that the test chooses: every order there is, or some at random."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

from waiting import DEADLINE_S

_turn = threading.local()


def step() -> None:
    """Where a thread waits for its next turn. Nothing happens in a thread that is not an actor's."""
    actor = getattr(_turn, "actor", None)
    if actor is not None:
        actor.wait_for_turn()


class SteppedCells:
    """Numbers in shared memory. A step is each write, and each number read of a column: it may be another one's. One
    that is read by itself is one's own, which nobody else changes."""

    def __init__(self, count: int) -> None:
        self.values = [0] * count

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self._read(range(*index.indices(len(self.values))))
        return self.values[index]

    def _read(self, indices: range) -> Iterator[int]:
        for index in indices:
            step()
            yield self.values[index]

    def __setitem__(self, index: int, value: int) -> None:
        step()
        self.values[index] = value


class _Actor:
    """A thread that runs only when it is given a turn, up to its next step."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._work = work
        self.error: BaseException | None = None
        self.finished = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        _turn.actor = self
        assert self._go.acquire(timeout=DEADLINE_S)
        try:
            self._work()
        except BaseException as error:
            self.error = error
        self.finished = True
        self._done.release()

    def wait_for_turn(self) -> None:
        self._done.release()
        assert self._go.acquire(timeout=DEADLINE_S)

    def take_turn(self) -> None:
        self._go.release()
        assert self._done.acquire(timeout=DEADLINE_S)


def _run_once(work: list[Callable[[], object]], choose: Callable[[int], int]) -> None:
    """``choose`` is asked again and again which of so many threads has the next turn."""
    live = [_Actor(each) for each in work]
    while live:
        actor = live[choose(len(live))]
        actor.take_turn()
        if actor.finished:
            live.remove(actor)
        if actor.error is not None:
            raise actor.error


def every_order(set_up: Callable[[], list[Callable[[], object]]]) -> Iterator[None]:
    """Run the functions that ``set_up`` makes in every order of their steps there is; one order for each iteration."""
    path: list[tuple[int, int]] = []  # what was chosen, of how many
    while True:
        depth = 0

        def choose(count: int) -> int:
            nonlocal depth
            if depth == len(path):
                path.append((0, count))
            assert path[depth][1] == count, "what is run does not do the same each time"
            depth += 1
            return path[depth - 1][0]

        _run_once(set_up(), choose)
        yield
        while path and path[-1][0] + 1 == path[-1][1]:
            path.pop()
        if not path:
            return
        path[-1] = (path[-1][0] + 1, path[-1][1])


def some_orders(set_up: Callable[[], list[Callable[[], object]]], count: int, seed: int = 1) -> Iterator[None]:
    """As `every_order`, but so many orders at random."""
    dice = random.Random(seed)
    for _ in range(count):
        _run_once(set_up(), dice.randrange)
        yield
