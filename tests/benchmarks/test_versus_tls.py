"""versus.py with TLS: short real runs, a generator that notices what is wrong, and what is said of what is missing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import versus
from benchmarks.comparison.payload import write_payload
from benchmarks.comparison.rounds import participants
from benchmarks.comparison.runner import Runner, Timing
from benchmarks.comparison.scenarios import OVER_TLS, SCENARIOS
from benchmarks.peers.registry import PEERS
from evloop_bench.common import native
from evloop_bench.common.certificate import NoCertificate, write_certificate
from evloop_bench.common.paths import ROOT
from evloop_bench.common.streams import EXIT_CANNOT_RUN, EXIT_OK

SOURCE, TLS_PART = ROOT / "benchmarks" / "drive.c", ROOT / "benchmarks" / "drive_tls.h"


@pytest.fixture(scope="module")
def driver() -> str:
    try:
        return str(native.build(SOURCE, TLS_PART))
    except native.BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return write_certificate(tmp_path_factory.mktemp("tls"))
    except NoCertificate as error:
        pytest.skip(str(error))


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """No round is repeated because the machine is busy."""
    monkeypatch.setattr(versus, "calibrate", lambda core: 1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("steady")
def test_a_comparison_with_tls_from_end_to_end(
    driver: str, certificate: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    arguments = ["-s", "inflight-1,tls-1", "-S", "evloop", "-r", "1", "--duration", "0.5", "--warmup", "0.5"]
    assert versus.main([*arguments, "--json", str(file)]) == EXIT_OK
    runs = json.loads(file.read_text())["runs"]
    assert [run["scenario"] for run in runs] == ["inflight-1", "tls-1"]
    assert all(run["messages"] > 0 and run["cpu_us"] > 0 for run in runs)
    assert re.search(r"evloop +ours +tls-1 +inflight-1 +CPU per message +\d+\.\d\d", capsys.readouterr().out)


LOADS = {name: scenario for name, scenario in SCENARIOS.items() if scenario.tls and scenario.mode != "memory"}


@pytest.mark.parametrize(
    ("server", "loads"),
    [
        ("evloop", ["tls-records", "tls-resume"]),
        *(
            pytest.param(server, list(LOADS), marks=pytest.mark.slow)
            for server in ("evloop", "uvloop-protocol", "asyncio-protocol", "python-floor")
        ),
    ],
)
def test_everyone_answers_in_every_scenario_with_tls(
    driver: str, certificate: Path, tmp_path: Path, server: str, loads: list[str]
) -> None:
    reason = PEERS[server].missing()
    if reason is not None:
        pytest.skip(reason)
    runner = Runner(tmp_path, Timing(warmup_s=0, duration_s=0.3))
    runner.prepare_tls()
    # Few connections, so that a busy machine gets round to one of them in that time.
    for load in loads:
        assert runner.run(dataclasses.replace(LOADS[load], connections=2), PEERS[server], 1)["messages"] > 0


@pytest.mark.slow
def test_memory_of_idle_connections_with_tls(driver: str, certificate: Path, tmp_path: Path) -> None:
    runner = Runner(tmp_path, Timing())
    runner.prepare_tls()
    found = runner.run(SCENARIOS["tls-idle-memory"], PEERS["evloop"], 1)
    assert 10_000 < found["bytes"] < 22_000


def test_those_in_scenarios_with_tls_speak_it() -> None:
    assert all(PEERS[name].over_tls is not None for name in OVER_TLS)
    here = {name for name in OVER_TLS if PEERS[name].missing() is None}
    for scenario in SCENARIOS.values():
        if scenario.tls:
            assert here <= {peer.name for peer in participants(scenario, scenario.servers)}
    assert participants(SCENARIOS["tls-1"], ["c-epoll", "evloop", "twisted"]) == [PEERS["evloop"]]


# ---------------------------------------------------------------------- the generator


class TLSServer:
    """Answers right as often as it is told, then does something else.

    Attributes:
        reads: how many lines each read gave it.
        resumed: whether each of its connections went on with a session.
    """

    def __init__(self, certificate: Path, after: int, then: str, tickets: int) -> None:
        self.reads: list[int] = []
        self.resumed: list[bool | None] = []
        self._after, self._then = after, then
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._context.num_tickets = tickets
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        # Whoever has seen enough ends the connection, or never comes.
        with contextlib.suppress(OSError):
            while True:
                with self._context.wrap_socket(self._listener.accept()[0], server_side=True) as sock:
                    self._talk(sock)

    def _talk(self, sock: ssl.SSLSocket) -> None:
        answered = 0
        self.resumed.append(sock.session_reused)
        while data := sock.recv(65536):
            lines = data.splitlines()
            self.reads.append(len(lines))
            answered += len(lines)
            wrong = answered >= self._after
            if wrong and self._then == "ends":
                return
            sock.sendall(b"".join(b"%d\n" % (len(line) + wrong) for line in lines))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@pytest.fixture
def server(request: pytest.FixtureRequest, certificate: Path) -> Iterator[TLSServer]:
    found = TLSServer(certificate, **{"after": 5000, "then": "ends", "tickets": 2, **request.param})
    yield found
    found.close()


def drive(driver: str, server: TLSServer, tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    payload = write_payload(tmp_path, "ascii", 32, 16)
    command = [driver, "--tls", f"--port={server.port}", "--server-pid=1", *options]
    command += [f"--payload={payload.messages}", f"--replies={payload.replies}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(
    ("server", "complaint"),
    [
        ({"then": "miscounts"}, "wrong reply: expected "),
        ({"then": "ends"}, "ended .* without|closed a connection|reset"),
    ],
    indirect=["server"],
)
def test_one_bad_reply_among_thousands_is_noticed(
    driver: str, server: TLSServer, complaint: str, tmp_path: Path
) -> None:
    found = drive(driver, server, tmp_path, "--mode=closed", "--depth=16", "--duration-s=20")
    assert found.returncode == 1
    assert re.search(complaint, found.stderr)
    assert found.stdout == ""


@pytest.mark.parametrize("server", [{"after": 10**9}], indirect=True)
@pytest.mark.parametrize(("options", "lines"), [(["--records"], 1), ([], 16)])
def test_messages_of_a_batch_are_one_record_or_a_record_each(
    driver: str, server: TLSServer, options: list[str], lines: int, tmp_path: Path
) -> None:
    found = drive(driver, server, tmp_path, "--depth=16", "--duration-s=0.02", "--warmup-s=0", *options)
    assert found.returncode == 0, found.stderr
    assert set(server.reads[1:]) == {lines}  # the first is one message, in any case


@pytest.mark.parametrize("server", [{"tickets": 0}], indirect=True)
def test_a_server_that_resumes_nothing_is_noticed(driver: str, server: TLSServer, tmp_path: Path) -> None:
    found = drive(driver, server, tmp_path, "--mode=churn", "--resume", "--duration-s=5")
    assert found.returncode == 1
    assert "sent no ticket" in found.stderr


@pytest.mark.parametrize("server", [{"after": 10**9}], indirect=True)
def test_each_connection_but_the_first_goes_on_with_a_session(driver: str, server: TLSServer, tmp_path: Path) -> None:
    found = drive(driver, server, tmp_path, "--mode=churn", "--resume", "--duration-s=0.2", "--warmup-s=0")
    assert found.returncode == 0, found.stderr
    assert server.resumed == [False, *[True] * (len(server.resumed) - 1)]
    assert len(server.resumed) > 1


# ---------------------------------------------------------------------- what is missing


def compiler_without_openssl(tmp_path: Path) -> str:
    """One that compiles all but what needs OpenSSL's headers."""
    script = tmp_path / "cc"
    complaint = "benchmarks/drive.c:34:10: fatal error: openssl/ssl.h: No such file or directory"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *-DWITH_TLS*) echo "{complaint}" >&2; exit 1 ;; esac\nexec {native.compiler()} "$@"\n'
    )
    script.chmod(0o755)
    return str(script)


@pytest.mark.skipif(native.compiler() is None, reason="no C compiler")
def test_without_openssls_headers_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", compiler_without_openssl(tmp_path))
    assert versus.main(["-s", "tls-1", "-S", "evloop"]) == EXIT_CANNOT_RUN
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("OpenSSL's headers are missing (install them, for instance: apt install libssl-dev)")
    runner = Runner(tmp_path, Timing())
    everything = [SCENARIOS["churn"], SCENARIOS["tls-1"]]
    assert versus.prepare_tls(runner, everything, asked_for=False) == [SCENARIOS["churn"]]
    assert "without the scenarios with TLS: OpenSSL's headers are missing" in capsys.readouterr().err


def test_without_what_makes_certificates_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(NoCertificate, match=r"trustme, .* is not installed: run"):
        write_certificate(tmp_path)


def test_a_scenario_in_which_nobody_can_take_part_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert versus.main(["-s", "tls-1", "-S", "c-epoll"]) == EXIT_CANNOT_RUN
    (line,) = capsys.readouterr().err.splitlines()
    assert "none of these servers can take part in tls-1" in line
