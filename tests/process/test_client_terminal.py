"""``charcount-client`` at a real pseudo-terminal: prompt, line editing, history, and each way to leave."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from interpreters import has_gnu_readline
from paths import CLIENT, SERVER
from process.commands import PYTHON, answering
from waiting import DEADLINE_S

PROMPT = "> "

LEFT = "\x1b[D"
UP = "\x1b[A"
CTRL_A, CTRL_C, CTRL_D, CTRL_K, BACKSPACE = "\x01", "\x03", "\x04", "\x0b", "\x7f"

try:
    import readline  # noqa: F401

    HAS_READLINE = True
except ImportError:
    HAS_READLINE = False

needs_readline = pytest.mark.skipif(not HAS_READLINE, reason="this Python has no readline")


@pytest.fixture
def terminal() -> Iterator[Callable[..., pexpect.spawn]]:
    """Starts a command in a pseudo-terminal; ended with the test."""
    running: list[pexpect.spawn] = []

    def start(*command: str) -> pexpect.spawn:
        child = pexpect.spawn(
            command[0],
            list(command[1:]),
            encoding="utf-8",
            timeout=DEADLINE_S,
            dimensions=(24, 80),
            env={**os.environ, "TERM": "dumb", "LC_ALL": "C.UTF-8", "INPUTRC": "/dev/null"},
        )
        child.delaybeforesend = None
        running.append(child)
        return child

    yield start
    for child in running:
        child.close(force=True)


@pytest.fixture
def talk(terminal: Any, service: Any) -> Callable[..., pexpect.spawn]:
    """Starts the client in a pseudo-terminal, and waits for its prompt."""

    def start(*arguments: str, port: int = service.address[1]) -> pexpect.spawn:
        child = terminal(*PYTHON, CLIENT, "--port", str(port), *arguments)
        child.expect_exact(PROMPT)
        return child

    return start


def ask(child: pexpect.spawn, line: str) -> str:
    """Type a line and Enter; the line that is printed before the next prompt."""
    child.send(line + "\r")
    child.expect_exact("\r\n")  # the end of the echo
    child.expect_exact(PROMPT)
    answer = child.before
    assert answer.endswith("\r\n")
    return answer.removesuffix("\r\n")


def leave(child: pexpect.spawn, how: str) -> int:
    """Type the key that ends it; its exit status."""
    child.send(how)
    child.expect(pexpect.EOF)
    child.close()
    assert child.signalstatus is None
    return child.exitstatus


# ---------------------------------------------------------------------- asking


def test_each_line_is_answered_before_the_next_prompt(talk):
    child = talk()
    assert [ask(child, line) for line in ("hello", "", "two words", "日本語")] == ["5", "0", "9", "3"]
    assert leave(child, CTRL_D) == 0
    assert child.before.endswith("\r\n")  # the shell's prompt stands on a line of its own


@needs_readline
@has_gnu_readline
def test_line_editing(talk):
    child = talk()
    assert ask(child, "abcX" + BACKSPACE) == "3"
    assert ask(child, "ad" + LEFT + "bc") == "4"
    assert ask(child, "cut me" + CTRL_A + CTRL_K + "ok") == "2"
    assert ask(child, "日本語" + BACKSPACE) == "2"
    assert leave(child, CTRL_D) == 0


@needs_readline
@has_gnu_readline
def test_history(talk):
    child = talk()
    assert ask(child, "hello") == "5"
    assert ask(child, "abc") == "3"
    assert ask(child, UP) == "3"
    assert ask(child, UP + UP) == "5"
    assert ask(child, UP + "!!") == "7"
    assert leave(child, CTRL_D) == 0


def test_error_of_the_server_does_not_end_the_conversation(talk, spawn):
    child = talk(port=spawn("--max-message", "3").address[1])
    assert ask(child, "four") == "charcount-client: message 1: the server answered 'ERR too-long limit 3'"
    assert ask(child, "abc") == "3"
    assert leave(child, CTRL_D) == 1


def test_classic(talk, spawn):
    child = talk("--classic", port=spawn("--classic").address[1])
    assert ask(child, "selamat pagi") == "Jumlah karakter: 12"
    assert ask(child, "") == "charcount-client: raw framing cannot carry an empty message"
    assert ask(child, "a") == "Jumlah karakter: 1"
    assert leave(child, CTRL_D) == 0


# ---------------------------------------------------------------------- leaving


def test_ctrl_c(talk):
    child = talk()
    assert ask(child, "abc") == "3"
    child.send("half a li")
    child.expect_exact("half a li")
    assert leave(child, CTRL_C) == 130
    assert "Traceback" not in child.before
    assert child.before.endswith("\r\n")


def test_ctrl_c_while_the_server_does_not_answer(talk, spawn):
    server = spawn()
    child = talk("--timeout", "1000", port=server.address[1])
    assert ask(child, "abc") == "3"
    server.stop()
    child.send("hello\r")
    child.expect_exact("hello\r\n")
    assert leave(child, CTRL_C) == 130
    assert "Traceback" not in child.before


def test_server_gone_in_mid_conversation(talk, spawn):
    server = spawn()
    child = talk(port=server.address[1])
    assert ask(child, "abc") == "3"
    server.popen.kill()
    server.wait()
    assert leave(child, "hello\r") == 3
    assert child.before.endswith(
        "\r\ncharcount-client: the server closed the connection before it had answered all messages\r\n"
    )


def test_timeout(talk, spawn):
    server = spawn()
    child = talk("--timeout", "0.2", port=server.address[1])
    server.stop()
    assert leave(child, "hello\r") == 4
    assert "charcount-client: no answer from the server in 0.2 s; see --timeout\r\n" in child.before


def test_no_server_is_said_before_any_prompt(terminal):
    child = terminal(*PYTHON, CLIENT, "--port", "1")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 3
    assert child.before.startswith("charcount-client: cannot connect to 127.0.0.1:1: ")


# ---------------------------------------------------------------------- redirections


def shell(program: str) -> list[str]:
    return ["/bin/sh", "-c", program]


def test_stdout_in_a_file_holds_replies_only(terminal, service, tmp_path):
    path: Path = tmp_path / "replies"
    child = terminal(*shell(f"{' '.join(PYTHON)} {CLIENT} --port {service.address[1]} > {path}"))
    for line in ("hello", "abc"):
        child.expect_exact(PROMPT)
        child.send(line + "\r")
        child.expect_exact(line + "\r\n")
    child.expect_exact(PROMPT)
    child.send(CTRL_D)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert path.read_bytes() == b"5\n3\n"


def test_no_prompt_when_only_stdin_is_a_terminal(terminal, service, tmp_path):
    replies, errors = tmp_path / "replies", tmp_path / "errors"
    child = terminal(*shell(f"{' '.join(PYTHON)} {CLIENT} --port {service.address[1]} > {replies} 2> {errors}"))
    child.send("hello\r")
    child.expect_exact("hello\r\n")
    child.send(CTRL_D)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert (replies.read_bytes(), errors.read_bytes()) == (b"5\n", b"")


@pytest.mark.skipif(sys.platform != "linux", reason="other terminals have other limits")
def test_a_line_that_the_terminal_cuts_is_warned_of(terminal, service, tmp_path):
    """Without readline the kernel edits, and drops what is beyond 4,095 bytes."""
    path: Path = tmp_path / "replies"
    child = terminal(*shell(f"{' '.join(PYTHON)} {CLIENT} --port {service.address[1]} > {path}"))
    warning = "charcount-client: the terminal passes on 4095 bytes of a line at most"
    child.expect_exact(PROMPT)
    for size, warned in ((5000, True), (4095, True), (4094, False), (3, False)):
        child.send("x" * size + "\r")
        child.expect_exact("\r\n")  # the end of the echo
        child.expect_exact(PROMPT)
        assert child.before.startswith(warning) is warned
    child.send(CTRL_D)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert path.read_bytes() == b"4095\n4095\n4094\n3\n"


def test_arguments_at_a_terminal_are_sent_without_a_prompt(terminal, service):
    child = terminal(*PYTHON, CLIENT, "--port", str(service.address[1]), "hello", "abc")
    child.expect(pexpect.EOF)
    child.close()
    assert (child.exitstatus, child.before) == (0, "5\r\n3\r\n")


def test_pipe_into_a_client_at_a_terminal(terminal, service):
    """stdin alone decides: output to a terminal is no reason to prompt."""
    command = f"printf 'a\\nbc\\n' | {' '.join(PYTHON)} {CLIENT} --port {service.address[1]}"
    child = terminal(*shell(command))
    child.expect(pexpect.EOF)
    child.close()
    assert (child.exitstatus, child.before) == (0, "1\r\n2\r\n")


# ---------------------------------------------------------------------- what a server says

RUDE = b"\x1b[2J\x1b]0;title\x07 1 \xc2\x9b31m \xff\r\xe2\x80\xae \xe6\x97\xa5"
HARMLESS = r"\x1b[2J\x1b]0;title\x07 1 \x9b31m \xff\r\u202e 日"


@pytest.mark.parametrize("framing", ["", "--classic"], ids=["line", "classic"])
def test_control_characters_are_shown_as_escapes(terminal, framing):
    with answering(RUDE + (b"" if framing else b"\n")) as port:
        child = terminal(*PYTHON, CLIENT, "--port", str(port), *framing.split(), "a")
        child.expect(pexpect.EOF)
    assert child.before == HARMLESS + "\r\n"


@pytest.mark.parametrize("framing", ["", "--classic"], ids=["line", "classic"])
def test_a_pipe_gets_a_reply_as_it_came(terminal, tmp_path, framing):
    with answering(RUDE + (b"" if framing else b"\n")) as port:
        child = terminal(*shell(f"{' '.join(PYTHON)} {CLIENT} --port {port} {framing} a > {tmp_path / 'replies'}"))
        child.expect(pexpect.EOF)
    assert (tmp_path / "replies").read_bytes() == RUDE + b"\n"


# ---------------------------------------------------------------------- the server at a terminal


def test_server_at_a_terminal(terminal):
    child = terminal(*PYTHON, SERVER, "--port", "0")
    child.expect(r"charcount-server: listening on 127\.0\.0\.1:(\d+)\r\n")
    done = subprocess.run(
        [*PYTHON, CLIENT, "--port", child.match[1], "hello"], capture_output=True, timeout=DEADLINE_S, check=True
    )
    assert done.stdout == b"5\n"
    child.expect(" disconnect ")
    assert leave(child, CTRL_C) == 0
    assert "Traceback" not in child.before
