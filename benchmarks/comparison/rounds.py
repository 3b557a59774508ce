"""Runs scenarios against servers, round after round: A B C A B C ..., and each round with the machine at one speed."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.comparison.calibration import STEADY_WITHIN, spread
from benchmarks.comparison.commands import COMMANDS
from benchmarks.comparison.results import Figures, Results
from benchmarks.comparison.runner import RunError, Runner
from benchmarks.comparison.scenarios import SCENARIOS, Scenario
from benchmarks.peers.registry import OURS, PEERS, Peer
from evloop_bench.common import native

_CAPACITY_OF = "asyncio-protocol"
# How often a round is done at most.
_ATTEMPTS = 3
# What can go wrong with one run, and must cost no other one its figures.
_RUN_FAILURES = (RunError, native.BuildError, OSError, subprocess.SubprocessError)


def participants(scenario: Scenario, chosen: Sequence[str] | None) -> list[Peer]:
    """Who runs in a scenario: those asked for, else the scenario's own choice, as far as they can run here."""
    everybody = [peer.name for peer in PEERS.values() if not peer.only_in or scenario.name in peer.only_in]
    names = chosen or scenario.servers or everybody
    return [
        PEERS[name]
        for name in names
        if PEERS[name].missing() is None and (PEERS[name].over_tls is not None or not scenario.tls)
    ]


@dataclass
class _Attempt:
    """A round of a scenario, done once.

    Attributes:
        figures, failures: of each server.
        calibrations_us: timed before each run, and after the last.
    """

    figures: dict[str, Figures] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    calibrations_us: list[float] = field(default_factory=list)

    @property
    def spread(self) -> float:
        return spread(self.calibrations_us)


class Comparison:
    """Runs scenarios, family by family.

    Args:
        results: where figures are added, as soon as they are there.
        runner: runs one scenario against one server.
        contestants: who runs in a scenario.
        rounds: how many.
        calibrate: times a fixed amount of work.
        progress: told what is being done.
    """

    def __init__(
        self,
        results: Results,
        runner: Runner,
        contestants: Callable[[Scenario], Sequence[Peer]],
        rounds: int,
        calibrate: Callable[[], float],
        progress: Callable[[str], None],
    ) -> None:
        self._results = results
        self._runner = runner
        self._contestants = contestants
        self._rounds = rounds
        self._calibrate = calibrate
        self._progress = progress

    def run(self, scenarios: Sequence[Scenario]) -> Iterator[list[Scenario]]:
        """Run them all. Yields after each round of a scenario, and the scenarios of a family when all of them are done.

        Every scenario of a family takes its turn within each round, so that they can be compared with each other too.
        """
        for _, group in itertools.groupby(scenarios, key=lambda scenario: scenario.family or scenario.name):
            family = list(group)
            rates = {scenario.name: self._rate(scenario) for scenario in family}
            for number in range(self._rounds):
                for scenario in family:
                    rate = rates[scenario.name]
                    if rate is not None and (scenario.max_rounds is None or number < scenario.max_rounds):
                        self._round(scenario, number, rate)
                        yield []
            self._progress("")
            yield family

    def _round(self, scenario: Scenario, number: int, rate: float) -> None:
        """One round; done again if the machine changed its speed in it, unless too many have been already.

        A scenario gets as many repetitions as it has rounds, so that it takes twice its time at worst.
        """
        results = self._results
        best = self._attempt(scenario, number, rate)
        for _ in range(_ATTEMPTS - 1):
            if best.spread <= STEADY_WITHIN or results.repeated[scenario.name] >= self._rounds:
                break
            results.repeated[scenario.name] += 1
            again = self._attempt(scenario, number, rate)
            best = min(best, again, key=lambda attempt: attempt.spread)
        for server, figures in best.figures.items():
            results.add(scenario.name, server, number, figures)
        for server, reason in best.failures.items():
            results.fail(scenario.name, server, reason)
        if best.spread > STEADY_WITHIN:
            results.unsteady.setdefault(scenario.name, []).append(number)

    def _attempt(self, scenario: Scenario, number: int, rate: float) -> _Attempt:
        attempt = _Attempt()
        name = f"{scenario.name} round {number + 1}"
        if scenario.mode == "command":
            self._progress(name)
            attempt.calibrations_us.append(self._calibrate())
            try:
                attempt.figures = COMMANDS[scenario.name](self._runner.directory)
            except _RUN_FAILURES as error:
                attempt.failures[OURS] = str(error)
        else:
            for peer in self._contestants(scenario):
                self._progress(f"{name} {peer.name}")
                attempt.calibrations_us.append(self._calibrate())
                try:
                    figures = self._runner.run(scenario, peer, number + 1, rate)
                    attempt.figures[peer.name] = {**figures, "calibration_us": attempt.calibrations_us[-1]}
                except _RUN_FAILURES as error:
                    attempt.failures[peer.name] = str(error)
        attempt.calibrations_us.append(self._calibrate())
        return attempt

    def _rate(self, scenario: Scenario) -> float | None:
        """For open loop: half of what the yardstick answers in a second at most. None: that could not be told."""
        if scenario.mode != "open":
            return 0.0
        yardstick = SCENARIOS["inflight-1"]
        self._progress(f"{scenario.name}: what {_CAPACITY_OF} can do")
        try:
            return 0.5 * max(self._runner.run(yardstick, PEERS[_CAPACITY_OF], seed)["per_s"] for seed in (1, 2))
        except _RUN_FAILURES as error:
            self._results.fail(scenario.name, _CAPACITY_OF, f"no rate, as its capacity is unknown: {error}")
            return None
