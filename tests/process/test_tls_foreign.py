"""TLS with clients that are not ours: OpenSSL's, GnuTLS's, socat, curl, sslscan. Who is not installed is skipped."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from evloop import LineProtocol, TLSServerSettings
from tlsworld import trustme, world
from waiting import DEADLINE_S


class Lengths(LineProtocol):
    def on_line(self, line: bytes) -> bytes:
        return b"%d\n" % len(line)


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def run(*command: str | int, given: str = "") -> subprocess.CompletedProcess[str]:
    """A program with input that ends."""
    return subprocess.run(
        list(map(str, command)), input=given, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


class Talk:
    """A program with input that stays open until its answer has come; killed when that takes too long."""

    def __init__(self, *command: str | int) -> None:
        self.process = subprocess.Popen(
            ["timeout", "10", *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def wait_for(self, text: str) -> str:
        """Read lines until one has this in it, a regular expression; what was read."""
        assert self.process.stdout is not None
        seen = ""
        for line in self.process.stdout:
            seen += line
            if re.search(text, line):
                return seen
        raise AssertionError(f"no {text!r} in {seen}")

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.communicate()


def s_client(server, *options: str) -> list[str | int]:
    """The command of OpenSSL's client, which trusts the authority and insists on it."""
    return ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-servername", "localhost",
            "-CAfile", world().ca, "-verify_return_error", *options]  # fmt: skip


@needs("openssl")
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_speaks_each_version_and_resumes(start_tls, tmp_path, version):
    server = start_tls(Lengths)
    session = str(tmp_path / "session")
    for options, expected in [(["-sess_out", session], "New, TLSv1."), (["-sess_in", session], "Reused, TLSv1.")]:
        with Talk(*s_client(server, version, *options)) as talk:
            talk.say("hello\n")
            seen = talk.wait_for("^5$")
            assert expected in seen
            assert "Verify return code: 0 (ok)" in seen
            assert "No ALPN negotiated" in seen
            talk.say("Q\n")
            talk.process.wait(DEADLINE_S)
    server.wait_empty()
    tally = server.server.tls.tally
    assert tally.handshakes == 2
    assert tally.resumed == 1


@needs("openssl")
def test_openssl_updates_keys(start_tls):
    server = start_tls(Lengths)
    with Talk(*s_client(server, "-tls1_3")) as talk:
        talk.say("hello\n")
        talk.wait_for("^5$")
        for _ in range(3):
            talk.say("K\n")  # a KeyUpdate that wants ours, too
            talk.wait_for("KEYUPDATE")
            talk.say("three\n")
            talk.wait_for("^5$")


@needs("openssl")
def test_openssl_with_and_without_the_clients_certificate(start_tls):
    server = start_tls(Lengths, tls=world().settings(client_ca=world().ca))
    certificate, key = world().issue("carol", "carol@example.org")
    with Talk(*s_client(server, "-brief", "-cert", certificate, "-key", key)) as talk:
        talk.say("hello\n")
        talk.wait_for("^5$")
    for version, alert in (("-tls1_3", "certificate required"), ("-tls1_2", "handshake failure")):
        with Talk(*s_client(server, version)) as talk:
            talk.wait_for(alert)
    stranger, stranger_key = world().issue("dave", "dave@example.org", by=trustme.CA())
    with Talk(*s_client(server, "-cert", stranger, "-key", stranger_key)) as talk:
        talk.wait_for("unknown ca")
    server.wait_empty()
    assert server.server.tls.tally.failures == {"certificate": 2, "chain": 1, **truncated(server)}


def truncated(server) -> dict[str, int]:
    """Clients that just went, which some do: that is counted by itself."""
    count = server.server.tls.tally.failures["truncated"]
    return {"truncated": count} if count else {}


@needs("openssl")
@pytest.mark.parametrize(
    ("options", "said", "kind"),
    [
        (["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], "protocol version", "version"),
        (["-tls1_2", "-cipher", "AES128-SHA256"], "handshake failure", "cipher"),
        (["-CAfile", "OTHER"], "unable to get local issuer|self-signed|verify failed", "refused"),
        (["-verify_hostname", "example.com"], "verify error|[Hh]ostname mismatch", "refused"),
    ],
    ids=["version", "cipher", "authority", "name"],
)
def test_openssl_with_something_wrong(start_tls, tmp_path, options, said, kind):
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    server = start_tls(Lengths)
    options = [str(other) if option == "OTHER" else option for option in options]
    done = run(*s_client(server), *options, given="hello\n")
    assert re.search(said, done.stdout + done.stderr)
    server.wait_empty()
    assert server.server.tls.tally.failures[kind] == 1


@needs("gnutls-cli")
def test_gnutls(start_tls):
    server = start_tls(Lengths)
    for priority in ("NORMAL:-VERS-ALL:+VERS-TLS1.2", "NORMAL:-VERS-ALL:+VERS-TLS1.3"):
        with Talk("gnutls-cli", "--x509cafile", world().ca, "--priority", priority, "-p", server.port,
                  "localhost") as talk:  # fmt: skip
            talk.wait_for("Simple Client Mode")
            talk.say("hello\n")
            talk.wait_for("^5$")
    server.wait_empty()
    assert server.server.tls.tally.versions == {"TLSv1.2": 1, "TLSv1.3": 1}
    done = run("gnutls-cli", "--x509cafile", world().ca, "-p", server.port, "--sni-hostname", "localhost",
               "--verify-hostname", "example.com", "127.0.0.1")  # fmt: skip
    assert "does not match" in done.stdout + done.stderr


@needs("socat")
def test_socat(start_tls):
    server = start_tls(Lengths)
    done = run("socat", "-t5", "-", f"OPENSSL:localhost:{server.port},cafile={world().ca},pf=ip4", given="a\nbb\nccc")
    assert done.stdout == "1\n2\n3\n"
    server.wait_empty()


@needs("curl")
def test_curl(start_tls, logged):
    logged.expect("the client does not speak TLS")

    class Web(LineProtocol):
        def on_line(self, line: bytes) -> bytes:
            if line.strip():
                return b""
            self.connection.close()
            told = self.connection.tls
            assert told is not None
            return b"HTTP/1.0 200 OK\r\n\r\n" + told.version.encode()

    server = start_tls(Web)
    for version, option in (("TLSv1.2", "1.2"), ("TLSv1.3", "1.3")):
        done = run("curl", "-sS", "--http1.0", "--cacert", world().ca, "--tls-max", option,
                   f"https://localhost:{server.port}/")  # fmt: skip
        assert (done.stdout, done.returncode) == (version, 0), done.stderr
    refused = run("curl", "-sS", f"https://localhost:{server.port}/")
    assert refused.returncode == 60  # a certificate that it does not trust
    plain = run("curl", "-sS", "--http0.9", f"http://localhost:{server.port}/")
    assert plain.stdout.startswith("\x15\x03\x03")  # an alert
    server.wait_empty()


@needs("sslscan")
def test_sslscan_finds_nothing_old(start_tls, logged):
    logged.allow("does not speak TLS|left out")
    server = start_tls(Lengths, tls=TLSServerSettings([world().pair]))
    done = run("sslscan", "--no-colour", f"localhost:{server.port}")
    for line in ("SSLv2     disabled", "SSLv3     disabled", "TLSv1.0   disabled", "TLSv1.1   disabled",
                 "TLSv1.2   enabled", "TLSv1.3   enabled",
                 "Session renegotiation not supported"):  # fmt: skip
        assert line in done.stdout, done.stdout
    assert not re.search(r"vulnerable", done.stdout.replace("not vulnerable", ""))
    server.wait_empty()
