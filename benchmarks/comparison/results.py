"""All figures of a comparison, and what is estimated from them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from benchmarks.comparison.statistics import Estimate, estimate, paired_ratio
from benchmarks.peers.registry import OURS

Figures = dict[str, float]


@dataclass(slots=True)
class Results:
    """All runs of a comparison.

    Attributes:
        runs: figures by scenario, server and round.
        failures: why a run gave none, by scenario and server.
        repeated: how many rounds of a scenario were done again, as the machine changed its speed in them.
        unsteady: the rounds of a scenario that are kept although it did so each time.
        finished: the comparison got to its end.
    """

    runs: dict[str, dict[str, dict[int, Figures]]] = field(default_factory=dict)
    failures: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    repeated: Counter[str] = field(default_factory=Counter)
    unsteady: dict[str, list[int]] = field(default_factory=dict)
    finished: bool = True

    def add(self, scenario: str, server: str, number: int, figures: Figures) -> None:
        self.runs.setdefault(scenario, {}).setdefault(server, {})[number] = figures

    def fail(self, scenario: str, server: str, reason: str) -> None:
        self.failures.setdefault(scenario, {}).setdefault(server, []).append(reason)

    def by_round(self, scenario: str, server: str, figure: str) -> dict[int, float]:
        """One figure of one server, by the round's number."""
        rounds = self.runs.get(scenario, {}).get(server, {})
        return {number: figures[figure] for number, figures in rounds.items() if figure in figures}

    def estimate(self, scenario: str, server: str, figure: str) -> Estimate | None:
        """Over rounds; None if there is no run."""
        values = list(self.by_round(scenario, server, figure).values())
        return estimate(values) if values else None

    def ratio(self, scenario: str, server: str, figure: str, ours: str = OURS) -> Estimate | None:
        """How many times ours this server's figure is."""
        return paired_ratio(self.by_round(scenario, server, figure), self.by_round(scenario, ours, figure))

    def growth(self, scenario: str, base: str, server: str, figure: str) -> Estimate | None:
        """How many times its own figure in ``base`` a server's figure is."""
        return paired_ratio(self.by_round(scenario, server, figure), self.by_round(base, server, figure))

    def to_json(self) -> dict[str, Any]:
        """For a file; `from_json` reads it."""
        flat = [
            {"scenario": scenario, "server": server, "round": number, **figures}
            for scenario, servers in self.runs.items()
            for server, rounds in servers.items()
            for number, figures in rounds.items()
        ]
        return {
            "finished": self.finished,
            "runs": flat,
            "failures": self.failures,
            "repeated": dict(self.repeated),
            "unsteady": self.unsteady,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Results:
        """What `to_json` made; older files don't have all of it.

        Raises:
            KeyError, TypeError, ValueError: it was not made by that.
        """
        results = cls(finished=bool(data.get("finished", True)))
        for run in data["runs"]:
            figures = dict(run)
            place = str(figures.pop("scenario")), str(figures.pop("server")), int(figures.pop("round"))
            results.add(*place, {str(name): float(value) for name, value in figures.items()})
        for scenario, servers in data["failures"].items():
            for server, reasons in servers.items():
                results.failures.setdefault(scenario, {})[server] = [str(reason) for reason in reasons]
        results.repeated.update({str(name): int(count) for name, count in data.get("repeated", {}).items()})
        for scenario, rounds in data.get("unsteady", {}).items():
            results.unsteady[scenario] = [int(number) for number in rounds]
        return results
