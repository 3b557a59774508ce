"""Which of two is faster, by how much, and how sure that is.

Runs are what is independent of each other, not messages: the messages of one run share its luck (where the memory
lies, what else the machine did). So the interval is bootstrapped over runs: as many runs as there are of each side are
drawn with replacement, again and again, and the spread of the ratio of their medians is the answer. One run of a side
has no spread, and then nothing is claimed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from evloop_bench.common.bootstrap import CONFIDENCE, interval
from evloop_bench.loadgen.settings import SCHEMA, SCHEMA_VERSION

RESAMPLES = 10_000
# With fewer runs the interval is too narrow for what it promises.
ENOUGH_RUNS = 5

# What each run must have.
_NEEDED = {"error_total", "interrupted", "latency", "server", "settings", "throughput_per_s", "verdict"}

Reader = Callable[[dict[str, Any]], float | None]


class CannotCompare(Exception):
    """The text is one line that says why."""


@dataclass(frozen=True)
class Side:
    """The runs of one side, and the documents they come from."""

    name: str
    documents: list[dict[str, Any]]

    @property
    def runs(self) -> list[dict[str, Any]]:
        return [run for document in self.documents for run in document["runs"]]


@dataclass(frozen=True)
class Ratio:
    """B over A, with the interval it lies in; ``low`` and ``high`` are None when there are too few runs for one."""

    a: float
    b: float
    ratio: float
    low: float | None
    high: float | None

    @property
    def clear(self) -> bool:
        """The interval leaves out 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


def load_side(paths: str) -> Side:
    """Runs from one file, from several separated by commas, or from all ``.json`` files of a directory.

    Raises:
        CannotCompare: a file can't be read or is none of ours.
    """
    files: list[Path] = []
    for part in paths.split(","):
        path = Path(part)
        files += sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise CannotCompare(f"{paths}: no .json file in it")
    documents = []
    for file in files:
        try:
            document = json.loads(file.read_text())
        except OSError as error:
            raise CannotCompare(f"cannot read {file}: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise CannotCompare(f"{file} is not JSON") from None
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise CannotCompare(f"{file} was not written by load.py --json")
        if document.get("version") != SCHEMA_VERSION:
            version = document.get("version")
            raise CannotCompare(f"{file} has version {version} of the format, this reads version {SCHEMA_VERSION}")
        runs = document.get("runs")
        if not isinstance(runs, list) or not all(isinstance(run, dict) and run.keys() >= _NEEDED for run in runs):
            raise CannotCompare(f"{file} is not whole: something that load.py writes is missing in it")
        documents.append(document)
    side = Side(paths, documents)
    if not side.runs:
        raise CannotCompare(f"{paths}: no runs in it")
    return side


def ratio_of_medians(a: list[float], b: list[float], *, seed: int = 1) -> Ratio:
    """The ratio of the medians of B and A, with a percentile bootstrap interval over the values."""
    ratio = median(b) / median(a)
    if len(a) < 2 or len(b) < 2:
        return Ratio(median(a), median(b), ratio, None, None)

    def resampled(rng: random.Random) -> float:
        return median(rng.choices(b, k=len(b))) / median(rng.choices(a, k=len(a)))

    return Ratio(median(a), median(b), ratio, *interval(resampled, RESAMPLES, seed))


def _nested(*keys: str) -> Reader:
    def read(run: dict[str, Any]) -> float | None:
        value: Any = run
        for key in keys:
            value = value.get(key) if value is not None else None
        return value  # type: ignore[no-any-return]

    return read


# Name, unit, whether more is better, where it stands.
QUANTITIES: list[tuple[str, str, bool, Reader]] = [
    ("throughput", "messages/s", True, _nested("throughput_per_s")),
    ("server CPU per message", "us", False, _nested("server", "cpu_us_per_message")),
    ("latency p50", "ms", False, _nested("latency", "percentiles_ms", "50")),
    ("latency p99", "ms", False, _nested("latency", "percentiles_ms", "99")),
    ("latency p99.9", "ms", False, _nested("latency", "percentiles_ms", "99.9")),
    ("memory at most", "bytes", False, _nested("server", "rss_max_bytes")),
]


def compare_sides(a: Side, b: Side, *, force: bool = False) -> str:
    """The comparison as text.

    Args:
        force: compare also what can't be compared; the text then says so.

    Raises:
        CannotCompare: runs are INVALID, or of different settings; or there is nothing that both have.
    """
    against = objections(a, b)
    if against and not force:
        raise CannotCompare(f"{'; '.join(against)} (--force compares them all the same)")
    doubts = [*(f"forced: {objection}" for objection in against), *(f"warning: {text}" for text in warnings(a, b))]
    lines = [f"A: {describe(a)}", f"B: {describe(b)}", *doubts, ""]
    header = f"{'median over runs':<26}{'A':>14}{'B':>14}{'B/A':>8}   {CONFIDENCE:.0%} interval"
    lines.append(header)
    sentences = []
    for name, unit, more_is_better, read in QUANTITIES:
        values_a = [value for run in a.runs if (value := read(run)) is not None]
        values_b = [value for run in b.runs if (value := read(run)) is not None]
        # A value that only some runs have would compare different things.
        if len(values_a) < len(a.runs) or len(values_b) < len(b.runs) or not median(values_a) or not median(values_b):
            continue
        found = ratio_of_medians(values_a, values_b)
        interval = "one run has none" if found.low is None else f"{found.low:.3f} to {found.high:.3f}"
        if found.low is not None and not found.clear:
            interval += "   no clear difference"
        lines.append(
            f"{name + ', ' + unit:<26}{_shown(found.a):>14}{_shown(found.b):>14}{found.ratio:>8.3f}   {interval}"
        )
        if name in ("throughput", "server CPU per message", "latency p99"):
            sentences.append(sentence(name, found, more_is_better))
    if not sentences:
        raise CannotCompare("the two sides have no quantity in common")
    return "\n".join([*lines, "", *sentences])


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def sentence(name: str, found: Ratio, more_is_better: bool) -> str:
    """The answer in words."""
    if found.low is None or found.high is None:
        return f"{name}: B/A is {found.ratio:.3f}, but one run says nothing about chance; use --repeat {ENOUGH_RUNS}"
    if not found.clear:
        return f"{name}: no clear difference; B/A lies between {found.low:.3f} and {found.high:.3f}"
    better = "B" if (found.ratio > 1) is more_is_better else "A"
    change, low, high = (abs(value - 1) for value in (found.ratio, found.low, found.high))
    direction = "more" if found.ratio > 1 else "less"
    return (
        f"{name}: {better} is better; B has {change:.1%} {direction} than A "
        f"({min(low, high):.1%} to {max(low, high):.1%}, {CONFIDENCE:.0%} confidence)"
    )


def describe(side: Side) -> str:
    """Where a side comes from."""
    document = side.documents[0]
    commit = (document["code"]["commit"] or "no commit")[:10] + (
        " with changes" if document["code"]["modified"] else ""
    )
    runs = len(side.runs)
    return f"{side.name}: {runs} run{'s' if runs > 1 else ''}, {commit}, Python {document['machine']['python']}"


def objections(a: Side, b: Side) -> list[str]:
    """What makes a comparison mean nothing."""
    found = []
    for side, label in ((a, "A"), (b, "B")):
        invalid = sum(not run["verdict"]["valid"] for run in side.runs)
        failed = sum(bool(run["error_total"]) for run in side.runs)
        if invalid:
            found.append(f"{invalid} of {len(side.runs)} runs of {label} are INVALID")
        if failed:
            found.append(f"{failed} of {len(side.runs)} runs of {label} had errors")
    settings = [{key: value for key, value in run["settings"].items() if key != "seed"} for run in [*a.runs, *b.runs]]
    keys = sorted({key for one in settings for key in one})
    differing = [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]
    if differing:
        found.append(f"the runs differ in {', '.join(differing)}")
    return found


def warnings(a: Side, b: Side) -> list[str]:
    """What makes the comparison doubtful."""
    found = []
    for side, label in ((a, "A"), (b, "B")):
        interrupted = sum(bool(run["interrupted"]) for run in side.runs)
        if interrupted:
            found.append(f"{interrupted} of {len(side.runs)} runs of {label} were interrupted, and are shorter")
        if 1 < len(side.runs) < ENOUGH_RUNS:
            found.append(f"{len(side.runs)} runs of {label} make the interval too narrow; use --repeat {ENOUGH_RUNS}")
    machines = {
        json.dumps({key: value for key, value in document["machine"].items() if key != "python"}, sort_keys=True)
        for side in (a, b)
        for document in side.documents
    }
    if len(machines) > 1:
        found.append("not all runs come from the same machine")
    return found
