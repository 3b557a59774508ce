"""versus.py: its statistics, its tables, and short real runs that must notice what is wrong."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.comparison import report
from benchmarks.comparison.commands import COMMANDS
from benchmarks.comparison.payload import make_messages, write_payload
from benchmarks.comparison.results import Results
from benchmarks.comparison.rounds import participants
from benchmarks.comparison.runner import RunError, figures, measure_memory, memory_bytes, running, settled
from benchmarks.comparison.scenarios import GROWTHS, SCENARIOS
from benchmarks.comparison.statistics import estimate, paired_ratio
from benchmarks.peers.registry import OURS, PEERS
from evloop_bench.common import native
from evloop_bench.common.paths import ROOT
from evloop_bench.common.texts import ALPHABETS
from variants import first_of

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no C compiler")
VERSUS = [sys.executable, str(ROOT / "benchmarks" / "versus.py")]

# ---------------------------------------------------------------------- statistics


def test_an_estimate_is_the_median_inside_its_interval() -> None:
    found = estimate([3.0, 1.0, 2.0, 50.0, 2.5])
    assert found.value == 2.5
    assert 1.0 <= found.low <= found.value <= found.high <= 50.0
    assert found.rounds == 5


def test_an_estimate_of_equal_values_is_certain() -> None:
    found = estimate([4.0] * 6)
    assert (found.low, found.value, found.high) == (4.0, 4.0, 4.0)


def test_an_interval_gets_narrower_with_more_rounds() -> None:
    few, many = estimate([1.0, 2.0, 3.0, 4.0, 5.0]), estimate([1.0, 2.0, 3.0, 4.0, 5.0] * 20)
    assert many.high - many.low < few.high - few.low


def test_an_estimate_is_the_same_each_time() -> None:
    values = [1.0, 7.0, 3.0, 4.0]
    assert estimate(values) == estimate(values)


def test_no_values_give_no_estimate() -> None:
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_a_ratio_is_taken_within_rounds() -> None:
    # The machine got three times slower from round to round, for both: the ratio is certain all the same.
    ours = {0: 1.0, 1: 3.0, 2: 9.0}
    found = paired_ratio({number: 2 * value for number, value in ours.items()}, ours)
    assert found is not None
    assert (found.low, found.value, found.high) == (2.0, 2.0, 2.0)


def test_a_ratio_needs_a_round_that_both_have() -> None:
    assert paired_ratio({0: 1.0}, {1: 1.0}) is None
    found = paired_ratio({0: 4.0, 1: 9.0}, {0: 2.0})
    assert found is not None
    assert (found.value, found.rounds) == (2.0, 1)


# ---------------------------------------------------------------------- payload


@pytest.mark.parametrize("kind", ALPHABETS)
@pytest.mark.parametrize("size", [32, 8000])
def test_messages_are_of_the_size_asked_for_and_differ(kind: str, size: int) -> None:
    messages = make_messages(kind, size, depth=256)
    assert len(messages) >= 256
    sizes = [len(message) + 1 for message in messages]
    assert 0.85 * size <= sum(sizes) / len(sizes) <= 1.05 * size
    texts = [message.decode() for message in messages]
    assert len({len(text) for text in texts}) > 2
    assert set("".join(texts)) <= set(ALPHABETS[kind])
    assert not any("\n" in text or "\r" in text for text in texts)


def test_the_replies_written_are_the_right_ones(tmp_path: Path) -> None:
    payload = write_payload(tmp_path, "mixed", 64, 16)
    lines = payload.messages.read_bytes().split(b"\n")[:-1]
    assert payload.replies.read_text().split() == [str(len(line.decode())) for line in lines]
    assert payload.mean_bytes == pytest.approx(payload.messages.stat().st_size / len(lines))


# ---------------------------------------------------------------------- figures and tables

RAW = {
    "messages": 1000,
    "connections_done": 500,
    "seconds": 2.0,
    "server_cpu_s": 0.5,
    "server_user_s": 0.1,
    "server_system_s": 0.3,
    "generator_cpu_s": 2.0,
    "p50_us": 1.0,
    "p99_us": 2.0,
    "p999_us": 3.0,
}


def test_cost_is_per_message_and_for_churn_per_connection() -> None:
    found = figures(RAW, SCENARIOS["inflight-1"], 32.0)
    assert (found["cpu_us"], found["per_s"]) == (500.0, 500.0)
    assert (found["server_busy"], found["generator_busy"], found["kernel_share"]) == (0.25, 1.0, pytest.approx(0.75))
    assert figures(RAW, SCENARIOS["churn"], 32.0)["cpu_us"] == 1000.0


def test_a_run_without_an_answer_gives_no_figure() -> None:
    with pytest.raises(RunError, match="no message"):
        figures({**RAW, "messages": 0}, SCENARIOS["inflight-1"], 32.0)


@pytest.fixture
def results() -> Results:
    found = Results()
    for number, drift in enumerate((1.0, 1.5, 1.2)):
        for server, cost, busy in (("evloop", 5.0, 0.99), ("uvloop-protocol", 6.0, 0.5), ("c-epoll", 4.5, 0.99)):
            for scenario in ("inflight-1", "connections-100"):
                figure = {"cpu_us": cost * drift, "server_busy": busy, "generator_busy": 1.0, "per_s": 1.0}
                found.add(scenario, server, number, {**figure, "mean_message_bytes": 32.0})
        found.add("idle-10000", "evloop", number, {"cpu_us": 5.5 * drift, "mean_message_bytes": 32.0})
    found.fail("inflight-1", "trio", "wrong reply: expected 3, got 4")
    return found


def test_a_table_is_sorted_and_says_the_kind_the_ratio_and_what_is_doubtful(results: Results) -> None:
    text = report.as_text(results, SCENARIOS["inflight-1"])
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[3:6]] == ["c-epoll", "evloop", "uvloop-protocol"]
    assert "native" in lines[3]
    assert "0.90" in lines[3]
    assert "ours" in lines[4]
    assert "† " in lines[5]
    assert "1.20 - 1.20" in lines[5]
    assert "† not busy all the time, so its rate is not its limit: uvloop-protocol 50 %." in text
    assert "trio failed in 1 round: wrong reply: expected 3, got 4" in text


def test_a_table_says_when_something_else_was_using_the_machine(results: Results) -> None:
    text = "Something else was using the machine"
    assert text not in report.as_text(results, SCENARIOS["inflight-1"])
    results.add("open-half", "evloop", 0, {"p999_us": 9.0, "server_busy": 0.5, "generator_busy": 0.6})
    shown = report.as_text(results, SCENARIOS["open-half"])
    assert f"{text} (the generator got only 60 % of its core at worst)" in shown
    assert "†" not in shown


def test_growth_compares_each_server_with_itself(results: Results) -> None:
    (line,) = report.growth_rows(results)[1]
    assert line[:5] == ["evloop", "ours", "idle-10000", "connections-100", "CPU per message"]
    assert line[5] == "1.10"


def test_the_document_has_every_table_and_our_line_in_bold(results: Results) -> None:
    scenarios = [SCENARIOS["inflight-1"], SCENARIOS["connections-100"]]
    page = report.document(results, scenarios, "a machine", ["some.png"])
    assert page.count("\n### ") == 3
    assert "| **evloop** | **ours** | **6.00** |" in page
    assert "![some](some.png)" in page


def test_results_survive_the_file(results: Results) -> None:
    again = Results.from_json(json.loads(json.dumps(results.to_json())))
    assert again.runs == results.runs
    assert again.failures == results.failures


def test_scenarios_name_servers_and_scenarios_that_exist() -> None:
    for scenario in SCENARIOS.values():
        assert set(scenario.servers or ()) <= set(PEERS)
    assert set(COMMANDS) == {name for name, scenario in SCENARIOS.items() if scenario.mode == "command"}
    for growth in GROWTHS:
        assert {growth.scenario, growth.base} <= set(SCENARIOS)
        assert SCENARIOS[growth.scenario].family == SCENARIOS[growth.base].family


def test_the_floor_takes_part_where_a_loop_is_measured_and_wherever_it_is_asked_for() -> None:
    def with_floor(chosen: list[str] | None) -> set[str]:
        return {name for name, scenario in SCENARIOS.items() if floor in participants(scenario, chosen)}

    floor = PEERS["python-floor"]
    without_tls = {"inflight-1", "inflight-16", "inflight-256", "churn"}
    assert with_floor(None) == without_tls | {"tls-1", "tls-16", "tls-records"}
    assert with_floor(["python-floor"]) == set(SCENARIOS)
    assert all(set(peer.only_in) <= set(SCENARIOS) for peer in PEERS.values())


# ---------------------------------------------------------------------- memory


@pytest.mark.slow
def test_memory_is_read_when_it_has_stopped_growing() -> None:
    growing = itertools.chain(range(0, 20 << 20, 1 << 20), itertools.repeat(20 << 20))
    assert settled(growing.__next__) == 20 << 20


def test_memory_that_never_settles_gives_no_figure() -> None:
    with pytest.raises(RunError, match=r"does not settle: still changing after 0\.2 s"):
        settled(itertools.count(step=1 << 20).__next__, timeout_s=0.2)


@pytest.mark.slow
def test_a_connections_memory_does_not_hold_what_a_server_loads_once() -> None:
    connections = 300
    with running(PEERS[OURS]) as server:
        fresh = memory_bytes(server.pid)
        found = measure_memory(server, connections)
    assert 500 < found["bytes"] < 1500
    assert found["total_bytes"] - fresh > connections * 2000, "it has loaded what it logs with meanwhile"


# ---------------------------------------------------------------------- real runs


def run_versus(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*VERSUS, *arguments], capture_output=True, text=True, timeout=60)


@needs_compiler
def test_a_comparison_from_end_to_end(tmp_path: Path) -> None:
    found = run_versus(
        *("--scenario", "inflight-16", "--servers", "evloop,c-epoll", "--rounds", "2"),
        *("--duration", "0.05", "--warmup", "0.01", "--json", str(tmp_path / "out.json")),
    )
    assert found.returncode == 0, found.stderr
    document = json.loads((tmp_path / "out.json").read_text())
    assert [(run["server"], run["round"]) for run in document["runs"]] == [
        ("evloop", 0),
        ("evloop", 1),
        ("c-epoll", 0),
        ("c-epoll", 1),
    ]
    assert all(run["messages"] > 0 and run["cpu_us"] > 0 for run in document["runs"])
    assert document["machine"]["cpu"] in found.stdout
    again = run_versus("--from", str(tmp_path / "out.json"))
    assert again.stdout.strip() == found.stdout.strip()


@pytest.mark.parametrize("option", [("--scenario", "nonsense"), ("--servers", "evloop,nonsense")])
def test_unknown_names_are_a_usage_error_that_lists_the_known_ones(option: tuple[str, str]) -> None:
    found = run_versus(*option)
    assert found.returncode == 2
    assert "no 'nonsense'; there are: " in found.stderr


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    found = run_versus("--scenario", "inflight-1")
    assert found.returncode == 3
    assert found.stderr.startswith("versus.py: cannot run: no C compiler")
    assert len(found.stderr.splitlines()) == 1


# ---------------------------------------------------------------------- the generator


class BadServer:
    """Answers as `reply` says, on one connection after the other."""

    def __init__(self, reply: str) -> None:
        self.reply = reply
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        # A generator that has seen enough resets: also in the middle of a line.
        with contextlib.suppress(ConnectionError), sock, sock.makefile("rb") as lines:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for answered, line in enumerate(lines, 1):
                count = len(line) - 1
                if answered == 10_000:
                    if self.reply == "closes":
                        return
                    count += 1
                sock.sendall(b"%d\n" % count)

    def close(self) -> None:
        # Wakes an accept that is still waiting.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@pytest.fixture
def bad_server(request: pytest.FixtureRequest) -> Iterator[BadServer]:
    server = BadServer(request.param)
    yield server
    server.close()


@needs_compiler
@pytest.mark.parametrize(
    ("bad_server", "complaint"),
    [("miscounts", "wrong reply: expected "), ("closes", "closed a connection with |Connection reset")],
    indirect=["bad_server"],
)
def test_the_generator_catches_one_bad_reply_in_ten_thousand(
    bad_server: BadServer, complaint: str, tmp_path: Path
) -> None:
    payload = write_payload(tmp_path, "ascii", 32, 16)
    driver = native.build(ROOT / "benchmarks" / "drive.c")
    found = subprocess.run(
        [
            *(str(driver), "--mode=closed", f"--port={bad_server.port}", "--server-pid=1", "--depth=16"),
            *(f"--payload={payload.messages}", f"--replies={payload.replies}", "--duration-s=20"),
        ],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert found.returncode == 1
    assert re.search(complaint, found.stderr)
    assert found.stdout == ""


@needs_compiler
@pytest.mark.parametrize("mode", first_of("churn", "open"))
def test_the_other_modes_of_the_generator(mode: str, tmp_path: Path) -> None:
    scenario = {"churn": "churn", "open": "open-half"}[mode]
    found = run_versus(
        *("--scenario", scenario, "--servers", "c-epoll", "--rounds", "1"),
        *("--duration", "0.05", "--warmup", "0.01", "--json", str(tmp_path / "out.json")),
    )
    assert found.returncode == 0, found.stdout + found.stderr
    (run,) = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert run["per_s"] > 100
