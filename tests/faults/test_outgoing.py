"""What bites who connects: name servers that are silent, addresses that are, suspended processes, strange peers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evloop import Protocol
from evloop.net.connector import ATTEMPT_DELAY_S
from evloop.net.proxyheader import MAX_HEADER_BYTES, ProxyHeaderError, ProxyHeaderReader
from outgoing import Names, closed_port, silent_listener
from paths import ROOT
from processes import SPINNING, cpu_share
from proxyheaders import SIGNATURE
from servers import recorder
from waiting import DEADLINE_S, run_pass, run_until, wait_until

pytestmark = pytest.mark.one_selector


@contextlib.contextmanager
def program(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Python code in a process of its own, killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_70_silent_name_server_holds_up_nobody(loop, monkeypatch):
    names = Names(monkeypatch)
    names.add("slow.example", ("127.0.0.1", 1))
    found = names.hold()
    waiting, other = recorder()(), recorder()()
    loop.connect(waiting, "slow.example", 7)
    run_until(loop, lambda: names.threads)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        loop.connect(other, *listener.getsockname())
        run_until(loop, lambda: other.events)
    assert other.events[0] == "connect"
    assert waiting.events == []
    other.connection.abort()
    waiting.connection.abort()
    run_pass(loop)
    found.set()
    wait_until(lambda: not names.threads[0].is_alive())


HUNG = """
import socket, threading
from evloop import EventLoop, Protocol
real = socket.getaddrinfo
def look_up(*name, **options):
    return real(*name, **options) if options.get("flags") else threading.Event().wait()
socket.getaddrinfo = look_up
with EventLoop() as loop:
    loop.connect(Protocol(), "slow.example", 7, timeout_s=None)
    loop.run_in_thread(threading.Event().wait)
    def look():
        names = [thread.name for thread in threading.enumerate()]
        if names.count("evloop worker") == 2:
            print("hung", flush=True)
            loop.stop()
        else:
            loop.call_later(0.001, look)
    look()
    loop.run()
print("closed")
"""


def test_70_silent_name_server_does_not_keep_a_process_from_ending():
    with program(HUNG) as process:
        output, _ = process.communicate(timeout=DEADLINE_S)
    assert output == "hung\nclosed\n"
    assert process.returncode == 0


def test_71_address_that_leads_nowhere(loop, monkeypatch):
    """It costs a quarter of a second, though its time-out is a minute."""
    names = Names(monkeypatch)
    with silent_listener() as silent, socket.create_server(("::1", 0), family=socket.AF_INET6) as six:
        names.add("half.example", silent.getsockname(), six.getsockname())
        protocol = recorder()()
        loop.connect(protocol, "half.example", 7, timeout_s=60)
        began = loop.clock()
        run_until(loop, lambda: protocol.events)
        assert protocol.connection.peer.startswith("[::1]:")
        assert loop.clock() - began >= ATTEMPT_DELAY_S
        protocol.connection.abort()
        run_pass(loop)
        assert loop.timers == 0


SUSPENDED = """
import os, signal, socket, sys
import evloop.net.connector
from evloop import EventLoop, Protocol
evloop.net.connector._OVERRUN_S = 0.2
host, port = "127.0.0.1", int(sys.argv[1])
real = socket.getaddrinfo
def look_up(name, *_, **options):
    if name != b"slow.example" or options.get("flags"):
        return real(name, *_, **options)
    os.kill(os.getpid(), signal.SIGSTOP)  # by itself, as another process may be late
    sys.stdin.readline()
    return real(host, port, type=socket.SOCK_STREAM)
socket.getaddrinfo = look_up
class Told(Protocol):
    def on_connect(self):
        print("connected")
        loop.stop()
    def on_connect_error(self, error):
        print(error)
        loop.stop()
with EventLoop() as loop:
    protocol = Told()
    loop.connect(protocol, "slow.example", port, timeout_s=1)
    loop.run()
    if protocol.connection.closing is False:
        protocol.connection.abort()
"""


@pytest.mark.slow
def test_72_suspended_for_longer_than_the_time_out():
    """The answer came while the process was stopped: that is what counts, not that nobody looked."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        program(SUSPENDED, str(listener.getsockname()[1])) as process,
    ):
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        time.sleep(1.4)  # it is this that is tried: longer than the time-out and what is too late for a loop
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=DEADLINE_S)
    assert output == "connected\n"


def test_73_connection_to_itself(loop):
    """Whoever asks a port of the kernel's own range again and again, as nobody listens there yet, gets one some day."""
    port = closed_port()
    protocol = recorder()()
    loop.connect(protocol, "127.0.0.1", port, source_address=("127.0.0.1", port))
    run_until(loop, lambda: protocol.events)
    assert protocol.events == [("connect error", f"cannot connect to 127.0.0.1:{port}: Connection refused")]
    run_pass(loop)
    with socket.create_server(("127.0.0.1", port)) as sock:  # it is not held by what is left of it
        assert sock.getsockname()[1] == port


def test_74_full_queue_of_a_unix_listener(loop, tmp_path: Path):
    """EAGAIN means there that nothing is under way: who waits for it to be writable waits in vain, or spins."""
    path = os.path.relpath(tmp_path / "s")
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(1)
        listener.setblocking(False)
        while True:
            filler = opened.enter_context(socket.socket(socket.AF_UNIX))
            filler.setblocking(False)
            if filler.connect_ex(path):
                break
        protocol = recorder()()
        loop.connect(protocol, f"unix:{path}")
        thread = threading.Thread(target=loop.run)
        thread.start()
        assert cpu_share(time.process_time) < SPINNING
        assert protocol.events == []
        listener.accept()[0].close()
        listener.accept()[0].close()
        wait_until(lambda: protocol.events)
        loop.call_soon_threadsafe(protocol.connection.abort)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE_S)
    assert protocol.events[0] == "connect"


def test_75_written_before_it_is_connected(loop):
    """Nothing is lost, and the order is kept."""

    class Early(Protocol):
        def on_connect(self) -> bytes:
            return b" third"

    with socket.create_server(("127.0.0.1", 0)) as listener:
        protocol = Early()
        loop.connect(protocol, *listener.getsockname())
        protocol.connection.write(b"first")
        loop.call_soon(protocol.connection.write, b" second")
        loop.call_soon(protocol.connection.close)
        loop.call_soon(protocol.connection.write, b" too late")
        listener.settimeout(DEADLINE_S)
        got: list[bytes] = []

        def take() -> None:
            peer, _ = listener.accept()
            with peer:
                while data := peer.recv(100):
                    got.append(data)

        thread = threading.Thread(target=take)
        thread.start()
        run_until(loop, lambda: not thread.is_alive())
    assert b"".join(got) == b"first second third"


@pytest.mark.parametrize("header", [b"PROXY TCP4 " + b"1" * 5000, SIGNATURE + b"\x21\x11\xff\xff" + bytes(65535)])
@pytest.mark.parametrize("size", [1, 1000, 100000])
def test_76_proxy_header_without_end(header, size):
    """It is refused before more is held than a header may have."""
    reader, refused = ProxyHeaderReader(), False
    for at in range(0, len(header), size):
        try:
            assert reader.feed(header[at : at + size]) is None
        except ProxyHeaderError:
            refused = True
            break
        assert reader.received <= MAX_HEADER_BYTES
    assert refused


def test_76_proxy_header_dribbled_costs_linear_time():
    """The same calls for each byte, however many came before."""
    header = SIGNATURE + b"\x21\x11" + (4000).to_bytes(2, "big") + bytes(12) + b"\4\x0f\x91" + bytes(3985)

    def seconds(count: int) -> float:
        began = time.process_time()
        for _ in range(20):
            reader = ProxyHeaderReader()
            for at in range(count):
                assert reader.feed(header[at : at + 1]) is None
        return time.process_time() - began

    seconds(100)
    assert min(seconds(4000) for _ in range(3)) < 4 * 4 * min(seconds(1000) for _ in range(3))
    reader = ProxyHeaderReader()
    found = reader.feed(header + b"x")
    assert found is not None
    assert found[1] == b"x"
