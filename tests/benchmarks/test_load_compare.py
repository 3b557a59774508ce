"""Comparing two sets of runs."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from evloop_bench.loadgen.compare import CannotCompare, compare_sides, load_side, ratio_of_medians


def make_run(throughput: float, **changes: Any) -> dict[str, Any]:
    run: dict[str, Any] = {
        "throughput_per_s": throughput,
        "error_total": 0,
        "interrupted": False,
        "verdict": {"valid": True},
        "settings": {"connections": 300, "seed": 1},
        "latency": {"percentiles_ms": {"50": 300_000 / throughput}},
        "server": {"cpu_us_per_message": 1e6 / throughput, "rss_max_bytes": 1 << 24},
    }
    return run | changes


def write(path: Path, runs: list[dict[str, Any]], **machine: Any) -> str:
    document = {
        "schema": "evloop-load",
        "version": 2,
        "code": {"commit": "0123456789abcdef", "modified": False},
        "machine": {"python": "3.11.0", "cpu": "some"} | machine,
        "runs": runs,
    }
    path.write_text(json.dumps(document))
    return str(path)


def noisy(mean: float, count: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [make_run(rng.gauss(mean, mean * 0.02)) for _ in range(count)]


def test_a_difference_larger_than_the_noise_is_found(tmp_path: Path) -> None:
    a = load_side(write(tmp_path / "a.json", noisy(100_000, 7, 1)))
    b = load_side(write(tmp_path / "b.json", noisy(120_000, 7, 2)))
    text = compare_sides(a, b)
    assert "throughput: B is better; B has" in text
    assert "server CPU per message: B is better; B has" in text
    assert "warning" not in text
    assert "throughput: A is better" in compare_sides(b, a)


def test_a_difference_within_the_noise_is_not_claimed(tmp_path: Path) -> None:
    a = load_side(write(tmp_path / "a.json", noisy(100_000, 7, 1)))
    b = load_side(write(tmp_path / "b.json", noisy(100_500, 7, 2)))
    assert "throughput: no clear difference" in compare_sides(a, b)


def test_the_interval_holds_the_ratio_and_narrows_with_more_runs() -> None:
    rng = random.Random(1)

    def interval(n: int) -> tuple[float, float]:
        found = ratio_of_medians([rng.gauss(100, 5) for _ in range(n)], [rng.gauss(130, 5) for _ in range(n)])
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.ratio <= found.high
        return found.low, found.high

    few, many = interval(5), interval(80)
    assert many[0] < 1.3 < many[1]
    assert many[1] - many[0] < few[1] - few[0]


def test_one_run_proves_nothing(tmp_path: Path) -> None:
    a = load_side(write(tmp_path / "a.json", [make_run(1000)]))
    b = load_side(write(tmp_path / "b.json", [make_run(9000)]))
    text = compare_sides(a, b)
    assert "one run says nothing about chance" in text
    assert "better" not in text


def test_what_makes_a_comparison_doubtful_is_said(tmp_path: Path) -> None:
    doubtful = [make_run(1000, verdict={"valid": False}, error_total=3, settings={"connections": 10, "seed": 5})]
    a = load_side(write(tmp_path / "a.json", noisy(1000, 2, 1)))
    b = load_side(write(tmp_path / "b.json", doubtful + noisy(1000, 2, 2), cpu="another"))
    with pytest.raises(CannotCompare, match=r"^1 of 3 runs of B are INVALID; .* differ in connections \(--force"):
        compare_sides(a, b)
    text = compare_sides(a, b, force=True)
    assert "forced: 1 of 3 runs of B are INVALID" in text
    assert "1 of 3 runs of B had errors" in text
    assert "differ in connections" in text
    assert "not all runs come from the same machine" in text
    assert "2 runs of A make the interval too narrow" in text


def test_a_side_may_be_several_files_or_a_directory(tmp_path: Path) -> None:
    first, second = write(tmp_path / "1.json", noisy(1000, 2, 1)), write(tmp_path / "2.json", noisy(1000, 3, 1))
    assert len(load_side(f"{first},{second}").runs) == 5
    assert len(load_side(str(tmp_path)).runs) == 5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[" * 10**5, "is not JSON"),
        ('{"schema": "evloop-load", "version": 2}', "is not whole"),
        ('{"schema": "evloop-load", "version": 2, "runs": [{}]}', "is not whole"),
        ("[]", "was not written by"),
        ('{"schema": "evloop-load", "version": 9}', "has version 9"),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(CannotCompare, match=said):
        load_side(str(tmp_path / "x.json"))
    with pytest.raises(CannotCompare, match="cannot read"):
        load_side(str(tmp_path / "none.json"))
