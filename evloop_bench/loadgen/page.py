"""Results as one self-contained page: text, numbers and plots, no script, nothing fetched."""

from __future__ import annotations

import html
import io
import re
from pathlib import Path
from string import Template
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, NullLocator

from evloop_bench.common.plotstyle import BLUE, GREEN, GREY, ORANGE, STYLE
from evloop_bench.loadgen.export import merged_latency
from evloop_bench.loadgen.histogram import MIN_SAMPLES_BEYOND
from evloop_bench.loadgen.report import over_runs, shown_bytes, shown_ms, summary

# Files as they are served nowhere: read when a page is made, and packed into it.
_TEMPLATES = Path(__file__).with_name("templates")


def _template(name: str) -> Template:
    """One of the files, with ``$name`` where something goes."""
    return Template((_TEMPLATES / name).read_text(encoding="utf-8"))


def write_page(path: str, document: dict[str, Any]) -> None:
    """Write the page of all runs in the document."""
    # An argument may hold bytes that are no text.
    Path(path).write_text(render(document), encoding="utf-8", errors="backslashreplace")


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
    return _template("page.html").substitute(
        title=title,
        css=(_TEMPLATES / "page.css").read_text(encoding="utf-8"),
        summary=html.escape("\n".join(over_runs(runs))) if len(runs) > 1 else "",
        runs=sections,
        made_on=html.escape(", ".join(part for part in made_on if part)),
        command=html.escape(" ".join(document["argv"])),
        seed=document["seed"],
    )


def _section(run: dict[str, Any], index: int, count: int) -> str:
    verdict = run["verdict"]
    text = summary(run)
    notes = [_note("Not to be trusted:", reason) for reason in verdict["reasons"]]
    notes += [_note("", note[:1].upper() + note[1:]) for note in verdict["notes"]]
    with mpl.rc_context(STYLE):
        plots = [_throughput_plot(run), _percentile_plot(run), _latency_plot(run), _server_plot(run)]
    return _template("run.html").substitute(
        title="" if count == 1 else f"Run {index + 1} of {count}",
        verdict="valid" if verdict["valid"] else "invalid",
        headline=html.escape(text.partition("\n")[0]),
        notes="".join(notes),
        cards="".join(
            _template("card.html").substitute(value=html.escape(value), name=html.escape(name))
            for value, name in _cards(run)
        ),
        plots="".join(_template("plot.html").substitute(svg=plot) for plot in plots if plot),
        numbers=html.escape(text),
    )


def _note(label: str, text: str) -> str:
    return _template("note.html").substitute(label=html.escape(label), text=html.escape(text))


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
    axes.plot(*_steps(intervals, "throughput_per_s"), color=BLUE)
    axes.fill_between(*_steps(intervals, "throughput_per_s"), color=BLUE, alpha=0.10, linewidth=0)
    axes.axhline(run["throughput_per_s"], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
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
    curves = [("latency", "latency", BLUE)]
    if run["service_time"] is not None:
        curves.append(("service_time", "service time", ORANGE))
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
    axes.plot(*_steps(intervals, "p50_ms"), color=BLUE, label="p50")
    axes.plot(*_steps(intervals, "p99_ms"), color=ORANGE, label="p99")
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
    axes.plot(times, [sample["cpu_share"] * 100 for sample in samples], color=BLUE, label="server")
    intervals = [one for one in run["intervals"] if one["to_s"] - one["from_s"] > 0.02]
    xs, ys = _steps(intervals, "generator_cpu_share")
    axes.plot(xs, [y * 100 for y in ys], color=GREY, linewidth=1.2, label="generator")
    axes.set_ylabel("% of a core")
    axes.set_ylim(0, max(105.0, *(sample["cpu_share"] * 105 for sample in samples), *(y * 105 for y in ys)))
    memory = axes.twinx()
    memory.spines["right"].set_visible(True)
    memory.grid(False)
    memory.plot(times, [sample["rss_bytes"] / 1048576 for sample in samples], color=GREEN, label="memory")
    memory.set_ylim(0, max(sample["rss_bytes"] for sample in samples) / 1048576 * 1.6)
    memory.set_ylabel("server memory, MiB")
    _legend(axes, [*axes.get_lines(), *memory.get_lines()])
    axes.set_title("CPU and memory")
    _time_axis(axes, run)
    return _svg(figure, "server CPU and memory over time")
