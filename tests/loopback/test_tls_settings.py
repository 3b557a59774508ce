"""What TLS is made from: files checked whole, chosen by name, reloaded; certificates of clients; versions; expiry."""

from __future__ import annotations

import datetime
import os
import shutil
import ssl
import time
from pathlib import Path

import pytest

from evloop import Protocol, TLSClientSettings, TLSServerSettings, TLSSettingsError
from evloop.net.tlssettings import EXPIRY_WARNING_S
from servers import Echo, recorder
from tlsworld import connect_tls, trustme, world
from waiting import wait_until


def serial(client: ssl.SSLSocket) -> str:
    """Which certificate the server has shown."""
    return str((client.getpeercert() or {})["serialNumber"])


@pytest.fixture
def files(tmp_path) -> tuple[str, str]:
    """A pair of files of this test's own."""
    certificate, key = world().pair
    return shutil.copy(certificate, f"{tmp_path}/server.pem"), shutil.copy(key, f"{tmp_path}/server.key")


def replace(files: tuple[str, str], by: tuple[str, str]) -> None:
    """As a renewal does it: other files under the old names."""
    for old, new in zip(files, by, strict=True):
        temporary = old + ".new"
        shutil.copy(new, temporary)
        os.replace(temporary, old)


# ---------------------------------------------------------------------- files that can't be used


def test_what_is_wrong_with_files_is_said_in_one_line(files, tmp_path):
    certificate, key = files
    other_certificate, other_key = world().issue("other", "localhost")
    text = tmp_path / "text.pem"
    text.write_text("hello")
    text.chmod(0o600)
    missing = str(tmp_path / "missing")
    for pair, expected in [
        ((missing, key), rf"cannot read {missing}: No such file or directory"),
        ((certificate, missing), rf"cannot read {missing}: No such file or directory"),
        ((certificate, other_key), rf"the key in {other_key} is not that of the certificate in {certificate}"),
        ((other_certificate, key), r"is not that of the certificate"),
        ((str(text), str(text)), rf"no certificate with its key in {text}"),
        ((certificate, certificate), r"no certificate with its key"),
        ((str(tmp_path), key), r"cannot read .*: Is a directory"),
    ]:
        Path(certificate).chmod(0o600)
        with pytest.raises(TLSSettingsError, match=expected) as raised:
            TLSServerSettings([pair])
        assert "\n" not in str(raised.value)
    with pytest.raises(TLSSettingsError, match="needs a certificate"):
        TLSServerSettings([])
    with pytest.raises(TLSSettingsError, match=rf"no certificates of authorities in {text}"):
        TLSServerSettings([files], client_ca=str(text))
    with pytest.raises(TLSSettingsError, match=rf"no certificates of authorities in {text}"):
        TLSClientSettings(ca=str(text))
    with pytest.raises(TLSSettingsError, match="needs its certificate"):
        TLSClientSettings(key=key)
    for wrong in ({"min_version": "1.1"}, {"client_certificates": "perhaps"}, {"handshake_timeout_s": 0}):
        with pytest.raises(ValueError):
            TLSServerSettings([files], **wrong)


def test_a_key_with_a_passphrase_is_an_error_and_no_question(files):
    from cryptography.hazmat.primitives import serialization

    certificate, key = files
    private = serialization.load_pem_private_key(Path(key).read_bytes(), None)
    Path(key).write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(TLSSettingsError, match=rf"the key in {key} has a passphrase.*openssl pkey"):
        TLSServerSettings([(certificate, key)])


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o660])
def test_a_key_that_others_can_read_is_an_error(files, mode):
    Path(files[1]).chmod(mode)
    with pytest.raises(TLSSettingsError, match=rf"others have access to the key in .*{mode:04o}.*chmod 600"):
        TLSServerSettings([files])
    Path(files[1]).chmod(0o640)
    TLSServerSettings([files])


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017


def test_a_certificate_out_of_its_time_is_an_error():
    day = datetime.timedelta(days=1)
    old = world().issue("old", "localhost", not_before=now() - 2 * day, not_after=now() - day)
    with pytest.raises(TLSSettingsError, match="has expired: renew it"):
        TLSServerSettings([old])
    early = world().issue("early", "localhost", not_before=now() + day, not_after=now() + 2 * day)
    with pytest.raises(TLSSettingsError, match="is not valid yet"):
        TLSServerSettings([early])


# ---------------------------------------------------------------------- which certificate


def test_the_certificate_is_chosen_by_name(start_tls):
    first = world().pair
    second = world().issue("second", "example.net", "*.example.net")
    third = world().issue("third", "Deep.Example.NET")
    server = start_tls(Echo, tls=TLSServerSettings([first, second, third]))
    shown = {}
    for name in ("localhost", "example.net", "www.example.net", "deep.example.net"):
        with connect_tls(server.address, name=name) as client:
            shown[name] = serial(client)
    assert shown["example.net"] == shown["www.example.net"]
    assert len(set(shown.values())) == 3
    unknown = world().client_context(check_hostname=False)
    for name in ("a.b.example.net", "example.info", "127.0.0.1"):  # the last one is not sent
        with connect_tls(server.address, unknown, name) as client:
            assert serial(client) == shown["localhost"]


# ---------------------------------------------------------------------- reload


def test_reload_is_for_the_next_handshake_and_open_connections_go_on(start_tls, files):
    settings = TLSServerSettings([files])
    server = start_tls(Echo, tls=settings)
    with connect_tls(server.address) as before:
        replace(files, world().issue("renewed", "localhost"))
        server.call(settings.reload)
        with connect_tls(server.address) as after:
            assert serial(before) != serial(after)
            for client in (before, after):
                client.sendall(b"still here")
                assert client.recv(100) == b"still here"


def test_files_that_are_bad_change_nothing(start_tls, files, logged):
    logged.expect("not reloaded, the old ones stay in force: no certificate")
    settings = TLSServerSettings([files])
    server = start_tls(Echo, tls=settings)
    Path(files[0]).write_text("half a certifica")
    with pytest.raises(TLSSettingsError):
        server.call(settings.reload)
    assert not server.call(settings.reload_and_log)
    for _ in range(2):
        with connect_tls(server.address) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"


def test_changed_files_are_noticed(start_tls, files, logged):
    logged.expect("certificates reloaded")
    logged.allow("not reloaded")  # if it looks between the two replacements
    settings = TLSServerSettings([files])
    server = start_tls(Echo, tls=settings)
    server.call(settings.watch, server.loop, 0.01)
    before = server.call(lambda: settings.certificates)
    replace(files, world().issue("noticed", "localhost"))
    wait_until(lambda: server.call(lambda: settings.certificates) is not before)
    with connect_tls(server.address) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    server.call(settings.stop_watching)
    timers = server.call(lambda: server.loop.timers)
    server.call(settings.stop_watching)
    assert server.call(lambda: server.loop.timers) == timers


def test_a_bad_file_is_said_once_and_a_good_one_again_is_taken(start_tls, files, logged):
    logged.expect("not reloaded")
    logged.expect("certificates reloaded")
    settings = TLSServerSettings([files])
    server = start_tls(Echo, tls=settings)
    good = Path(files[0]).read_bytes()
    server.call(settings.watch, server.loop, 0.001)
    Path(files[0]).write_text("bad")
    wait_until(lambda: any("not reloaded" in line for line in logged.lines))
    server.passes(50)
    assert sum("not reloaded" in line for line in logged.lines) <= 2  # a write is seen in the middle, perhaps
    Path(files[0]).write_bytes(good)
    wait_until(lambda: any("certificates reloaded" in line for line in logged.lines))
    server.call(settings.stop_watching)


# ---------------------------------------------------------------------- expiry


def test_a_certificate_that_expires_soon_is_warned_of(start_tls, logged):
    soon = now() + datetime.timedelta(days=13, hours=12)
    pair = world().issue("soon", "localhost", not_before=now() - datetime.timedelta(days=1), not_after=soon)
    settings = TLSServerSettings([world().pair, pair])
    (line,) = settings.expiry_warnings()
    assert "soon.pem expires in 13." in line
    assert "renew it" in line
    assert settings.expiry_warnings(time.time() - 86400) == []
    assert "has expired" in settings.expiry_warnings(time.time() + EXPIRY_WARNING_S)[0]
    logged.expect("expires in 13")
    server = start_tls(Echo, tls=settings)
    server.call(settings.watch, server.loop, 0.001)
    server.passes(20)
    server.call(settings.stop_watching)
    assert len(logged.lines) == 1  # once a day


# ---------------------------------------------------------------------- clients' certificates


def ask(address: tuple[str, int], chosen: ssl.SSLContext) -> bytes:
    """Connect, say much, and read: with TLS 1.3 a client believes that all is well until it reads."""
    with connect_tls(address, chosen) as client:
        client.sendall(b"let me in" * 1000)
        return client.recv(1)


def test_a_client_without_the_certificate_that_is_required(start_tls):
    protocol = recorder()
    server = start_tls(protocol, tls=world().settings(client_ca=world().ca))
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        chosen = world().client_context(maximum_version=version)
        with pytest.raises(ssl.SSLError, match=r"CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE"):
            ask(server.address, chosen)
    server.wait_empty()
    assert protocol.events == []
    assert server.server.tls.tally.failures == {"certificate": 2}
    assert server.server.stats.failed == 2


def test_a_client_with_a_certificate_from_somebody_else(start_tls):
    protocol = recorder()
    server = start_tls(protocol, tls=world().settings(client_ca=world().ca))
    stranger = trustme.CA()
    chosen = world().client_context()
    chosen.load_cert_chain(*world().issue("stranger", "mallory@example.org", by=stranger))
    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"), connect_tls(server.address, chosen) as client:
        client.recv(1)
    server.wait_empty()
    assert protocol.events == []
    assert server.server.tls.tally.failures == {"chain": 1}


def test_an_optional_certificate_may_be_missing_but_not_wrong(start_tls):
    told = []

    class Tells(Protocol):
        def on_connect(self) -> bytes:
            told.append(self.connection.tls)
            return b"welcome"

    settings = world().settings(client_ca=world().ca, client_certificates="optional")
    server = start_tls(Tells, tls=settings)
    with connect_tls(server.address) as client:
        assert client.recv(7) == b"welcome"
    chosen = world().client_context()
    chosen.load_cert_chain(*world().issue("bob", "bob@example.org", common_name="bob"))
    with connect_tls(server.address, chosen) as client:
        assert client.recv(7) == b"welcome"
    assert told[0].peer_certificate is None
    assert told[0].peer_subject == ""
    assert "commonName=bob" in told[1].peer_subject
    chosen = world().client_context()
    chosen.load_cert_chain(*world().issue("eve", "eve@example.org", by=trustme.CA()))
    with pytest.raises(ssl.SSLError), connect_tls(server.address, chosen) as client:
        client.recv(1)
    server.wait_empty()
    assert len(told) == 2


# ---------------------------------------------------------------------- versions


def test_the_least_version(start_tls):
    server = start_tls(Echo, tls=world().settings(min_version="1.3"))
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        connect_tls(server.address, world().client_context(maximum_version=ssl.TLSVersion.TLSv1_2))
    with connect_tls(server.address) as client:
        assert client.version() == "TLSv1.3"
    server.wait_empty()
    assert server.server.tls.tally.failures["version"] == 1


def test_version_1_1_is_never_spoken(start_tls):
    server = start_tls(Echo)
    chosen = world().client_context()
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        chosen.minimum_version = chosen.maximum_version = ssl.TLSVersion.TLSv1_1
    chosen.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        connect_tls(server.address, chosen)
    server.wait_empty()
    assert server.server.tls.tally.failures["version"] == 1
