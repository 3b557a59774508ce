"""Programs of examples/ and programs of others that people use with such servers, each in the way it is used."""

from __future__ import annotations

import http.server
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest

from clients import Client
from exampleprograms import EXAMPLES, curl, needs
from tlsworld import world
from waiting import DEADLINE_S, wait_until

# ---------------------------------------------------------------------- chat


class Talker:
    """A program that somebody sits in front of: what it prints so far, and what is typed."""

    def __init__(self, command: list[str], *, terminal: bool = False) -> None:
        self.said = ""
        self._pipes: list[IO[bytes]] = []
        if terminal:
            ours, theirs = pty.openpty()
            self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
            os.close(theirs)
            self._read = self._write = ours
        else:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self._pipes = [self.process.stdin, self.process.stdout]
            self._write, self._read = self.process.stdin.fileno(), self.process.stdout.fileno()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        try:
            while data := os.read(self._read, 65536):
                self.said += data.decode()
        except OSError:
            pass  # a terminal whose program is gone

    def type(self, text: str) -> None:
        os.write(self._write, text.encode())

    def sees(self, text: str) -> None:
        wait_until(lambda: text in self.said)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._thread.join(DEADLINE_S)
        if self._pipes:
            for pipe in self._pipes:
                pipe.close()
        else:
            os.close(self._read)


@pytest.fixture
def sit() -> Iterator[type[Talker]]:
    talkers: list[Talker] = []

    def one(command: list[str], **options: bool) -> Talker:
        talkers.append(Talker(command, **options))
        return talkers[-1]

    yield one
    for talker in talkers:
        talker.end()


def test_chat_of_netcat_socat_and_telnet_in_a_terminal(example, sit):
    nc, socat, telnet = needs("nc"), needs("socat"), needs("telnet")
    chat = example("chat")
    port = str(chat.port)
    ann = sit([nc, "127.0.0.1", port])
    bob = sit([socat, "-", f"TCP:127.0.0.1:{port}"])
    eve = sit([telnet, "127.0.0.1", port], terminal=True)  # which sends CR LF
    for talker, name in ((ann, "ann"), (bob, "bob"), (eve, "eve")):
        talker.sees("* your name?")
        talker.type(f"{name}\n")
        talker.sees(f"* {name} joins lobby")
    ann.sees("* eve joins lobby")
    eve.type("hello\n")
    for talker in (ann, bob, eve):
        talker.sees("eve: hello")
    bob.type("/who\n")
    bob.sees("* ann, bob, eve")
    eve.type("/quit\n")
    for talker in (ann, bob):
        talker.sees("* eve leaves")
    assert eve.process.wait(DEADLINE_S) is not None
    ann.process.kill()
    bob.sees("* ann leaves")
    chat.stop()


def test_chat_does_not_grow_for_a_netcat_that_nobody_reads(example):
    """nc blocks on its full pipe, so it stops reading, as one does that was suspended."""
    chat = example("chat")
    deaf = subprocess.Popen(
        [needs("nc"), "127.0.0.1", str(chat.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert deaf.stdin is not None
    deaf.stdin.write(b"deaf\n")
    memory = psutil.Process(chat.process.pid).memory_info
    line = b"x" * 1000 + b"\n"
    with Client(chat.address) as loud:
        loud.ask(b"loud\n", len("* your name?\n* loud joins lobby\n"))
        loud.ask(b"/who\n", len("* deaf, loud\n"))
        answer = 100 * len("loud: " + "x" * 1000 + "\n")
        loud.ask(line * 100, answer)
        before = memory().rss
        for _ in range(150):
            loud.ask(line * 100, answer)  # 15 MB
        assert memory().rss - before < 4 * 1024 * 1024
    deaf.kill()
    deaf.communicate()
    chat.stop()


# ---------------------------------------------------------------------- proxy, with TLS on either side


def test_proxy_with_tls_for_the_clients(example, web):
    proxy = example("proxy", f"127.0.0.1:{web}", "--cert", world().pair[0], "--key", world().pair[1])
    url = f"https://localhost:{proxy.port}/page"
    done = curl("--cacert", world().ca, "--resolve", f"localhost:{proxy.port}:127.0.0.1", url, url)
    assert done.stdout == b"0123456789" * 200_000, done.stderr
    asked = subprocess.run(
        [
            needs("openssl"),
            "s_client",
            "-connect",
            f"127.0.0.1:{proxy.port}",
            "-CAfile",
            world().ca,
            "-quiet",
            "-verify_return_error",
            "-ign_eof",
        ],
        input=b"GET /page HTTP/1.0\r\n\r\n",
        capture_output=True,
        timeout=DEADLINE_S,
    )
    assert asked.stdout.endswith(b"0123456789" * 100_000), asked.stderr
    plain = curl(f"http://127.0.0.1:{proxy.port}/page")
    assert plain.returncode != 0
    proxy.stop()


def test_proxy_with_tls_to_the_server(example, tmp_path):
    """`openssl s_server` is the server, whose page says which version of TLS it is asked by."""
    (tmp_path / "page").write_bytes(b"0123456789" * 100_000)
    server = subprocess.Popen(
        [
            needs("openssl"),
            "s_server",
            "-accept",
            "127.0.0.1:0",
            "-cert",
            world().pair[0],
            "-key",
            world().pair[1],
            "-WWW",
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert server.stdout is not None
        found = next(re.search(r"ACCEPT 127\.0\.0\.1:(\d+)", line) for line in server.stdout if "ACCEPT" in line)
        assert found
        proxy = example("proxy", f"tls:127.0.0.1:{found[1]}", "--ca", world().ca)
        done = curl(f"http://127.0.0.1:{proxy.port}/page")
        assert done.stdout == b"0123456789" * 100_000, done.stderr
        proxy.stop()
        distrusting = example("proxy", f"tls:127.0.0.1:{found[1]}")
        assert curl(f"http://127.0.0.1:{distrusting.port}/page").returncode != 0
        assert "trusted" in distrusting.stop()[1]
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["127.0.0.1:1", "--cert", "/nowhere.pem"], "cannot read /nowhere.pem: No such file or directory"),
        (["tls:127.0.0.1:1", "--ca", "/nowhere.pem"], "cannot read /nowhere.pem: No such file or directory"),
        (["127.0.0.1:99999"], "99999"),
    ],
)
def test_proxy_that_cannot_begin(arguments, says):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "proxy.py", "0", *arguments], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 1
    assert re.fullmatch(rf"proxy\.py: .*{re.escape(says)}.*\n", done.stderr)


# ---------------------------------------------------------------------- a mail server, a web server


def test_smtp_sink_with_swaks(example):
    swaks = needs("swaks")
    sink = example("smtp_sink")
    done = subprocess.run(
        [
            swaks,
            "--server",
            f"127.0.0.1:{sink.port}",
            "--helo",
            "here.example",
            "--from",
            "me@example.org",
            "--to",
            "you@example.org,all@example.org",
            "--header",
            "Subject: from swaks",
            "--body",
            ".dots\nend",
        ],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    out, _ = sink.stop()
    assert out.startswith("from <me@example.org> to <you@example.org>, <all@example.org>\n")
    assert "Subject: from swaks\n" in out
    assert "\n.dots\nend\n" in out


def test_httpd_with_ab(example):
    """It speaks HTTP/1.0, in which h11 keeps no connection, whatever is asked for: `-k` must do no harm."""
    pytest.importorskip("h11")
    ab = needs("ab")
    httpd = example("httpd")
    for keep_alive in ([], ["-k"]):
        done = subprocess.run(
            [ab, "-q", "-n", "100", "-c", "8", *keep_alive, f"http://127.0.0.1:{httpd.port}/"],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert done.returncode == 0, done.stderr
        assert re.search(r"Complete requests: +100\n", done.stdout)
        assert re.search(r"Failed requests: +0\n", done.stdout)
        assert "Non-2xx" not in done.stdout
    httpd.stop()


@pytest.mark.slow
def test_httpd_with_wrk(example, tmp_path):
    pytest.importorskip("h11")
    wrk = needs("wrk")
    httpd = example("httpd")
    script = tmp_path / "pipeline.lua"
    script.write_text(
        "init = function(args)\n"
        '  request_ = wrk.format("GET", "/") .. wrk.format("POST", "/length", nil, "four") .. wrk.format("GET", "/")\n'
        "end\n"
        "request = function() return request_ end\n"
    )
    for arguments in ([], ["-s", str(script)]):  # one after another; and pipelined
        done = subprocess.run(
            [wrk, "-t", "1", "-c", "8", "-d", "1s", *arguments, f"http://127.0.0.1:{httpd.port}/"],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = re.search(r"(\d+) requests in", done.stdout)
        assert found
        assert int(found[1]) > 50
        assert "Non-2xx" not in done.stdout
        assert "Socket errors" not in done.stdout
    httpd.stop()


# ---------------------------------------------------------------------- a browser

PAGE = """<!doctype html><script>
const got = [];
const socket = new WebSocket("ws://127.0.0.1:%d/");
socket.binaryType = "arraybuffer";
const tell = (what) => fetch("/result?" + new URLSearchParams(what));
socket.onopen = () => {
  socket.send("h\u00e9llo");
  socket.send(new Uint8Array([0, 1, 255]));
  socket.send("x".repeat(200000));
};
socket.onmessage = (event) => {
  got.push(typeof event.data === "string" ? event.data.length + ":" + event.data.slice(0, 5)
                                          : [...new Uint8Array(event.data)].join());
  if (got.length === 3) socket.close(1000, "enough");
};
socket.onerror = () => tell({error: "error"});
socket.onclose = (event) => tell({got: got.join("|"), code: event.code, clean: event.wasClean});
</script>"""


@pytest.mark.slow
def test_websocket_with_chromium(example, tmp_path: Path):
    pytest.importorskip("wsproto")
    chromium = needs("chromium")
    server = example("websocket")
    results: list[dict[str, list[str]]] = []
    told = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place = urlsplit(self.path)
            if place.path == "/result":
                results.append(parse_qs(place.query))
                told.set()
            body = (PAGE % server.port).encode() if place.path == "/" else b""
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as pages:
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        browser = subprocess.Popen(
            [
                chromium,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                f"--user-data-dir={tmp_path}",
                "--remote-debugging-port=0",
                f"http://127.0.0.1:{pages.server_port}/",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            assert told.wait(3 * DEADLINE_S)
        finally:
            for process in [*psutil.Process(browser.pid).children(recursive=True), browser]:
                process.kill()
            browser.wait()
            pages.shutdown()
    assert results == [{"got": ["5:h\u00e9llo|0,1,255|200000:xxxxx"], "code": ["1000"], "clean": ["true"]}]
    server.stop()
