"""versus.py when something goes wrong: one line that says what, a status of its own, and no figure is lost."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import versus
from benchmarks.comparison import files, report
from benchmarks.comparison.results import Results
from evloop_bench.common import native
from evloop_bench.common.paths import ROOT
from evloop_bench.common.streams import EXIT_CANNOT_RUN, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_NOT_WRITTEN, EXIT_OK
from variants import first_of
from waiting import wait_until

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no C compiler")
VERSUS = [sys.executable, str(ROOT / "benchmarks" / "versus.py")]
SHORT = ["-s", "inflight-16", "-S", "c-epoll", "-r", "1", "--duration", "0.05", "--warmup", "0.01"]
MACHINE = {"cpu": "some", "cores": 2, "kernel": "some", "python": "some", "commit": "some", "versions": {}}


def run_versus(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([*VERSUS, *arguments], text=True, timeout=60, **streams)


def run_until_answered(
    run: Callable[[], subprocess.CompletedProcess[str]], kept: Callable[[], Iterable[Path]]
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """What ``run`` returned, and the file in which the figures are. So short a run may get no answer on a busy machine:
    then there are none to be kept, and it runs again.
    """
    for _ in range(5):
        found = run()
        for file in kept():
            if files.read_document(file)[0].runs.get("inflight-16"):
                return found, file
    pytest.fail(f"five runs without an answer: {found}")


def one_line(text: str) -> str:
    """The only line of it."""
    (line,) = text.splitlines()
    return line


# ---------------------------------------------------------------------- checked first


def test_a_rival_that_is_asked_for_and_not_installed_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvloop" else find(name))
    assert versus.main(["-s", "inflight-1", "-S", "evloop,uvloop-protocol"]) == EXIT_CANNOT_RUN
    said = capsys.readouterr()
    assert "uvloop-protocol: uvloop is not installed" in one_line(said.err)
    assert said.out == ""


@pytest.mark.parametrize("option", ["--json", "--out"])
@pytest.mark.parametrize("where", ["a-file/inside", "none/deeper/x", "a-directory"])
def test_what_cannot_be_written_is_said_before_anything_is_measured(
    option: str, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a-file").write_text("")
    (tmp_path / "a-directory").mkdir()
    if option == "--out":
        where = "a-file/inside" if where == "a-directory" else "a-file/deeper/x"  # a missing directory is made
    assert versus.main([*SHORT, option, str(tmp_path / where)]) == EXIT_CANNOT_RUN
    assert f"cannot write to {tmp_path}" in one_line(capsys.readouterr().err)


def test_the_check_leaves_nothing_behind_and_spoils_nothing(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("old")
    files.check_writable(tmp_path / "old.json", tmp_path / "made" / "out")
    files.check_writable(tmp_path / "new.json", None)
    assert (tmp_path / "old.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["made", "old.json", "out"]


# ---------------------------------------------------------------------- never lost


@needs_compiler
def test_figures_that_cannot_be_written_in_the_end_are_kept_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    found, kept = run_until_answered(
        lambda: run_versus(*SHORT, "--json", "/dev/full"), lambda: tmp_path.glob("versus-*.json")
    )
    assert found.returncode == EXIT_NOT_WRITTEN
    assert "cannot write to /dev/full: No space left on device" in found.stderr
    assert f"the figures are in {kept}" in found.stderr
    results, _ = files.read_document(kept)
    assert results.finished
    assert results.runs["inflight-16"]["c-epoll"][0]["messages"] > 0
    assert "c-epoll" in found.stdout


@needs_compiler
def test_figures_go_down_a_pipe_once(tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    with shown.open("w") as file:
        found = run_versus(*SHORT, "-r", "2", "--json", "/dev/stderr", stdout=file)
    document = json.loads(found.stderr)  # which would complain about a second one
    # On a busy machine so short a run may get no answer.
    failures = document["failures"].get("inflight-16", {}).get("c-epoll", [])
    assert len(document["runs"]) + len(failures) == 2
    assert found.returncode == (EXIT_FAILED if failures else EXIT_OK)
    assert "c-epoll" in shown.read_text()


@needs_compiler
@pytest.mark.parametrize("unbuffered", first_of("", "1"))
@pytest.mark.parametrize("with_json", [True, False])
def test_a_full_stdout_loses_no_figure(
    with_json: bool, unbuffered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    in_file = ["--json", str(tmp_path / "kept.json")] if with_json else []

    def run() -> subprocess.CompletedProcess[str]:
        with open("/dev/full", "w") as full:
            return run_versus(*SHORT, *in_file, stdout=full)

    found, kept = run_until_answered(run, lambda: tmp_path.glob("kept.json" if with_json else "versus-*.json"))
    assert found.returncode == EXIT_NOT_WRITTEN
    assert "cannot write to stdout: No space left on device" in found.stderr
    assert "Traceback" not in found.stderr
    assert "Exception ignored" not in found.stderr
    if not with_json:
        assert str(kept) in found.stderr


@pytest.mark.parametrize("arguments", [["--list"], ["--help"]])
def test_a_full_stdout_is_no_traceback_whatever_is_shown(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        found = run_versus(*arguments, stdout=full)
    assert found.returncode == EXIT_NOT_WRITTEN
    assert "Traceback" not in found.stderr
    assert "Exception ignored" not in found.stderr


@contextlib.contextmanager
def endless(file: Path) -> Iterator[subprocess.Popen[str]]:
    """A comparison that would take hours, with figures of a round or more in the file. Killed in the end."""
    with subprocess.Popen(
        [*VERSUS, *SHORT, "-r", "100000", "--json", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_until(file.exists, "the figures of the first round")
            yield process
        finally:
            process.kill()


@needs_compiler
@pytest.mark.parametrize("number", first_of(signal.SIGINT, signal.SIGTERM))
def test_an_interrupted_comparison_is_written_and_marked(number: signal.Signals, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    with endless(file) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == EXIT_INTERRUPTED
    assert "interrupted" in err
    assert "Traceback" not in err
    assert out.splitlines()[-1] == report.INTERRUPTED
    assert json.loads(file.read_text())["finished"] is False
    again = run_versus("--from", str(file))
    assert again.returncode == 0
    assert again.stdout == out


@needs_compiler
def test_one_that_is_killed_leaves_its_figures_and_no_server(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    with endless(file) as process:

        def measured() -> list[psutil.Process]:
            """The server, while the generator is there, too: then it is being looked after."""
            try:
                children = {child: child.name() for child in psutil.Process(process.pid).children()}
            except psutil.NoSuchProcess:  # one has just ended
                return []
            if not any(name.startswith("drive") for name in children.values()):
                return []
            return [child for child, name in children.items() if name.startswith("c_epoll")]

        def over(server: psutil.Process) -> bool:
            try:
                return bool(server.status() == psutil.STATUS_ZOMBIE)
            except psutil.NoSuchProcess:
                return True

        (server,) = wait_until(measured, "a server that is being measured")
        process.kill()
        process.communicate(timeout=30)
        wait_until(lambda: over(server), "the end of the server")
    results, _ = files.read_document(file)
    assert results.runs["inflight-16"]["c-epoll"]
    assert not results.finished


def test_the_page_of_an_interrupted_comparison_says_so() -> None:
    results = Results(finished=False)
    assert report.INTERRUPTED in report.document(results, [], "a machine", [])
    results.finished = True
    assert report.INTERRUPTED not in report.document(results, [], "a machine", [])


def test_help_says_each_exit_status() -> None:
    words = versus.make_parser().format_help().partition("Exit status:")[2].split()
    assert {"0", "1", "2", "3", "5", "130"} <= set(words)


# ---------------------------------------------------------------------- reading

GOOD = {"schema": files.SCHEMA, "machine": MACHINE, "runs": [], "failures": {}}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "No such file"),
        ("", "is not JSON"),
        (json.dumps(GOOD)[:-5], "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "was not written by versus.py"),
        ('{"schema": 1}', "was not written by versus.py"),
        (json.dumps({**GOOD, "schema": 99}), "has version 99"),
        (json.dumps({**GOOD, "machine": []}), "is damaged"),
        (json.dumps({**GOOD, "machine": {}}), "is damaged: the description of the machine"),
        (json.dumps({**GOOD, "machine": {**MACHINE, "versions": 1}}), "is damaged"),
        (json.dumps({**GOOD, "runs": 1}), "is damaged"),
        (json.dumps({**GOOD, "runs": [{"scenario": "churn", "round": 0}]}), "is damaged: 'server' is missing"),
        (json.dumps({**GOOD, "runs": [{"scenario": "gone", "server": "evloop", "round": 0}]}), "no scenario 'gone'"),
        (
            json.dumps({**GOOD, "runs": [{"scenario": "churn", "server": "evloop", "round": 0, "cpu_us": "x"}]}),
            "is damaged",
        ),
        (json.dumps({**GOOD, "failures": {"churn": 1}}), "is damaged"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_file_that_cannot_be_read_is_one_line(
    text: str | None, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "in.json"
    if text is not None:
        file.write_text(text)
    assert versus.main(["--from", str(file)]) == EXIT_CANNOT_RUN
    line = one_line(capsys.readouterr().err)
    assert str(file) in line
    assert complaint in line


def test_a_file_is_asked_for_what_it_does_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "in.json"
    file.write_text(json.dumps(GOOD))
    assert versus.main(["--from", str(file), "-s", "churn"]) == EXIT_CANNOT_RUN
    assert one_line(capsys.readouterr().err).endswith("has no figures of churn")


@pytest.mark.slow
def test_a_server_that_is_no_longer_here_is_shown_all_the_same(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = Results()
    for server in ("evloop", "a-former-rival"):
        results.add("inflight-1", server, 0, {"cpu_us": 1.0, "per_s": 1.0, "p99_us": 1.0})
    file = tmp_path / "in.json"
    file.write_text(files.as_document(results, MACHINE, []))
    found = run_versus("--from", str(file), "--out", str(tmp_path / "out"))
    assert found.returncode == 0, found.stderr
    assert "a-former-rival" in found.stdout
    assert "a-former-rival" in (tmp_path / "out" / "versus.md").read_text()
