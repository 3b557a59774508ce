"""TLS at endpoints: one notation says where, and that it is TLS; settings say with which certificates."""

from __future__ import annotations

from pathlib import Path

import pytest

from evloop import EndpointError, EventLoop, ListenError, Server, serve
from evloop.net.state import State
from evloop.net.tlssettings import TLSClientSettings
from servers import Echo, Recorder, recorder
from tlsworld import world
from waiting import run_until


@pytest.mark.parametrize("where", ["tls:127.0.0.1:0", "tls:unix:cc", "tls:unix:@evloop-test-tls"])
def test_a_place_says_that_it_is_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.chdir(tmp_path)
    with EventLoop() as loop:
        server = Server(loop, Echo)
        (address,) = server.listen(where, tls=world().settings())
        assert address.startswith("tls:")
        assert server.status()["listening"] == [address]
        client: type[Recorder] = recorder()
        attempt = client()
        loop.connect(attempt, address, tls=TLSClientSettings(ca=world().ca, server_name="localhost"))
        attempt.connection.write(b"abc")
        run_until(loop, lambda: client.received() == b"abc", "the echo")
        assert server.status()["tls_handshakes"] == {"TLSv1.3": 1, "resumed": 0}
        connection = attempt.connection
        connection.close()
        run_until(loop, lambda: not server.connections and connection.state is State.CLOSED, "both ends' end")
        server.abort()


def test_what_is_served_by_tls_has_a_name_that_says_so() -> None:
    with EventLoop() as loop:
        server = Server(loop, Echo)
        (address,) = server.listen("127.0.0.1", 0, tls=world().settings())
        assert address.startswith("tls:127.0.0.1:")
        server.abort()


def test_a_place_of_tls_may_have_a_factory_of_its_own() -> None:
    with EventLoop() as loop:
        server = Server(loop, Echo)
        (address,) = server.listen("tls:127.0.0.1:0", connection_factory=world().settings().connection)
        assert address.startswith("tls:127.0.0.1:")
        server.abort()


def test_a_place_of_tls_needs_certificates(capsys: pytest.CaptureFixture[str]) -> None:
    with EventLoop() as loop:
        server = Server(loop, Echo)
        with pytest.raises(ListenError, match=r"^cannot listen on tls:127.0.0.1:0: TLS needs certificates; give tls="):
            server.listen("tls:127.0.0.1:0")
        with pytest.raises(EndpointError, match=r"^cannot connect to tls:h:1: give tls=TLSClientSettings\(...\)"):
            loop.connect(Echo(), "tls:h:1")
    with pytest.raises(SystemExit) as ended:
        serve(Echo, "tls:127.0.0.1:0")
    assert ended.value.code == 3
    assert "TLS needs certificates" in capsys.readouterr().err
