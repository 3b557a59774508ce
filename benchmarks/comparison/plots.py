"""Plots of a comparison, as SVG and PNG. Ours is highlighted; whiskers are 95 % intervals of the median."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.comparison.results import Results
from benchmarks.comparison.scenarios import SCENARIOS
from benchmarks.peers.registry import kind_of
from evloop_bench.common.plotstyle import BLACK, BLUE, GREEN, GREY, ORANGE, RED, STYLE

_COLOURS = {"ours": RED, "tuned": BLUE, "idiomatic": GREY, "floor": GREEN, "native": BLACK}
_LINE_COLOURS = {"evloop": RED, "c-epoll": BLACK, "uvloop-protocol": BLUE, "asyncio-protocol": ORANGE}


@dataclass(frozen=True, slots=True)
class _Measure:
    """A figure as plots show it: ``scale`` makes its unit that of ``label``."""

    figure: str
    label: str
    scale: float = 1.0
    more_is_better: bool = False


_CPU = _Measure("cpu_us", "server CPU per message, µs")
_RATE = _Measure("per_s", "messages per second", more_is_better=True)
_P99 = _Measure("p99_us", "p99 latency, ms", 1e-3)


def draw_all(results: Results, machine: str, directory: Path) -> list[str]:
    """Draw what the results allow.

    Returns:
        the names of the PNG files; an SVG of the same name is beside each.
    """
    names = []
    with plt.rc_context(STYLE):
        for name, draw in _PLOTS.items():
            figure = draw(results)
            if figure is None:
                continue
            figure.text(0.005, 0.005, _wrapped(machine, figure), fontsize=6.5, color="#666666", va="bottom")
            figure.savefig(directory / f"{name}.svg", metadata={"Date": None})
            figure.savefig(directory / f"{name}.png", dpi=130)
            plt.close(figure)
            names.append(f"{name}.png")
    return names


def _wrapped(text: str, figure: Figure) -> str:
    """The text in lines that fit the figure's width."""
    return "\n".join(textwrap.wrap(text, int(figure.get_figwidth() * 18)))


# ---------------------------------------------------------------- one panel: servers from best to worst


def _dots(ax: Axes, results: Results, scenario: str, measure: _Measure, title: str) -> None:
    """A dot and whiskers for each server, the best on top; no bars, as their length means nothing on a log axis."""
    found = []
    for server in results.runs.get(scenario, {}):
        estimate = results.estimate(scenario, server, measure.figure)
        if estimate is not None and estimate.value > 0:
            found.append((estimate.value * measure.scale, estimate, server))
    found.sort(key=lambda entry: entry[0], reverse=not measure.more_is_better)
    for row, (value, estimate, server) in enumerate(found):
        kind = kind_of(server)
        low, high = estimate.low * measure.scale, estimate.high * measure.scale
        ours = kind == "ours"
        ax.errorbar(
            value,
            row,
            xerr=[[value - low], [high - value]],
            fmt="o",
            markersize=9 if ours else 6,
            color=_COLOURS.get(kind, GREY),
            capsize=2.5,
            linewidth=1.2,
        )
        ax.annotate(
            _short(value),
            (max(high, value), row),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=_COLOURS.get(kind, GREY),
            weight="bold" if ours else "normal",
        )
        if ours:
            ax.axhspan(row - 0.5, row + 0.5, color=_COLOURS["ours"], alpha=0.08, linewidth=0)
    ax.set_yticks(range(len(found)), [f"{server} ({kind_of(server)})" for _, _, server in found], fontsize=9)
    ax.set_ylim(-0.6, len(found) - 0.4)
    ax.set_xscale("log")
    _widen(ax)
    _label_ticks(ax.xaxis, room=3)
    ax.grid(axis="y", visible=False)
    ax.set_title(title, loc="left")
    ax.set_xlabel(measure.label)


def _widen(ax: Axes) -> None:
    """Room to the right for the annotations."""
    low, high = ax.get_xlim()
    ax.set_xlim(low / 1.1, high * (high / low) ** 0.22)


def _short(value: float) -> str:
    """Three significant digits."""
    if value >= 1e6:
        return f"{value / 1e6:#.3g} M"
    if value >= 1e4:
        return f"{value / 1e3:,.1f} k" if value < 1e5 else f"{value / 1e3:,.0f} k"
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _label_ticks(axis: Any, room: float) -> None:
    """Plain numbers on a logarithmic axis, and enough of them also where it spans less than a decade or two.

    Args:
        room: the span, as a ratio, up to which there is room for many.
    """
    low, high = axis.get_view_interval()
    digits = "2345678" if high < room * low else "25" if high < 60 * room * low else ""

    def label(value: float, _: object) -> str:
        return _tick(value) if f"{value:.0e}"[0] in "1" + digits else ""

    axis.set_major_formatter(FuncFormatter(label))
    axis.set_minor_formatter(FuncFormatter(label))
    axis.set_tick_params(which="both", labelsize=8.5)


def _tick(value: float) -> str:
    if value >= 1e4:
        return f"{value / 1e6:g} M" if value >= 1e6 else f"{value / 1e3:g} k"
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _dot_figure(panels: list[tuple[str, _Measure, str]]) -> Callable[[Results], Figure | None]:
    def draw(results: Results) -> Figure | None:
        present = [panel for panel in panels if panel[0] in results.runs]
        if not present:
            return None
        lines = max(len(results.runs[scenario]) for scenario, _, _ in present)
        figure: Figure
        figure, axes = plt.subplots(
            1, len(present), figsize=(1.2 + 4.6 * len(present), 1.7 + 0.3 * lines), squeeze=False
        )
        for ax, (scenario, measure, title) in zip(axes[0], present, strict=True):
            _dots(ax, results, scenario, measure, title)
        figure.tight_layout(rect=(0, 0.09, 1, 1))
        return figure

    return draw


def _in_flight(measure: _Measure) -> Callable[[Results], Figure | None]:
    return _dot_figure([(f"inflight-{depth}", measure, f"{depth} in flight") for depth in (1, 16, 256)])


# ---------------------------------------------------------------- one panel: a line for each server


def _lines(ax: Axes, results: Results, group: str, measure: _Measure, x_label: str, base: float | None = None) -> None:
    """A line for each server across a group of scenarios; with ``base`` relative to its own value there."""
    members = sorted((s for s in SCENARIOS.values() if s.group == group and s.name in results.runs), key=lambda s: s.x)
    base_name = next((scenario.name for scenario in members if scenario.x == base), None)
    for server, colour in _LINE_COLOURS.items():
        points = []
        for scenario in members:
            if base_name is None:
                estimate = results.estimate(scenario.name, server, measure.figure)
            else:
                estimate = results.growth(scenario.name, base_name, server, measure.figure)
            if estimate is not None:
                points.append((scenario.x, estimate))
        if not points:
            continue
        values = [estimate.value * measure.scale for _, estimate in points]
        ax.errorbar(
            [x for x, _ in points],
            values,
            yerr=[
                [(estimate.value - estimate.low) * measure.scale for _, estimate in points],
                [(estimate.high - estimate.value) * measure.scale for _, estimate in points],
            ],
            label=f"{server} ({kind_of(server)})",
            color=colour,
            linewidth=2.4 if server == "evloop" else 1.4,
            marker="o",
            markersize=6 if server == "evloop" else 4,
            capsize=2.5,
            zorder=3 if server == "evloop" else 2,
        )
    ax.set_xscale("log")
    ax.set_xticks([scenario.x for scenario in members], [f"{scenario.x:,.0f}" for scenario in members])
    ax.xaxis.set_minor_formatter(NullFormatter())
    if base is None:
        ax.set_yscale("log")
        _label_ticks(ax.yaxis, room=12)
    ax.set_xlabel(x_label)
    ax.set_title(measure.label, loc="left")


def _line_figure(group: str, x_label: str) -> Callable[[Results], Figure | None]:
    def draw(results: Results) -> Figure | None:
        if sum(s.group == group and s.name in results.runs for s in SCENARIOS.values()) < 2:
            return None
        figure: Figure
        figure, axes = plt.subplots(1, 3, figsize=(14, 4.6))
        for ax, measure in zip(axes, (_CPU, _RATE, _P99), strict=True):
            _lines(ax, results, group, measure, x_label)
        _legend(figure, axes[0])
        figure.tight_layout(rect=(0, 0.06, 1, 0.93))
        return figure

    return draw


def _scaling(results: Results) -> Figure | None:
    if "connections-100" not in results.runs or "connections-10000" not in results.runs:
        return None
    figure: Figure
    figure, ax = plt.subplots(figsize=(7.5, 4.8))
    label = "server CPU per message, relative to 100 connections"
    _lines(ax, results, "connections", _Measure("cpu_us", label), "connections, all active", base=100)
    ax.axhline(1, color="#999999", linewidth=0.8)
    ax.set_ylim(bottom=0)
    _legend(figure, ax)
    figure.tight_layout(rect=(0, 0.09, 1, 0.9))
    return figure


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    columns = 4 if figure.get_figwidth() > 10 else 2
    figure.legend(handles, labels, loc="upper center", ncols=columns, frameon=False)


_PLOTS: dict[str, Callable[[Results], Figure | None]] = {
    "inflight-cpu": _in_flight(_CPU),
    "inflight-throughput": _in_flight(_RATE),
    "inflight-p99": _in_flight(_P99),
    "connections": _line_figure("connections", "connections, all active"),
    "scaling": _scaling,
    "sizes": _line_figure("size", "message size, bytes"),
    "memory-and-churn": _dot_figure(
        [
            ("memory", _Measure("bytes", "bytes of process memory"), "an idle connection (5,000 of them)"),
            ("churn", _Measure("per_s", "connections per second", more_is_better=True), "connect, ask, close"),
            ("churn", _Measure("cpu_us", "server CPU per connection, µs"), "connect, ask, close"),
        ]
    ),
    "open-loop": _dot_figure(
        [
            ("open-half", _Measure("p50_us", "median latency, µs"), "open loop, half of asyncio's capacity"),
            ("open-half", _Measure("p999_us", "p99.9 latency, µs"), "the same, p99.9"),
        ]
    ),
}
