"""Tables: one for each scenario, every server a line, in text and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison.results import Results
from benchmarks.comparison.scenarios import GROWTHS, Growth, Scenario
from benchmarks.comparison.statistics import paired_ratio
from benchmarks.peers.registry import KINDS, kind_of

INTERRUPTED = "Interrupted: not all rounds are there, and not all scenarios may be."

# A closed loop in which the server was busy less than this says nothing about its throughput.
_SATURATED = 0.9


@dataclass(frozen=True, slots=True)
class _Column:
    head: str
    figure: str
    text: Callable[[float], str]


def _significant(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


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
    _Column("messages", "messages", _count),
    _Column("lost", "lost", _count),
    _Column("connections ended", "ended", _count),
    _Column("refused", "refused", _count),
    _Column("processes in the end", "processes", _count),
    _Column("slowest ms", "slowest_ms", _significant),
)

_COLUMNS = {"churn": _CHURN_COLUMNS, "memory": _MEMORY_COLUMNS, "command": _COMMAND_COLUMNS}


def document(results: Results, scenarios: Iterable[Scenario], machine: str, plots: Iterable[str]) -> str:
    """Everything in one Markdown page. ``plots`` are file names beside it."""
    scenarios = list(scenarios)
    servers = {server for scenario in scenarios for server in results.runs.get(scenario.name, {})}
    parts = [
        "# Servers compared",
        f"Machine: {machine}",
        "" if results.finished else f"**{INTERRUPTED}**",
        "CPU is user and system time of the server's process, from the kernel's account of it. Figures are medians "
        "over rounds; the last two columns are ratios taken within each round, and how sure they are.",
        "\n".join(f"- *{kind}*: {meaning}" for kind, meaning in _meanings(servers)),
        *(f"![{Path(name).stem}]({name})" for name in plots),
        *(as_markdown(results, scenario) for scenario in scenarios if scenario.name in results.runs),
        growth_as_markdown(results),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _unsaturated(results: Results, scenario: Scenario) -> dict[str, float]:
    """Servers that were not busy all the time, with how much of it they were."""
    if scenario.mode not in ("closed", "churn"):
        return {}
    busy = {
        server: results.estimate(scenario.name, server, "server_busy") for server in results.runs.get(scenario.name, {})
    }
    return {server: found.value for server, found in busy.items() if found is not None and found.value < _SATURATED}


def _notes(results: Results, scenario: Scenario) -> list[str]:
    """What a reader of the table must know."""
    notes = []
    unsaturated = _unsaturated(results, scenario)
    if unsaturated:
        shares = ", ".join(f"{server} {_percent(share)}" for server, share in unsaturated.items())
        notes.append(f"† not busy all the time, so its rate is not its limit: {shares}.")
    # The generator polls without a pause: what it did not get of its core, something else got.
    polling = [
        share.value
        for server in results.runs.get(scenario.name, {})
        if (share := results.estimate(scenario.name, server, "generator_busy")) is not None
    ]
    if polling and min(polling) < _SATURATED:
        notes.append(
            f"Something else was using the machine (the generator got only {_percent(min(polling))} of its core at "
            "worst): don't trust rates and latencies."
        )
    unsteady = results.unsteady.get(scenario.name, [])
    if unsteady:
        rounds = max((len(numbers) for numbers in results.runs.get(scenario.name, {}).values()), default=0)
        notes.append(
            f"The machine changed its speed in {len(unsteady)} of {rounds} rounds, and again when they were repeated: "
            "don't trust their ratios."
        )
    if results.repeated[scenario.name]:
        notes.append(f"Rounds repeated, as the machine changed its speed in them: {results.repeated[scenario.name]}.")
    for server, reasons in results.failures.get(scenario.name, {}).items():
        notes.append(f"{server} failed in {len(reasons)} round{'s' if len(reasons) > 1 else ''}: {reasons[0]}")
    return notes


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
    unsaturated = _unsaturated(results, scenario)
    for server in servers:
        cells = [f"{server} †" if server in unsaturated else server, kind_of(server)]
        for column in columns:
            found = results.estimate(scenario.name, server, column.figure)
            cells.append("" if found is None else column.text(found.value))
        ratio = results.ratio(scenario.name, server, scenario.metric, reference)
        if ratio is None:
            cells += ["", ""]
        else:
            cells += [f"{ratio.value:.2f}", f"{ratio.low:.2f} - {ratio.high:.2f}" if server != reference else ""]
        main = results.estimate(scenario.name, server, scenario.metric)
        lines.append((main.value if main else float("inf"), cells))
    return heads, [cells for _, cells in sorted(lines, key=lambda line: line[0])], _notes(results, scenario)


def as_text(results: Results, scenario: Scenario) -> str:
    """The table for a terminal."""
    heads, lines, notes = rows(results, scenario)
    head = f"{scenario.name}: {scenario.title}"
    return "\n".join([head, "-" * len(head), *_aligned(heads, lines, left=2), *notes, ""])


def _aligned(heads: list[str], lines: list[list[str]], left: int) -> list[str]:
    """Lines of equal width; the first ``left`` columns are words, the others are numbers."""
    table = [heads, *lines]
    widths = [max(len(line[i]) for line in table) for i in range(len(heads))]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]


def _markdown_table(heads: list[str], lines: list[list[str]], left: int) -> list[str]:
    """As `_aligned`; our lines in bold."""
    out = ["| " + " | ".join(heads) + " |", "|" + "---|" * left + "---:|" * (len(heads) - left)]
    for line in lines:
        ours = line[1] == "ours"
        out.append("| " + " | ".join(f"**{cell}**" if cell and ours else cell for cell in line) + " |")
    return out


def as_markdown(results: Results, scenario: Scenario) -> str:
    """The table for a document; our line in bold."""
    heads, lines, notes = rows(results, scenario)
    title = f"### {scenario.title[0].upper()}{scenario.title[1:]}"
    table = _markdown_table(heads, lines, left=2)
    return "\n".join([title, "", f"`{scenario.name}`", "", *table, "", *(f"{note}\n" for note in notes)])


def growth_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """How each server's cost grows from one scenario to another."""
    heads = ["server", "kind", "scenario", "relative to", "cost", "times", "95 % interval"]
    lines = []
    for growth in GROWTHS:
        servers = results.runs.get(growth.scenario, {})
        for server in servers:
            found = paired_ratio(*(_costs(results, name, server, growth) for name in (growth.scenario, growth.base)))
            if found is not None:
                cost = "CPU per byte" if growth.per_byte else "CPU per message"
                interval = f"{found.low:.2f} - {found.high:.2f}"
                name = growth.scenario, growth.base, cost
                lines.append([server, kind_of(server), *name, f"{found.value:.2f}", interval])
    return heads, lines


def _costs(results: Results, scenario: str, server: str, growth: Growth) -> dict[int, float]:
    costs = results.by_round(scenario, server, "cpu_us")
    if not growth.per_byte:
        return costs
    sizes = results.by_round(scenario, server, "mean_message_bytes")
    return {number: cost / sizes[number] for number, cost in costs.items()}


def growth_as_text(results: Results) -> str:
    """The growth table for a terminal; empty if nothing can be told."""
    heads, lines = growth_rows(results)
    if not lines:
        return ""
    head = "growth: each server beside itself"
    return "\n".join([head, "-" * len(head), *_aligned(heads, lines, left=5), ""])


def growth_as_markdown(results: Results) -> str:
    """The growth table for a document; empty if nothing can be told."""
    heads, lines = growth_rows(results)
    if not lines:
        return ""
    return "\n".join(["### Growth: each server beside itself", "", *_markdown_table(heads, lines, left=5), ""])


def legend(servers: Iterable[str]) -> str:
    """What the kinds of these servers mean, a line each."""
    return "\n".join(f"{kind}: {meaning}" for kind, meaning in _meanings(servers))


def _meanings(servers: Iterable[str]) -> list[tuple[str, str]]:
    found = {kind_of(server) for server in servers}
    return [(kind, meaning) for kind, meaning in KINDS.items() if kind in found]
