"""Each program in examples/ does what its head says, with a client that nobody here wrote."""

from __future__ import annotations

import smtplib
import socket
import subprocess
import threading

import pytest

from clients import Client
from exampleprograms import EXAMPLES, curl, needs
from waiting import DEADLINE_S

PROGRAMS = sorted(EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_it_is_short_says_what_it_teaches_and_is_in_the_index(path):
    text = path.read_text()
    assert len(text.splitlines()) < 150
    assert "Teaches: " in text.split('"""')[1]
    assert f"`{path.stem}.py`" in (EXAMPLES / "README.md").read_text()


def test_echo_with_curl(example):
    echo = example("echo")
    done = subprocess.run(
        [needs("curl"), "-sN", f"telnet://127.0.0.1:{echo.port}", "--max-time", "2"],
        input=b"hello\nworld\n",
        capture_output=True,
        timeout=DEADLINE_S,
    )
    assert done.stdout == b"hello\nworld\n"
    echo.stop()


def test_echo_bounds_who_does_not_read(example):
    echo = example("echo")
    with Client(echo.address) as one:
        sent = one.send_until_full()
        assert sent < 64 * 1024 * 1024
        received = one.receive_exactly(sent)
        assert received.count(0) == sent
    echo.stop()


def test_chat(example):
    chat = example("chat")
    with Client(chat.address) as ann, Client(chat.address) as bob:
        for client, name in ((ann, b"ann"), (bob, b"bob")):
            assert client.receive_line() == b"* your name?\n"
            client.send(name + b"\n")
            assert client.receive_line() == b"* %b joins lobby\n" % name
        assert ann.receive_line() == b"* bob joins lobby\n"
        bob.send(b"hello\n/who\n")
        assert ann.receive_line() == b"bob: hello\n"
        assert [bob.receive_line() for _ in range(2)] == [b"bob: hello\n", b"* ann, bob\n"]
        bob.send(b"/join attic\nalone\n")
        assert ann.receive_line() == b"* bob leaves\n"
        assert [bob.receive_line() for _ in range(2)] == [b"* bob joins attic\n", b"bob: alone\n"]
        ann.send(b"still here\n")
        assert ann.receive_line() == b"ann: still here\n"
    chat.stop()


def test_chat_does_not_grow_for_who_does_not_read(example):
    chat = example("chat")
    with Client(chat.address, receive_buffer=4096) as deaf, Client(chat.address) as loud:
        deaf.ask(b"deaf\n", len("* your name?\n* deaf joins lobby\n"))
        loud.ask(b"loud\n", len("* your name?\n* loud joins lobby\n"))
        line = b"x" * 1000 + b"\n"
        for _ in range(100):
            loud.ask(line * 100, 100 * len("loud: " + "x" * 1000 + "\n"))
        while not (heard := deaf.receive_line()).startswith(b"* you have missed"):
            loud.ask(b"y\n", len("loud: y\n"))
            assert heard
    chat.stop()


def test_proxy_between_curl_and_a_web_server(example, web):
    proxy = example("proxy", f"127.0.0.1:{web}")
    url = f"http://127.0.0.1:{proxy.port}/page"
    done = subprocess.run([needs("curl"), "-sS", url, url], capture_output=True, timeout=DEADLINE_S, check=True)
    assert done.stdout == b"0123456789" * 200_000
    proxy.stop()


def test_proxy_answers_after_the_end_of_the_question(example):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = example("proxy", f"127.0.0.1:{listener.getsockname()[1]}")

        def count() -> None:
            sock, _ = listener.accept()
            with sock, sock.makefile("rb") as reader:
                sock.sendall(b"%d bytes" % len(reader.read()))

        thread = threading.Thread(target=count)
        thread.start()
        with Client(proxy.address) as client:
            client.send(b"x" * 300_000)
            client.half_close()
            assert client.receive_rest() == b"300000 bytes"
        thread.join()
        proxy.stop()


def test_proxy_whose_server_is_not_there(example):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        proxy = example("proxy", f"127.0.0.1:{sock.getsockname()[1]}")
        with Client(proxy.address) as client:
            assert client.receive_rest() == b""
        _, err = proxy.stop()
        assert "refused" in err


def test_keyvalue_with_its_python_client(example):
    redis = pytest.importorskip("redis")
    server = example("keyvalue")
    client = redis.Redis(port=server.port, protocol=2)
    assert client.set("greeting", "h\r\nllo")
    assert client.get("greeting") == b"h\r\nllo"
    assert client.get("nobody") is None
    assert client.incr("number") == 1
    assert client.mget("number", "nobody") == [b"1", None]
    big = b"x" * 1_000_000
    client.set("big", big)
    assert client.get("big") == big
    with client.pipeline(transaction=False) as pipeline:
        for _ in range(1000):
            pipeline.incr("number")
        assert pipeline.execute()[-1] == 1001
    with pytest.raises(redis.ResponseError, match="unknown command"):
        client.execute_command("NONSENSE")
    with pytest.raises(redis.ResponseError, match="wrong number"):
        client.execute_command("GET")
    assert client.delete("greeting", "nobody") == 1
    client.close()
    server.stop()


@pytest.mark.parametrize(("begun", "error"), [(b"", b"too long a line"), (b"*2\r\n", b"invalid length")])
def test_keyvalue_bounds_a_line_without_end(example, begun, error):
    server = example("keyvalue")
    with Client(server.address) as client:
        client.send(begun + b"x" * 60_000)
        client.send(b"x" * 10_000)
        assert client.receive_rest() == b"-ERR Protocol error: %b\r\n" % error
    server.stop()


def test_keyvalue_with_redis_cli_and_redis_benchmark(example):
    cli, benchmark = needs("redis-cli"), needs("redis-benchmark")
    server = example("keyvalue")

    def ask(*words: str) -> str:
        done = subprocess.run(
            [cli, "-p", str(server.port), *words], capture_output=True, text=True, timeout=DEADLINE_S, check=True
        )
        return done.stdout

    assert ask("set", "greeting", "hello") == "OK\n"
    assert ask("get", "greeting") == "hello\n"
    done = subprocess.run(
        [benchmark, "-p", str(server.port), "-n", "2000", "-P", "16", "-t", "set,get,incr", "-q"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert done.stdout.count("requests per second") == 3
    server.stop()


def test_smtp_sink_with_smtplib(example):
    sink = example("smtp_sink")
    with smtplib.SMTP(*sink.address, timeout=DEADLINE_S) as smtp:
        mail = b"Subject: x\n\n.dots\nh\xc3\xa9"
        assert smtp.sendmail("me@example.org", ["you@example.org", "all@example.org"], mail) == {}
        smtp.rset()
        smtp.mail("me@example.org")
        assert smtp.docmd("DATA")[0] == 503
    out, _ = sink.stop()
    assert out == "from <me@example.org> to <you@example.org>, <all@example.org>\nSubject: x\n\n.dots\nh\u00e9\n\n"


def test_httpd_with_curl(example, tmp_path):
    pytest.importorskip("h11")
    httpd = example("httpd")
    url = f"http://127.0.0.1:{httpd.port}"
    assert curl(f"{url}/").stdout == b"hello\n"
    twice = curl("-v", f"{url}/", f"{url}/")
    assert twice.stdout == b"hello\nhello\n"
    assert b"Re-using existing connection" in twice.stderr or b"Reusing" in twice.stderr
    assert curl("-I", f"{url}/").stdout.startswith(b"HTTP/1.1 200")
    body = tmp_path / "body"
    body.write_bytes(b"0123456789" * 200_000)
    expecting = curl("-v", "--data-binary", f"@{body}", "-H", "Expect: 100-continue", f"{url}/length")
    assert expecting.stdout == b"2000000\n"
    assert b"HTTP/1.1 100" in expecting.stderr
    assert curl("-H", "Transfer-Encoding: chunked", "--data-binary", f"@{body}", f"{url}/length").stdout == b"2000000\n"
    assert curl("-0", f"{url}/nowhere", "-w", "%{http_code}").stdout.endswith(b"404")
    httpd.stop()


def test_httpd_answers_pipelined_requests_in_order_and_bad_ones_with_400(example):
    pytest.importorskip("h11")
    httpd = example("httpd")
    with Client(httpd.address) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3 + b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
        client.half_close()
        text = client.receive_rest()
        assert [line.split()[1] for line in text.splitlines() if line.startswith(b"HTTP")] == [b"200"] * 3 + [b"404"]
    with Client(httpd.address) as client:
        client.send(b"nonsense\r\n\r\n")
        assert client.receive_rest().startswith(b"HTTP/1.1 400")
    httpd.stop()


def test_websocket_with_websockets(example):
    pytest.importorskip("wsproto")
    client = pytest.importorskip("websockets.sync.client")
    server = example("websocket")
    with client.connect(f"ws://127.0.0.1:{server.port}/", max_size=None) as one:
        for message in ("hello", "h\u00e9", b"\0\1", "x" * 300_000):
            one.send(message)
            assert one.recv(timeout=DEADLINE_S) == message
        one.send(["in ", "frag", "ments"])
        assert one.recv(timeout=DEADLINE_S) == "in fragments"
        assert one.ping().wait(DEADLINE_S)
    assert one.close_code == 1000
    Client(server.address).reset()
    with Client(server.address) as plain:
        plain.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert plain.receive_rest().startswith(b"HTTP/1.1 4")
    server.stop()
