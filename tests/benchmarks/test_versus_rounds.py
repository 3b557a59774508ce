"""versus.py on a machine that changes its speed, and under other Pythons."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import versus
from benchmarks.comparison import calibration, files, report, rounds
from benchmarks.comparison.results import Results
from benchmarks.comparison.runner import RunError, Runner
from benchmarks.comparison.scenarios import SCENARIOS, Scenario
from benchmarks.peers.registry import PEERS, Peer
from evloop_bench.common import machine, native
from evloop_bench.common.paths import ROOT
from evloop_bench.common.streams import EXIT_CANNOT_RUN

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no C compiler")
VERSUS = [sys.executable, str(ROOT / "benchmarks" / "versus.py")]
SHORT = ["-s", "inflight-16", "-S", "c-epoll", "-r", "1", "--duration", "0.05", "--warmup", "0.01"]
MACHINE = {"cpu": "some", "cores": 2, "kernel": "some", "python": "some", "commit": "some", "versions": {}}


def run_versus(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([*VERSUS, *arguments], text=True, timeout=60, **streams)


def one_line(text: str) -> str:
    """The only line of it."""
    (line,) = text.splitlines()
    return line


# ---------------------------------------------------------------------- a machine that changes its speed


SERVERS = [PEERS["evloop"], PEERS["asyncio-protocol"]]


class FakeRunner(Runner):
    """Gives each run a cost of its own: 1.0 for the first, 2.0 for the second, ..."""

    def __init__(self, fail: Callable[[Peer], Exception | None] = lambda peer: None) -> None:
        self.runs = 0
        self._fail = fail

    def run(self, scenario: Scenario, peer: Peer, seed: int, rate: float = 0) -> dict[str, float]:
        self.runs += 1
        error = self._fail(peer)
        if error is not None:
            raise error
        return {"cpu_us": float(self.runs), "per_s": 1.0}


def compared(runner: Runner, calibrations_us: list[float], number_of_rounds: int = 1) -> Results:
    """Compare two servers, with these calibrations: one before each run, and one after the last."""
    results = Results()
    times = iter(calibrations_us)
    comparison = rounds.Comparison(
        results, runner, lambda scenario: SERVERS, number_of_rounds, times.__next__, lambda text: None
    )
    for _ in comparison.run([SCENARIOS["churn"]]):
        pass
    assert next(times, None) is None, "it was calibrated less often"
    return results


def costs(results: Results, server: str) -> list[float]:
    return list(results.by_round("churn", server, "cpu_us").values())


def test_a_steady_round_is_done_once() -> None:
    results = compared(FakeRunner(), [1.0, 1.1, 1.05])
    assert (costs(results, "evloop"), costs(results, "asyncio-protocol")) == ([1.0], [2.0])
    assert not results.repeated
    assert not results.unsteady
    assert results.by_round("churn", "asyncio-protocol", "calibration_us") == {0: 1.1}


def test_a_round_in_which_the_machine_changed_its_speed_is_done_again() -> None:
    results = compared(FakeRunner(), [1.0, 1.0, 1.3, 1.3, 1.3, 1.3])
    assert (costs(results, "evloop"), costs(results, "asyncio-protocol")) == ([3.0], [4.0])
    assert results.repeated["churn"] == 1
    assert not results.unsteady
    assert "Rounds repeated, as the machine changed its speed in them: 1." in report.as_text(
        results, SCENARIOS["churn"]
    )


def test_repeating_ends_and_what_is_kept_is_marked() -> None:
    # Two rounds: two repetitions in all, which the first round takes. The steadiest attempt is kept.
    calibrations_us = [1.0, 1.0, 2.0, 1.0, 1.0, 1.5, 1.0, 1.0, 1.9, 1.0, 1.0, 1.4]
    results = compared(FakeRunner(), calibrations_us, number_of_rounds=2)
    assert costs(results, "evloop") == [3.0, 7.0]
    assert results.repeated["churn"] == 2
    assert results.unsteady == {"churn": [0, 1]}
    text = report.as_text(results, SCENARIOS["churn"])
    assert "The machine changed its speed in 2 of 2 rounds, and again when they were repeated" in text
    again = Results.from_json(json.loads(json.dumps(results.to_json())))
    assert report.as_text(again, SCENARIOS["churn"]) == text


@pytest.mark.parametrize(
    "error", [RunError("a wrong reply"), native.BuildError("no compiler"), OSError(11, "no more processes")]
)
def test_one_that_fails_costs_no_other_its_figures(error: Exception) -> None:
    results = compared(FakeRunner(lambda peer: error if peer.name == "evloop" else None), [1.0, 1.0, 1.0])
    assert costs(results, "asyncio-protocol") == [2.0]
    assert results.failures["churn"]["evloop"] == [str(error)]


def test_an_open_loop_whose_yardstick_fails_costs_no_other_scenario_its_figures() -> None:
    results = Results()
    runner = FakeRunner(lambda peer: RunError("broken") if peer.name == "asyncio-protocol" else None)
    comparison = rounds.Comparison(results, runner, lambda scenario: SERVERS, 1, lambda: 1.0, lambda text: None)
    scenarios = [SCENARIOS["open-half"], SCENARIOS["churn"]]
    assert [complete for complete in comparison.run(scenarios) if complete] == [[scenario] for scenario in scenarios]
    assert "its capacity is unknown: broken" in results.failures["open-half"]["asyncio-protocol"][0]
    assert results.runs["churn"]["evloop"]


def test_calibration_times_work_and_leaves_this_thread_where_it_was() -> None:
    from evloop_bench.common.processes import usable_cores

    before = usable_cores()
    assert 0.05 < calibration.calibrate(before[0]) < 1000
    assert usable_cores() == before
    assert calibration.spread([2.0, 3.0, 2.5]) == 1.5


# ---------------------------------------------------------------------- where figures are from


@pytest.mark.parametrize(
    ("options", "flags", "words"),
    [
        ("'--prefix=/home/me' '--enable-shared'", "", ["configured without PGO", "without LTO", "shared library"]),
        ("'--enable-optimizations' '--with-lto'", "", ["configured with PGO", "with LTO"]),
        ("'--with-lto=thin'", "-fprofile-use -O3", ["configured with PGO", "with LTO"]),
        ("'--disable-gil'", "-flto=auto", ["configured without PGO", "with LTO", "free-threaded"]),
    ],
)
def test_the_build_of_python_is_told(
    options: str, flags: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"CONFIG_ARGS": options, "PY_CORE_CFLAGS": flags}
    monkeypatch.setattr(machine.sysconfig, "get_config_var", values.get)
    monkeypatch.setattr(machine.platform, "python_implementation", lambda: "CPython")
    said = machine.python_build()
    assert said.rstrip(")").split(", ")[1:] == words
    assert "/home" not in said


def test_a_python_that_does_not_tell_how_it_was_built_is_named_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sysconfig, "get_config_var", lambda name: None)
    monkeypatch.setattr(machine.platform, "python_implementation", lambda: "PyPy")
    assert machine.python_build().startswith("PyPy ")
    assert "PGO" not in machine.python_build()


@needs_compiler
def test_the_file_says_which_build_its_figures_are_from(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(versus, "Runner", lambda directory, timing: FakeRunner())
        assert versus.main([*SHORT, "--json", str(tmp_path / "out.json")]) == 0
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["machine"]["python"] == machine.python_build()


def test_descriptors_are_raised_as_far_as_the_hard_limit_allows() -> None:
    code = """if True:
        import resource
        from evloop_bench.common.descriptors import raise_descriptor_limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (50, 100))
        for needed in (80, 60):
            print(raise_descriptor_limit(needed), resource.getrlimit(resource.RLIMIT_NOFILE))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert done.stdout == "True (80, 100)\nTrue (80, 100)\n"


# ---------------------------------------------------------------------- our server under other Pythons


@needs_compiler
@pytest.mark.slow
def test_our_server_takes_part_under_other_pythons_too(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    found = run_versus(*SHORT, "-S", "evloop", "--python", f"other={sys.executable}", "--json", str(file))
    assert found.returncode == 0, found.stderr
    results, described = files.read_document(file)
    assert results.runs["inflight-16"].keys() == {"evloop", "evloop@other"}
    assert described["versions"]["evloop@other"] == machine.python_build()
    (line,) = (line for line in found.stdout.splitlines() if line.startswith("evloop@other "))
    assert line.replace("†", "").split()[1] == "ours"


@pytest.mark.parametrize("value", ["/usr/bin/python3", "a=", "=/usr/bin/python3", "a=x,a=y", "a b=x"])
def test_another_python_needs_a_name_of_its_own(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        versus.main([*SHORT, "--python", value])
    assert ended.value.code == 2
    assert "--python" in capsys.readouterr().err


def test_another_python_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert versus.main([*SHORT, "--python", "other=/none/python3"]) == EXIT_CANNOT_RUN
    assert "evloop@other: there is no /none/python3" in one_line(capsys.readouterr().err)
