"""What is typed is what is sent, and nothing else: at a pseudo-terminal, in every kind of locale, with all keys."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

import pexpect
import pytest

from paths import CLIENT, ROOT
from process.commands import PYTHON
from processes import listening_socket
from waiting import DEADLINE_S

pytest.importorskip("readline")

# The locale that Python sets for itself in the first two is one of UTF-8; it must not in the next ones.
LOCALES = {
    "LANG=C": {"LANG": "C"},
    "LANG=POSIX": {"LANG": "POSIX"},
    "LC_ALL=C": {"LC_ALL": "C"},
    "LC_ALL=POSIX": {"LC_ALL": "POSIX"},
    "LC_ALL=not installed": {"LC_ALL": "xx_YY.UTF-8"},
    "LANG=not installed": {"LANG": "xx_YY"},
    "LC_CTYPE=C, as it is": {"LC_CTYPE": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "LC_ALL=C, as it is": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "UTF-8": {"LC_ALL": "C.UTF-8"},
    "none": {},
}

TAB, ESC = "\t", "\x1b"
# Readline's commands that complete: all of them take names of files, if nobody else knows better.
COMPLETIONS = [TAB, TAB + TAB, ESC + "?", ESC + "*", ESC + "=", ESC + ESC, ESC + TAB, ESC + "&", ESC + "/", ESC + "~"]


class Listener:
    """A server that keeps every byte that it gets, and answers each line with 0."""

    def __init__(self) -> None:
        self._socket = listening_socket()
        self.port = self._socket.getsockname()[1]
        self.received = b""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        connection, _ = self._socket.accept()
        with connection:
            connection.settimeout(DEADLINE_S)
            try:
                while data := connection.recv(65536):
                    self.received += data
                    connection.sendall(b"0\n" * data.count(b"\n"))
            except (ConnectionError, TimeoutError):
                pass

    def close(self) -> None:
        """Once the client is gone."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE_S)
        self._socket.close()


@pytest.fixture
def type_lines(tmp_path) -> Callable[..., bytes]:
    """Types lines at the client's prompt, and returns what the server got. There are files that could be completed."""
    for name in ("names-of-files", "must", "not", "be-sent"):
        (tmp_path / name).touch()
    (tmp_path / "home").mkdir()

    def talk(*lines: str, environment: dict[str, str], program: str = "") -> bytes:
        plain = {name: os.environ[name] for name in ("PATH", "PYTHONDONTWRITEBYTECODE") if name in os.environ}
        home = {"HOME": str(tmp_path / "home"), "INPUTRC": "/dev/null", "TERM": "dumb"}
        server = Listener()
        command = ["-c", program] if program else [CLIENT]
        child = pexpect.spawn(
            PYTHON[0],
            [*PYTHON[1:], *command, "--port", str(server.port)],
            encoding="utf-8",
            timeout=DEADLINE_S,
            dimensions=(24, 200),
            cwd=str(tmp_path),
            env={**plain, **home, **environment},
        )
        child.delaybeforesend = None
        try:
            for line in lines:
                child.expect_exact("> ")
                child.send(line + "\r")
                child.expect_exact("\r\n0\r\n")
                talk.screen += child.before
            child.expect_exact("> ")
            child.send("\x04")
            child.expect(pexpect.EOF)
        finally:
            child.close(force=True)
            server.close()
        assert child.exitstatus == 0
        return server.received

    talk.screen = ""
    return talk


@pytest.mark.parametrize("environment", LOCALES.values(), ids=LOCALES)
def test_text_beyond_ascii_is_sent_as_it_is(type_lines, environment):
    texts = ["é", "日本語", "aé日b", "\u20ac 5", "👍🏽", "Ωמ", "×ÿ"]
    assert type_lines(*texts, environment=environment) == "".join(f"{text}\n" for text in texts).encode()


@pytest.mark.parametrize("environment", LOCALES.values(), ids=LOCALES)
def test_a_character_is_deleted_as_a_whole(type_lines, environment):
    assert type_lines("日本語\x7f", "éé\x7f", environment=environment) == "日本\né\n".encode()


@pytest.mark.parametrize("environment", [LOCALES["LC_ALL=C"], LOCALES["UTF-8"]], ids=["C", "UTF-8"])
@pytest.mark.parametrize("start", ["", "n", "n ~", "日"], ids=ascii)
def test_nothing_is_completed(type_lines, environment, start):
    sent = type_lines(*(start + key for key in COMPLETIONS), environment=environment)
    for line in sent.decode().splitlines():
        # TAB, and ESC after ESC, stand for themselves; a key that is no command does nothing.
        assert line.rstrip(TAB + ESC) == start, sent


def test_tab_is_a_character(type_lines):
    assert type_lines("a\tb", "\t", environment=LOCALES["LC_ALL=C"]) == b"a\tb\n\t\n"


def test_tab_is_a_character_for_those_who_complete_with_it_elsewhere(type_lines, tmp_path):
    (tmp_path / "inputrc").write_text("TAB: complete\nset completion-ignore-case on\n")
    environment = {**LOCALES["UTF-8"], "INPUTRC": str(tmp_path / "inputrc")}
    assert type_lines("a\tb", "n\t", environment=environment) == b"a\tb\nn\t\n"


def test_without_any_locale_of_utf8(type_lines):
    """As on systems that have none: bytes are bytes."""
    program = (
        "import locale, os\n"
        "from evloop.charcount.cli import client, terminal\n"
        "terminal._UTF8_LOCALES = ()\n"
        "assert locale.setlocale(locale.LC_CTYPE) == 'C'\n"
        "raise SystemExit(client.main())"
    )
    texts = ["é", "日本語", "aé日b", "👍🏽"]
    sent = type_lines(*texts, environment={**LOCALES["LC_ALL=C"], "PYTHONPATH": str(ROOT)}, program=program)
    assert sent == "".join(f"{text}\n" for text in texts).encode()
    assert all(text in type_lines.screen for text in texts)


def test_a_paste_of_lines_is_lines(type_lines):
    """A terminal that brackets what is pasted: readline takes it as one line with breaks in it."""
    pasted = f"{ESC}[200~one\rtwo\tdrei\rthree{ESC}[201~"
    environment = {**LOCALES["UTF-8"], "TERM": "xterm"}
    assert type_lines(pasted, environment=environment) == b"one\ntwo\tdrei\nthree\n"
