"""All figures of a comparison, and what is estimated from them."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.comparison.statistics import Estimate, estimate, paired_ratio
from benchmarks.peers.registry import OURS


@dataclass(slots=True)
class Results:
    """All runs of a comparison: figures by scenario, server and round."""

    runs: dict[str, dict[str, dict[int, dict[str, float]]]] = field(default_factory=dict)
    failures: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def add(self, scenario: str, server: str, number: int, figures: dict[str, float]) -> None:
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

    def to_json(self) -> dict[str, object]:
        """For a file; `from_json` reads it."""
        flat = [
            {"scenario": scenario, "server": server, "round": number, **figures}
            for scenario, servers in self.runs.items()
            for server, rounds in servers.items()
            for number, figures in rounds.items()
        ]
        return {"runs": flat, "failures": self.failures}

    @classmethod
    def from_json(cls, data: dict[str, object]) -> Results:
        runs, failures = data["runs"], data["failures"]
        assert isinstance(runs, list)
        assert isinstance(failures, dict)
        results = cls(failures=failures)
        for run in runs:
            figures = dict(run)
            results.add(figures.pop("scenario"), figures.pop("server"), figures.pop("round"), figures)
        return results
