"""fill_tables.py: what the analysis says was measured is what versus.py measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import fill_tables
from benchmarks.comparison.files import as_document
from benchmarks.comparison.results import Results
from benchmarks.comparison.scenarios import OVER_TLS, SCENARIOS
from benchmarks.peers.registry import PEERS
from evloop_bench.common.paths import ROOT
from evloop_bench.common.streams import EXIT_CANNOT_RUN

MACHINE = {"cpu": "some", "cores": 2, "kernel": "some", "python": "some", "commit": "some", "versions": {}}
RESULTS = ROOT / "docs" / "results" / "versus.json"


def some_results() -> Results:
    """Two rounds of two servers."""
    results = Results()
    for number, cpu_us in enumerate((5.0, 5.4)):
        for server, times in ("evloop", 1.0), ("asyncio-protocol", 1.5):
            load = {"cpu_us": cpu_us * times, "kernel_share": 0.75, "per_s": 200_000 / times}
            results.add("inflight-1", server, number, {**load, "p50_us": 1490.0, "p99_us": 12_345.0})
    for number in range(2):
        for server, cost, bytes_ in ("evloop", 10.0, 17_600.0), ("uvloop-protocol", 30.0, 46_000.0):
            results.add("tls-1", server, number, {"cpu_us": cost})
            results.add("tls-idle-memory", server, number, {"bytes": bytes_})
    return results


def rows(text: str, name: str) -> dict[str, list[str]]:
    """The lines of a table by their first cell."""
    table = text.partition(f"<!-- figures: {name} -->")[2].partition("<!-- end -->")[0]
    lines = [line.strip("|").split("|") for line in table.strip().splitlines()[2:]]
    return {cells[0].strip(" *"): [cell.strip(" *") for cell in cells[1:]] for cells in lines}


def test_line_by_line_and_its_aims() -> None:
    results = some_results()
    for number in range(2):
        for server, times in (
            ("evloop-on-line", 1.0),
            ("evloop-on-lines", 0.5),
            ("evloop-lines", 0.6),
            ("evloop-batches", 0.6),
        ):
            results.add("inflight-16", server, number, {"cpu_us": (1 + number) * times})
        results.add("inflight-16", "asyncio-streams", number, {"cpu_us": (1 + number) * 6.0})
    text = fill_tables.filled((ROOT / "docs" / "performance.md").read_text(), results)
    assert rows(text, "line-by-line")["evloop-lines"] == ["–", "–", "×0.600", "–"]
    assert rows(text, "line-by-line")["asyncio-streams"] == ["–", "–", "×6.00", "–"]
    assert "| evloop-lines | 16 | evloop-on-lines | at most ×1.35 | ×1.20 (1.20–1.20) | yes |\n" in text
    assert "| evloop-batches | 16 | evloop-on-lines | at most ×1.1 | ×1.20 (1.20–1.20) | no |\n" in text
    assert "| evloop-batches | 256 | evloop-on-lines | at most ×1.1 | – | – |\n" in text
    assert "| asyncio-streams | 16 | evloop-lines | at least ×8 | ×10.00 (10.00–10.00) | yes |\n" in text


def test_whatever_is_in_a_table_takes_part_where_it_is_compared() -> None:
    """So that a run of everything fills in all of it."""
    for server in (*fill_tables._LINE_BY_LINE, *(aim[0] for aim in fill_tables._AIMS)):
        for scenario in fill_tables._IN_FLIGHT:
            assert SCENARIOS[scenario].servers is None or server in SCENARIOS[scenario].servers
            assert not PEERS[server].only_in or scenario in PEERS[server].only_in


@pytest.mark.parametrize("document", fill_tables.ANALYSES, ids=lambda path: path.name)
def test_tables_are_filled_in(document: Path) -> None:
    text = fill_tables.filled(document.read_text(), some_results())
    assert rows(text, "servers")["evloop"] == ["ours", "5.20", "1.00", "–", "–"]
    assert rows(text, "servers")["asyncio-protocol"] == ["tuned", "7.80", "1.50", "–", "–"]
    assert rows(text, "latency")["300"][:1] == ["16"]  # the later of two
    assert "| 300 | 1 | 200,000 | 1.50 | 1.49 | 12.3 |\n" in text  # 300 / 200,000 s: Little's law
    assert rows(text, "kernel")["evloop"] == ["3.90", "1.30", "–", "–"]


def test_the_table_of_tls_has_ours_their_ratios_and_what_plaintext_costs() -> None:
    text = fill_tables.filled((ROOT / "docs" / "performance.md").read_text(), some_results())
    assert rows(text, "tls") == {
        "evloop": ["10.0", "–", "–", "–", "–", "17,600"],
        "uvloop-protocol": ["×3.00 (3.00–3.00)", "–", "–", "–", "–", "×2.61 (2.61–2.61)"],
        **{server: ["–"] * 6 for server in OVER_TLS if server not in ("evloop", "uvloop-protocol")},
        "python-floor": ["–", "–", "–", "", "", ""],
        "ours, times plaintext": ["×1.93 (1.85–2.00)", "–", "", "", "", ""],
    }


@pytest.mark.parametrize("document", fill_tables.DOCUMENTS, ids=lambda path: path.name)
def test_only_lines_of_tables_change(document: Path) -> None:
    before = document.read_text()
    after = fill_tables.filled(before, some_results())
    assert fill_tables.filled(after, some_results()) == after
    assert re.findall(r"^(?!\|).*$", after, re.MULTILINE) == re.findall(r"^(?!\|).*$", before, re.MULTILINE)
    for name in re.findall(r"<!-- figures: ([\w-]+) -->", before):
        assert name in fill_tables.TABLES
        found = after.partition(f"<!-- figures: {name} -->")[2].partition("<!-- end -->")[0].strip().splitlines()
        assert {line.count("|") for line in found} == {found[0].count("|")}


def test_check_says_which_document_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "versus.json"
    file.write_text(as_document(some_results(), MACHINE, []))
    assert fill_tables.main([str(file), "--check"]) == fill_tables.EXIT_DIFFERENT
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "docs/analysis.md",
        "docs/analysis.id.md",
        "docs/performance.md",
    ]


def test_no_results_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fill_tables.main([str(tmp_path / "none.json")]) == EXIT_CANNOT_RUN
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(not RESULTS.exists(), reason="no results are kept")
def test_documents_say_what_the_results_say() -> None:
    assert fill_tables.main([str(RESULTS), "--check"]) == 0
