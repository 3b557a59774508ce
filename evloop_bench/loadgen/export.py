"""Results as files for other programs."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from hdrh.histogram import HdrHistogram

_NS_PER_MS = 1e6

CSV_COLUMNS = (
    "run",
    "from_s",
    "to_s",
    "replies",
    "throughput_per_s",
    "p50_ms",
    "p99_ms",
    "max_ms",
    "generator_cpu_share",
    "server_cpu_share",
    "server_rss_bytes",
)


def write_csv(path: str, results: list[dict[str, Any]]) -> None:
    """One row for each interval of each run. The server's columns are those of its last sample in or before it."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS)
        writer.writeheader()
        for index, result in enumerate(results):
            for interval in result["intervals"]:
                earlier = [sample for sample in result["samples"] if sample["at_s"] <= interval["to_s"]]
                row = {"run": index + 1} | {key: value for key, value in interval.items() if key in CSV_COLUMNS}
                if earlier:
                    row["server_cpu_share"] = earlier[-1]["cpu_share"]
                    row["server_rss_bytes"] = earlier[-1]["rss_bytes"]
                writer.writerow(
                    {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
                )


def write_hgrm(path: str, results: list[dict[str, Any]]) -> None:
    """The latencies of all runs together, as HdrHistogram prints them: milliseconds by percentile."""
    total = merged_latency(results)
    text = io.BytesIO()
    total.output_percentile_distribution(text, _NS_PER_MS)
    lines = text.getvalue().decode().splitlines()
    # The library scales everything but the standard deviation.
    moments = f"#[Mean    = {total.get_mean_value() / _NS_PER_MS:12.3f}, "
    moments += f"StdDeviation   = {total.get_stddev() / _NS_PER_MS:12.3f}]"
    lines = [moments if line.startswith("#[Mean") else line for line in lines]
    Path(path).write_text("\n".join(lines) + "\n")


def merged_latency(results: list[dict[str, Any]], key: str = "latency") -> HdrHistogram:
    """One histogram of all runs, merged bucket by bucket."""
    total = decode_histogram(results[0][key]["hdr"])
    for result in results[1:]:
        total.add(decode_histogram(result[key]["hdr"]))
    return total


def decode_histogram(text: str) -> HdrHistogram:
    """A histogram from its encoding in a result."""
    return HdrHistogram.decode(text.encode())
