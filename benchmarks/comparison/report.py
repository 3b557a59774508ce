"""Tables: one for each scenario, every server a line, in text and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from benchmarks.comparison.scenarios import Scenario
from benchmarks.comparison.statistics import Estimate, estimate, paired_ratio
from benchmarks.peers.registry import KINDS, OURS, PEERS

# A closed loop in which the server was busy less than this says nothing about its throughput.
_SATURATED = 0.9


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


@dataclass(frozen=True, slots=True)
class _Column:
    head: str
    figure: str
    text: Callable[[float], str]


def _significant(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{value * 100:.0f} %"


_LOAD_COLUMNS = (
    _Column("CPU us/msg", "cpu_us", _significant),
    _Column("kernel", "kernel_share", _percent),
    _Column("messages/s", "per_s", _significant),
    _Column("p50 us", "p50_us", _significant),
    _Column("p99 us", "p99_us", _significant),
    _Column("p99.9 us", "p999_us", _significant),
)
_CHURN_COLUMNS = (
    _Column("CPU us/conn", "cpu_us", _significant),
    _Column("kernel", "kernel_share", _percent),
    _Column("connections/s", "per_s", _significant),
    _Column("p99 us", "p99_us", _significant),
)
_MEMORY_COLUMNS = (_Column("bytes/connection", "bytes", _significant),)
_COMMAND_COLUMNS = (
    _Column("CPU ms", "cpu_ms", _significant),
    _Column("wall ms", "wall_ms", _significant),
    _Column("peak memory growth KiB", "growth_kib", _significant),
)

_COLUMNS = {"churn": _CHURN_COLUMNS, "memory": _MEMORY_COLUMNS, "command": _COMMAND_COLUMNS}


def _kind(name: str) -> str:
    peer = PEERS.get(name)
    return peer.kind if peer else ""


def _why_not_busy(results: Results, scenario: str, server: str) -> str:
    busy = results.estimate(scenario, server, "server_busy")
    polling = results.estimate(scenario, server, "generator_busy")
    assert busy is not None
    text = f"busy {_percent(busy.value)} of the time only, so its rate is not its limit"
    if polling is not None and polling.value < _SATURATED:  # it polls without a pause
        return (
            f"{text}: something else was using the machine (the generator got {_percent(polling.value)} of its core)."
        )
    return f"{text}: it waited for the generator."


def rows(results: Results, scenario: Scenario) -> tuple[list[str], list[list[str]], list[str]]:
    """Heads, lines and notes of a scenario's table; the cheapest server first."""
    servers = list(results.runs.get(scenario.name, {}))
    columns = [
        column
        for column in _COLUMNS.get(scenario.mode, _LOAD_COLUMNS)
        if any(results.by_round(scenario.name, server, column.figure) for server in servers)
    ]
    reference = scenario.reference
    heads = ["server", "kind", *(column.head for column in columns), f"x {reference}", "95 % interval"]
    lines: list[tuple[float, list[str]]] = []
    notes = []
    for server in servers:
        cells = [server, _kind(server)]
        for column in columns:
            found = results.estimate(scenario.name, server, column.figure)
            cells.append("" if found is None else column.text(found.value))
        busy = results.estimate(scenario.name, server, "server_busy")
        if scenario.mode in ("closed", "churn") and busy is not None and busy.value < _SATURATED:
            cells[0] += " *"
            notes.append(f"* {server}: {_why_not_busy(results, scenario.name, server)}")
        ratio = results.ratio(scenario.name, server, scenario.metric, reference)
        if ratio is None:
            cells += ["", ""]
        else:
            cells += [f"{ratio.value:.2f}", f"{ratio.low:.2f} - {ratio.high:.2f}" if server != reference else ""]
        main = results.estimate(scenario.name, server, scenario.metric)
        lines.append((main.value if main else float("inf"), cells))
    for server, reasons in results.failures.get(scenario.name, {}).items():
        notes.append(f"{server} failed in {len(reasons)} rounds: {reasons[0]}")
    return heads, [cells for _, cells in sorted(lines, key=lambda line: line[0])], notes


def as_text(results: Results, scenario: Scenario) -> str:
    """The table for a terminal."""
    heads, lines, notes = rows(results, scenario)
    widths = [max(len(line[i]) for line in (heads, *lines)) for i in range(len(heads))]

    def aligned(line: list[str]) -> str:
        cells = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        return "  ".join(cells).rstrip()

    head = f"{scenario.name}: {scenario.title}"
    return "\n".join([head, "-" * len(head), aligned(heads), *map(aligned, lines), *notes, ""])


def as_markdown(results: Results, scenario: Scenario) -> str:
    """The table for a document; our line in bold."""
    heads, lines, notes = rows(results, scenario)
    out = [f"### {scenario.title[0].upper()}{scenario.title[1:]}", "", f"`{scenario.name}`", ""]
    out.append("| " + " | ".join(heads) + " |")
    out.append("|---|---|" + "---:|" * (len(heads) - 2))
    for line in lines:
        cells = [f"**{cell}**" if cell and _kind(line[0]) == "ours" else cell for cell in line]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join([*out, "", *(f"{note}\n" for note in notes)])


def legend(kinds: Iterable[str]) -> list[str]:
    """What each kind that occurs means."""
    found = set(kinds)
    return [f"{kind}: {meaning}" for kind, meaning in KINDS.items() if kind in found]
