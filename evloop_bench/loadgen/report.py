"""A result as text for people."""

from __future__ import annotations

from statistics import median
from typing import Any

from evloop_bench.loadgen.histogram import MIN_SAMPLES_BEYOND, PERCENTILES
from evloop_bench.loadgen.settings import LATE_SEND_S, Settings

_WIDTH = 18
# More of them don't fit in a line, and nobody reads each one.
_SHOWN_PROCESSES = 8


def summary(result: dict[str, Any]) -> str:
    """The whole table of one run."""
    settings = Settings(**result["settings"])
    lines = [_headline(settings), ""]
    lines += _rows(_throughput(settings, result))
    lines += ["", *_latencies(settings, result), ""]
    lines += _rows(_costs(settings, result))
    lines += ["", *_errors(result), *verdict_lines(result)]
    return "\n".join(lines)


def _rows(pairs: list[tuple[str, str]]) -> list[str]:
    return [f"{name:<{_WIDTH}}{value}" for name, value in pairs]


def _headline(settings: Settings) -> str:
    sockets = plural(settings.connections, "connection")
    if settings.churn:
        sockets = (
            f"{settings.connections} at a time, each connects, sends {plural(settings.pipeline, 'message')}, closes"
        )
    elif settings.mode == "closed" and settings.connections:
        sockets += f", {settings.pipeline} in flight each"
    if settings.idle:
        sockets += f", {settings.idle} idle"
    unit = "connections" if settings.churn else "messages"
    how = (
        "closed loop"
        if settings.rate_per_s is None
        else f"open loop, {settings.rate_per_s:,.10g} {unit}/s {settings.arrivals}"
    )
    generators = plural(settings.processes, "generator process", "generator processes")
    return f"{sockets}; {how}; {settings.size} bytes {settings.text}; {generators}; seed {settings.seed}"


def plural(n: int, one: str, many: str | None = None) -> str:
    """``1 message``, ``2 messages``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _throughput(settings: Settings, result: dict[str, Any]) -> list[tuple[str, str]]:
    messages = result["messages"]
    rows = [
        (
            "throughput",
            f"{result['throughput_per_s']:,.0f} messages/s   ({messages['measured']:,} in {result['seconds']:.2f} s)",
        ),
    ]
    if settings.churn:
        rows.append(("connections", f"{result['throughput_per_s'] / settings.pipeline:,.0f} connections/s"))
    rows.append(("checked", f"{messages['replies']:,} replies to {messages['sent']:,} messages, warm-up included"))
    if settings.mode == "open":
        sends = (result["send_lateness"] or {"n": 0})["n"]
        rows.append(
            (
                "sends",
                f"{sends + messages['missed_sends']:,} scheduled, {messages['late_sends']:,} of them more than "
                f"{LATE_SEND_S * 1000:g} ms late, {messages['missed_sends']:,} missed",
            )
        )
    return rows


def _latencies(settings: Settings, result: dict[str, Any]) -> list[str]:
    columns = [("latency", result["latency"])]
    if result["service_time"] is not None:
        columns.append(("service time", result["service_time"]))
    if result["send_lateness"] is not None:
        columns.append(("send lateness", result["send_lateness"]))
    if result["connect_time"]["n"]:
        columns.append(("connect", result["connect_time"]))
    header = f"{'milliseconds':<{_WIDTH}}" + "".join(f"{name:>15}" for name, _ in columns)
    lines = [header, f"{'n':<{_WIDTH}}" + "".join(f"{values['n']:>15,}" for _, values in columns)]
    for percent in PERCENTILES:
        key = f"{percent:g}"
        if any(key in values["percentiles_ms"] for _, values in columns):
            cells = (shown_ms(values["percentiles_ms"].get(key)) for _, values in columns)
            lines.append(f"{'p' + key:<{_WIDTH}}" + "".join(f"{cell:>15}" for cell in cells))
    lines.append(f"{'max':<{_WIDTH}}" + "".join(f"{shown_ms(values['max_ms']):>15}" for _, values in columns))
    lines.append(f"(a percentile stands here if at least {MIN_SAMPLES_BEYOND} samples lie beyond it)")
    return lines


def shown_ms(value: float | None) -> str:
    """Milliseconds with three significant digits, as many as there are."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"


def shown_bytes(value: float | None) -> str:
    """Bytes in a unit that suits them."""
    if value is None:
        return "unknown"
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(value) >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:,.0f} B"


def _costs(settings: Settings, result: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    server, generator = result["server"], result["generator"]
    if server is not None:
        per_message = server["cpu_us_per_message"]
        each = "" if per_message is None else f", {per_message:.2f} us per message"
        share = f"{server['system_s'] / server['cpu_s']:.0%} of it in the kernel" if server["cpu_s"] else "idle"
        rows.append(("server CPU", f"{server['cpu_share']:.0%} of a core{each} ({share})"))
        per_connection = server["rss_per_connection_bytes"]
        memory = f"{shown_bytes(server['rss_max_bytes'])} at most"
        if per_connection is not None:
            memory += f", {per_connection:,.0f} B per connection"
        rows.append(("server memory", memory))
        rows.append(
            (
                "server switches",
                f"{server['voluntary_switches'] / server['seconds']:,.0f}/s waiting, "
                f"{server['involuntary_switches'] / server['seconds']:,.0f}/s preempted",
            )
        )
    each = "" if generator["cpu_us_per_message"] is None else f", {generator['cpu_us_per_message']:.2f} us per message"
    rows.append(("generator CPU", f"{_shares(generator['cpu_share'])}{each}"))
    if server is not None and server["cores"] is not None:
        rows.append(("cores", f"server {_cores(server['cores'])}, generators {_cores(generator['cores'])}"))
    return rows


def _shares(shares: list[float]) -> str:
    """What each process used of a core; of many, from which to which."""
    if len(shares) <= _SHOWN_PROCESSES:
        return " + ".join(f"{share:.0%}" for share in shares) + " of a core"
    return f"{min(shares):.0%} to {max(shares):.0%} of a core each, {sum(shares):.2f} cores in all {len(shares)}"


def _cores(cores: list[int]) -> str:
    return ",".join(map(str, cores))


def _errors(result: dict[str, Any]) -> list[str]:
    lines = _rows([("errors", _errors_in_words(result))])
    lines += [f"  {example}" for example in result["examples"]]
    lines += [f"  {n:,} x {reason}" for reason, n in result["connect_errors"].items()]
    return lines


def _errors_in_words(result: dict[str, Any]) -> str:
    found = [f"{n:,} {kind.replace('_', ' ')}" for kind, n in result["errors"].items() if n]
    messages = result["messages"]
    if found:
        text = ", ".join(found)
    elif not messages["sent"]:
        text = "none"
    elif messages["replies"]:
        text = f"none in {plural(messages['replies'], 'reply', 'replies')}: each was right"
    else:
        text = "none, as no reply came"
    # Right replies to the few messages that left say nothing about those that did not.
    if messages["missed_sends"]:
        text += f"; but {plural(messages['missed_sends'], 'message')} of the schedule never left"
    unanswered = messages["sent"] - messages["replies"]
    if result["interrupted"] and unanswered > 0 and not found:
        text += f"; {unanswered:,} not waited for"
    return text


_OVER_RUNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("messages/s", ("throughput_per_s",)),
    ("latency p50, ms", ("latency", "percentiles_ms", "50")),
    ("latency p95, ms", ("latency", "percentiles_ms", "95")),
    ("latency p99, ms", ("latency", "percentiles_ms", "99")),
    ("latency max, ms", ("latency", "max_ms")),
    ("server us/message", ("server", "cpu_us_per_message")),
    ("server MiB at most", ("server", "rss_max_mib")),
)


def over_runs(results: list[dict[str, Any]]) -> list[str]:
    """What several runs say together: the median of each number, and from which to which it went."""
    lines = [f"{f'all {len(results)} runs':<{_WIDTH}}{'median':>15}{'least':>15}{'most':>15}"]
    for name, keys in _OVER_RUNS:
        values = [value for result in results if (value := _number_at(result, keys)) is not None]
        if len(values) == len(results):
            cells = (_shown(number) for number in (median(values), min(values), max(values)))
            lines.append(f"{name:<{_WIDTH}}" + "".join(f"{cell:>15}" for cell in cells))
    errors = sum(result["error_total"] for result in results)
    valid = sum(bool(result["verdict"]["valid"]) for result in results)
    lines += _rows([("errors", f"{errors:,}" if errors else "none"), ("verdict", f"{valid} of {len(results)} VALID")])
    return lines


def _number_at(result: dict[str, Any], keys: tuple[str, ...]) -> float | None:
    *path, last = keys
    value: Any = result
    for key in path:
        value = value[key]
        if value is None:
            return None
    if last == "rss_max_mib":
        return value["rss_max_bytes"] / (1 << 20) if value["rss_max_bytes"] is not None else None
    return value.get(last)  # type: ignore[no-any-return]


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.1f}"


def verdict_lines(result: dict[str, Any]) -> list[str]:
    """Whether to believe it, and why not."""
    verdict = result["verdict"]
    lines = _rows([("verdict", "VALID" if verdict["valid"] else "INVALID: these numbers can't be trusted")])
    lines += [f"  because: {reason}" for reason in verdict["reasons"]]
    lines += [f"  note: {note}" for note in verdict["notes"]]
    return lines


def ceiling(result: dict[str, Any]) -> str:
    """What a calibration says."""
    generator = result["generator"]
    per_message = generator["cpu_us_per_message"]
    if per_message is None:
        return "calibration: nothing was measured"
    settings = Settings(**result["settings"])
    processes = generator["processes"]
    reached = result["throughput_per_s"]
    busiest = max(generator["cpu_share"])
    lines = [
        f"the harness spends {per_message:.2f} us per message ({settings.connections} connections, "
        + (f"{settings.pipeline} in flight each" if settings.mode == "closed" else f"{settings.rate_per_s:,.10g}/s")
        + f", {settings.size} bytes)",
        f"its ceiling with {plural(processes, 'process', 'processes')}: {1e6 / per_message * processes:,.0f} messages/s"
        f", each with a core of its own; reached here: {reached:,.0f}/s with {busiest:.0%} of a core",
    ]
    return "\n".join(lines)
