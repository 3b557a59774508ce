"""Results as one self-contained page: text, numbers and plots, no script, nothing fetched."""

from __future__ import annotations

import html
import io
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, NullLocator

from benchmarks.loadgen.export import merged_latency
from benchmarks.loadgen.histogram import MIN_SAMPLES_BEYOND
from benchmarks.loadgen.report import shown_bytes, shown_ms, summary

_BLUE, _ORANGE, _GREEN, _GREY = "#2563a8", "#c2571a", "#2e7d4f", "#6b7280"
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": "#374151",
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlepad": 12,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "xtick.color": "#6b7280",
    "ytick.color": "#6b7280",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    # Text stays text: it can be searched and read aloud, and takes the page's font.
    "svg.fonttype": "none",
    # The same data give the same file.
    "svg.hashsalt": "evloop",
}

_CSS = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; margin: 0;
  color: #1f2937; background: #f3f4f6; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 24px 48px; }
h1 { font-size: 24px; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 36px 0 12px; }
.how { color: #4b5563; margin: 0 0 18px; }
.badge { display: inline-block; border-radius: 4px; padding: 1px 10px; font-weight: 600; font-size: 14px; color: #fff; }
.valid { background: #2e7d4f; } .invalid { background: #b3261e; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px; margin: 16px 0; }
.card, figure, details, .notes { background: #fff; border: 1px solid #e5e7eb; border-radius: 8px; }
.card { padding: 12px 16px; }
.card b { display: block; font-size: 23px; font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap; }
.card span { color: #4b5563; font-size: 13px; }
.notes { padding: 10px 16px; margin: 12px 0; } .notes p { margin: 3px 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 14px; }
figure { margin: 0; padding: 14px 12px 8px; }
figure svg { width: 100%; height: auto; display: block; }
figure svg text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif !important; }
details { margin: 14px 0; padding: 10px 16px; } summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
footer { color: #4b5563; font-size: 13px; margin-top: 28px; border-top: 1px solid #d1d5db; padding-top: 12px; }
@media (max-width: 560px) { .plots { grid-template-columns: 1fr; } }
"""


def write_page(path: str, document: dict[str, Any]) -> None:
    """Write the page of all runs in the document."""
    Path(path).write_text(render(document), encoding="utf-8")


def render(document: dict[str, Any]) -> str:
    """The page as text."""
    runs = document["runs"]
    machine, code = document["machine"], document["code"]
    title = "Load run" if len(runs) == 1 else f"{len(runs)} load runs"
    commit = f"commit {code['commit'][:12]}{' with changes' if code['modified'] else ''}" if code["commit"] else ""
    made_on = [
        machine["cpu"],
        f"{machine['usable_cores']} of {machine['cores']} cores",
        machine["kernel"],
        f"{machine['implementation']} {machine['python']}",
        commit,
        document["created_at"],
    ]
    sections = "".join(_section(run, index, len(runs)) for index, run in enumerate(runs))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_CSS}</style></head><body><main>"
        f"<h1>{title}</h1>{sections}"
        f"<footer><p>{html.escape(', '.join(part for part in made_on if part))}</p>"
        f"<p><code>{html.escape(' '.join(document['argv']))}</code> (seed {document['seed']})</p></footer>"
        "</main></body></html>\n"
    )


def _section(run: dict[str, Any], index: int, count: int) -> str:
    verdict = run["verdict"]
    badge = (
        '<span class="badge valid">VALID</span>' if verdict["valid"] else '<span class="badge invalid">INVALID</span>'
    )
    text = summary(run)
    headline = text.partition("\n")[0]
    notes = [f"<p><b>Not to be trusted:</b> {html.escape(reason)}</p>" for reason in verdict["reasons"]]
    notes += [f"<p>{html.escape(note[:1].upper() + note[1:])}</p>" for note in verdict["notes"]]
    with mpl.rc_context(_STYLE):
        plots = [_throughput_plot(run), _percentile_plot(run), _latency_plot(run), _server_plot(run)]
    title = "" if count == 1 else f"<h2>Run {index + 1} of {count}</h2>"
    return (
        f'{title}<p class="how">{badge} &nbsp;{html.escape(headline)}</p>'
        + (f'<div class="notes">{"".join(notes)}</div>' if notes else "")
        + f'<div class="cards">{"".join(_card(*card) for card in _cards(run))}</div>'
        + f'<div class="plots">{"".join(f"<figure>{plot}</figure>" for plot in plots if plot)}</div>'
        + f"<details><summary>All numbers</summary><pre>{html.escape(text)}</pre></details>"
    )


def _card(value: str, name: str) -> str:
    return f'<div class="card"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>'


def _cards(run: dict[str, Any]) -> list[tuple[str, str]]:
    latency, server = run["latency"]["percentiles_ms"], run["server"]
    cards = [(f"{run['throughput_per_s']:,.0f}", "messages per second")]
    cards += [(f"{shown_ms(latency[key])} ms", f"latency p{key}") for key in ("50", "99") if key in latency]
    if server is not None:
        if server["cpu_us_per_message"] is not None:
            cards.append((f"{server['cpu_us_per_message']:.2f} us", "server CPU per message"))
        cards.append((shown_bytes(server["rss_max_bytes"]), "server memory"))
    errors = run["error_total"]
    cards.append((f"{errors:,}", f"errors in {run['messages']['replies']:,} replies"))
    return cards


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.7), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure, label: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # The size is the page's affair, and a description is what a screen reader has instead of the curve.
    text = re.sub(r'<svg ([^>]*?)height="[^"]*" ([^>]*?)width="[^"]*"', r"<svg \1\2", text, count=1)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


def _steps(intervals: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Middle of each interval, and the value in it."""
    points = [
        ((interval["from_s"] + interval["to_s"]) / 2, interval[key])
        for interval in intervals
        if interval[key] is not None
    ]
    return [x for x, _ in points], [y for _, y in points]


def _legend(axes: Axes, lines: list[Line2D] | None = None) -> None:
    """Beside the title, where no curve is."""
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")] if lines is None else lines
    axes.legend(
        lines,
        [str(line.get_label()) for line in lines],
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=len(lines),
        handlelength=1.2,
        columnspacing=1.2,
        borderaxespad=0.3,
    )


def _time_axis(axes: Axes, run: dict[str, Any]) -> None:
    axes.set_xlabel("seconds since the warm-up")
    axes.set_xlim(0, run["seconds"])


def _throughput_plot(run: dict[str, Any]) -> str:
    if not run["messages"]["measured"]:
        return ""
    figure, axes = _figure()
    # The last interval is what is left over, and may be too short for a rate.
    intervals = [one for one in run["intervals"] if one["to_s"] - one["from_s"] > 0.02]
    axes.plot(*_steps(intervals, "throughput_per_s"), color=_BLUE)
    axes.fill_between(*_steps(intervals, "throughput_per_s"), color=_BLUE, alpha=0.10, linewidth=0)
    axes.axhline(run["throughput_per_s"], color=_GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_title("Throughput")
    axes.set_ylabel("messages per second")
    _time_axis(axes, run)
    return _svg(figure, "throughput over time")


def _percentile_plot(run: dict[str, Any]) -> str:
    if run["latency"]["n"] < 2 * MIN_SAMPLES_BEYOND:
        return ""
    figure, axes = _figure()
    curves = [("latency", "latency", _BLUE)]
    if run["service_time"] is not None:
        curves.append(("service_time", "service time", _ORANGE))
    ends = []
    for key, name, colour in curves:
        histogram = merged_latency([run], key)
        n = histogram.get_total_count()
        xs, ys = [1.0], [histogram.get_min_value() / 1e6]
        for item in histogram.get_percentile_iterator(10):
            beyond = n - item.total_count_to_this_value
            if beyond < MIN_SAMPLES_BEYOND:
                break
            xs.append(n / beyond)
            ys.append(item.value_iterated_to / 1e6)
        axes.plot(xs, ys, color=colour, label=name)
        ends.append(xs[-1])
    nines = [1, 2, 10, 100, 1000, 10_000, 100_000, 1_000_000]
    names = {
        1: "0",
        2: "50",
        10: "90",
        100: "99",
        1000: "99.9",
        10_000: "99.99",
        100_000: "99.999",
        1_000_000: "99.9999",
    }
    axes.set_xscale("log")
    axes.set_xlim(1, max(ends))
    axes.xaxis.set_major_locator(FixedLocator([nine for nine in nines if nine <= max(ends)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: names.get(round(x), "")))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"percentile (as far as {MIN_SAMPLES_BEYOND} samples lie beyond)")
    axes.set_ylabel("milliseconds")
    axes.set_title("Latency by percentile")
    if len(curves) > 1:
        _legend(axes)
    return _svg(figure, "latency by percentile")


def _latency_plot(run: dict[str, Any]) -> str:
    intervals = [one for one in run["intervals"] if one["replies"] >= 2 * MIN_SAMPLES_BEYOND]
    if not intervals:
        return ""
    figure, axes = _figure()
    axes.plot(*_steps(intervals, "p50_ms"), color=_BLUE, label="p50")
    axes.plot(*_steps(intervals, "p99_ms"), color=_ORANGE, label="p99")
    axes.set_ylim(bottom=0)
    axes.set_title("Latency over time")
    axes.set_ylabel("milliseconds")
    _legend(axes)
    _time_axis(axes, run)
    return _svg(figure, "median and 99th percentile latency over time")


def _server_plot(run: dict[str, Any]) -> str:
    samples = [sample for sample in run["samples"] if sample["at_s"] > 0]
    if not samples:
        return ""
    figure, axes = _figure()
    times = [sample["at_s"] for sample in samples]
    axes.plot(times, [sample["cpu_share"] * 100 for sample in samples], color=_BLUE, label="server")
    intervals = [one for one in run["intervals"] if one["to_s"] - one["from_s"] > 0.02]
    xs, ys = _steps(intervals, "generator_cpu_share")
    axes.plot(xs, [y * 100 for y in ys], color=_GREY, linewidth=1.2, label="generator")
    axes.set_ylabel("% of a core")
    axes.set_ylim(0, max(105.0, *(sample["cpu_share"] * 105 for sample in samples), *(y * 105 for y in ys)))
    memory = axes.twinx()
    memory.spines["right"].set_visible(True)
    memory.grid(False)
    memory.plot(times, [sample["rss_bytes"] / 1048576 for sample in samples], color=_GREEN, label="memory")
    memory.set_ylim(0, max(sample["rss_bytes"] for sample in samples) / 1048576 * 1.6)
    memory.set_ylabel("server memory, MiB")
    _legend(axes, [*axes.get_lines(), *memory.get_lines()])
    axes.set_title("CPU and memory")
    _time_axis(axes, run)
    return _svg(figure, "server CPU and memory over time")
