"""Programs that nobody has thought of, compared with a model that is too simple to be wrong.

A program is a tree: a block of steps, some of which are blocks with a time-out, shielded or not, or groups of tasks.
All that it does takes a time that is known before. So a model without tasks, which knows of each block only when it
must end, says what is to happen when; and evloop, on a clock that stands still, must do the same at the same moments.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import assume, given
from hypothesis import strategies as st

from coroutines import run
from evloop import TaskGroup, sleep, timeout
from evloop.testing import MemoryLoop

FOREVER = float("inf")


@dataclass(frozen=True)
class Sleep:
    seconds: int


@dataclass(frozen=True)
class Bounded:
    """A block with a time-out, which catches what is raised when that is over."""

    seconds: int
    shield: bool
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Group:
    tasks: tuple[tuple[Step, ...], ...]


Step = Sleep | Bounded | Group

sleeps = st.integers(0, 8).map(lambda power: Sleep(3**power))
steps = st.recursive(
    sleeps,
    lambda inner: st.one_of(
        st.builds(
            Bounded,
            st.integers(0, 12).map(lambda power: 2**power * 10_007),
            st.booleans(),
            st.lists(inner, max_size=3).map(tuple),
        ),
        st.builds(Group, st.lists(st.lists(inner, max_size=3).map(tuple), max_size=3).map(tuple)),
    ),
    max_leaves=12,
)
programs = st.lists(steps, max_size=4).map(tuple)


class Model:
    """What happens when: `trace` gets a line for each step that came to its end, or was cut off."""

    def __init__(self) -> None:
        self.trace: list[tuple[float, str]] = []

    def block(self, steps: tuple[Step, ...], now: float, deadline: float) -> float:
        """Run it from then on, while something around it ends it at ``deadline``. Returns when it has ended.

        Raises:
            CutOff: it was ended before it was done.
        """
        for step in steps:
            now, cut_off = self.step(step, now, deadline)
            if cut_off:
                raise CutOff(now)
        return now

    def step(self, step: Step, now: float, deadline: float) -> tuple[float, bool]:
        if isinstance(step, Sleep):
            if now >= deadline:
                return now, True
            end = now + step.seconds
            assume(end != deadline)  # which of two comes first that come at the same moment is nobody's business
            if end >= deadline:
                return deadline, True
            self.trace.append((end, "slept"))
            return end, False
        if isinstance(step, Bounded):
            own = now + step.seconds
            assume(own != deadline)
            outer = FOREVER if step.shield else deadline
            try:
                end = self.block(step.steps, now, min(own, outer))
            except CutOff as cut:
                if own <= outer:  # by its own time-out, unless what is around it is over, too
                    over = cut.at >= deadline and not step.shield
                    if not over:
                        self.trace.append((cut.at, "timed out"))
                    return cut.at, over
                return cut.at, True
            return end, False
        if now >= deadline:
            return now, True  # a task that is cancelled before it begins never does
        ends = [now]
        for task in step.tasks:
            try:
                ends.append(self.block(task, now, deadline))
            except CutOff as cut:
                ends.append(cut.at)
        end = max(ends)
        return end, end >= deadline


class CutOff(Exception):
    def __init__(self, at: float) -> None:
        self.at = at


class Real:
    """The same by evloop."""

    def __init__(self, loop: MemoryLoop) -> None:
        self.trace: list[tuple[float, str]] = []
        self.loop = loop

    def note(self, what: str) -> None:
        self.trace.append((round(self.loop.clock() - 1000.0, 3), what))

    async def block(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            if isinstance(step, Sleep):
                await sleep(step.seconds)
                self.note("slept")
            elif isinstance(step, Bounded):
                try:
                    async with timeout(step.seconds, shield=step.shield):
                        await self.block(step.steps)
                except TimeoutError:
                    self.note("timed out")
            else:
                async with TaskGroup() as group:
                    for task in step.tasks:
                        group.create_task(self.block(task))


@given(programs, st.integers(0, 14).map(lambda power: 2**power * 1009))
def test_a_program_does_what_the_model_says(program, limit):
    model = Model()
    expected_end = model.step(Bounded(limit, False, program), 0, FOREVER)[0]
    loop = MemoryLoop()
    real = Real(loop)
    run(real.block((Bounded(limit, False, program),)), seconds=10**7, loop=loop)
    assert sorted(real.trace) == sorted((float(at), what) for at, what in model.trace)
    assert max([at for at, _ in real.trace], default=0) <= expected_end
    assert loop.timers == 0
