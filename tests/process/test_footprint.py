"""What the server's process weighs: long messages, idle connections."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest

from clients import Client
from interpreters import gives_memory_back
from processes import Process
from waiting import wait_until

MIB = 1024 * 1024


def peak_memory(server: Process) -> int:
    """The most resident memory it has ever had, in bytes, where the kernel keeps that; else what it has now."""
    try:
        status = Path(f"/proc/{server.popen.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return server.memory()


@gives_memory_back
@pytest.mark.parametrize(
    "size", [32 * MIB, pytest.param(512 * MIB, marks=pytest.mark.slow)], ids=lambda size: f"{size // MIB} MiB"
)
@pytest.mark.parametrize("piece", [b"x" * MIB, ("é" * (MIB // 2)).encode()], ids=["ascii", "two bytes each"])
def test_a_line_of_any_length_is_counted_without_growth(spawn, size, piece):
    # glibc keeps some small blocks of each size for later. Each may lie just behind where a receive buffer was, which
    # can't be used for one again: a megabyte or two in all, of the allocator's and not of the message's.
    server = spawn(environment={"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"})
    client = server.connect()
    # A long message before: the buffers it takes to receive at full speed are not growth.
    client.send(piece * 4 + b"\n")
    assert client.receive_line() == b"%d\n" % (4 * len(piece.decode()))
    server.wait_for_log("connect ")  # it has loaded what it logs with
    before = peak_memory(server)
    for _ in range(size // MIB):
        client.send(piece)
        assert server.memory() - before < MIB
    client.send(b"\n")
    assert client.receive_line() == b"%d\n" % (size // MIB * len(piece.decode()))
    assert peak_memory(server) - before < MIB


@pytest.fixture
def many_descriptors():
    """Enough of them in this process for both the test's ends of the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 12_000
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"at most {hard} descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def own_memory(server: Process) -> int:
    """Memory that only this process has, in bytes: what its end would give back."""
    info = server.psutil.memory_full_info()
    return int(getattr(info, "uss", info.rss))


IDLE = 5_000
BYTES_PER_IDLE_CONNECTION = 1024


@gives_memory_back
@pytest.mark.slow
def test_memory_of_idle_connections(spawn, many_descriptors):
    server = spawn("--max-connections", "10000", python_options=())

    def connect(count: int) -> list[Client]:
        clients = [server.connect() for _ in range(count)]
        for client in clients:
            assert client.ask(b"hello\n", 2) == b"5\n"
        return clients

    connect(200)  # whatever is made once is made by now
    server.wait_for_log("connect ")  # what it logs with is loaded, too
    before = own_memory(server)
    connect(IDLE)
    each = (own_memory(server) - before) / IDLE
    print(f"{each:.0f} bytes for each idle connection")
    assert each <= BYTES_PER_IDLE_CONNECTION


@gives_memory_back
def test_memory_comes_back_when_connections_end(spawn, many_descriptors):
    server = spawn("--log-level", "warning")

    def storm() -> int:
        clients = [Client(server.address) for _ in range(500)]
        for client in clients:
            assert client.ask(b"hello\n", 2) == b"5\n"
        for client in clients:
            client.close()
        wait_until(lambda: len(server.psutil.net_connections("tcp")) == 1, "only the listener is left")
        return server.memory()

    after_one = storm()
    for _ in range(4):
        after_five = storm()
    assert after_five - after_one < MIB


# What a server loads soon after its start is loaded when it says so.
HANDLERS = """
import sys
from evloop import Limits, serve

async def lines(stream):
    async for line in stream.lines():
        stream.write(b"%d\\n" % len(line))

async def batches(stream):
    async for some in stream.batches():
        stream.write(b"".join([b"%d\\n" % len(line) for line in some]))

async def bytes(stream):
    while data := await stream.read():
        stream.write(b"%d\\n" % (len(data) - 1))

def say_when_loaded(loop, server):
    loop.call_later(1, sys.stderr.write, "loaded\\n")

serve(KIND, limits=Limits(max_connections=10_000), on_start=say_when_loaded)
"""
# 1,710 to 1,810 are found, as the heap happens to lie; more is a change.
BYTES_PER_IDLE_HANDLER = 1900


@gives_memory_back
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lines", "batches", "bytes"])
def test_memory_of_idle_handlers(many_descriptors, kind):
    with Process(["-c", HANDLERS.replace("KIND", kind)]) as server:

        def connect(count: int) -> list[Client]:
            clients = [server.connect() for _ in range(count)]
            for client in clients:
                assert client.ask(b"hello\n", 2) == b"5\n"
            return clients

        connect(300)
        server.signal(signal.SIGUSR1)
        server.wait_for_log("status:")  # what it logs with is loaded, too
        server.wait_for_log("loaded")
        before = own_memory(server)
        connect(IDLE)
        each = (own_memory(server) - before) / IDLE
        print(f"{each:.0f} bytes for each idle connection")
        assert each <= BYTES_PER_IDLE_HANDLER
