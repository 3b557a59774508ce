"""Handlers of a server that stops, and what goes wrong in them."""

from __future__ import annotations

import signal
import traceback

import pytest

from evloop import (
    Server,
    Stream,
    sleep,
    timeout,
)
from processes import Process
from waiting import LoopThread, wait_until


async def upper(stream: Stream) -> None:
    async for line in stream.lines():
        stream.write(line.upper() + b"\n")


# ---------------------------------------------------------------------- the end of a server


def stopped(thread: LoopThread, stop, server: Server) -> list[int]:
    """Stops it, and returns a list that has something in it when it has stopped."""
    ended: list[int] = []
    if stop == "drain":
        thread.call(lambda: server.drain(lambda: ended.append(1)))
    else:
        thread.call(lambda: (server.drain(lambda: ended.append(1)), server.abort()))
    return ended


def test_a_drain_is_the_end_of_what_a_handler_reads(serving):
    async def handler(stream: Stream) -> None:
        async for line in stream.lines():
            stream.write(line + b"\n")
        await sleep(0.01)
        stream.write(b"goodbye\n")

    thread, server, client = serving(handler)
    with client() as one:
        one.ask(b"hello\n", 6)
        ended = stopped(thread, "drain", server)
        assert one.receive_rest() == b"goodbye\n"
    wait_until(lambda: ended)
    assert not server.aborted


def test_a_handler_that_does_not_end_is_cancelled_at_the_deadline_and_waited_for(serving, logged):
    logged.expect("1 connections not done after 0.1 s: aborted")
    steps = []

    async def handler(stream: Stream) -> None:
        try:
            stream.write(b"x")
            await sleep(1000)
        finally:
            steps.append("cancelled")
            async with timeout(2, shield=True):
                await sleep(0.05)
            steps.append("cleaned up")

    thread, server, client = serving(handler, drain_timeout_s=0.1)
    with client() as one:
        one.receive_exactly(1)
        ended = stopped(thread, "drain", server)
        wait_until(lambda: ended)
    assert steps == ["cancelled", "cleaned up"]
    assert server.aborted


@pytest.mark.parametrize("stop", ["drain", "abort"])
def test_a_handler_whose_connection_is_gone_is_waited_for(serving, stop):
    steps = []

    async def handler(stream: Stream) -> None:
        try:
            await stream.read()
            stream.abort()
            steps.append("alone")
            await sleep(0.2 if stop == "drain" else 1000)
            steps.append("came to the end")
        finally:
            async with timeout(2, shield=True):
                await sleep(0.02)
            steps.append("cleaned up")

    thread, server, client = serving(handler)
    with client() as one:
        one.send(b"x")
        wait_until(lambda: steps)
        ended = stopped(thread, stop, server)
        wait_until(lambda: ended)
    assert steps == ["alone", *(["came to the end"] if stop == "drain" else []), "cleaned up"]


def test_to_abort_again_is_to_wait_for_nobody(serving, logged):
    logged.expect("1 handlers have not ended, and are not waited for any longer")
    release = []

    async def handler(stream: Stream) -> None:
        try:
            stream.write(b"x")
            await sleep(1000)
        finally:
            async with timeout(1000, shield=True):
                while not release:
                    await sleep(0.005)
            release.append("done")

    thread, server, client = serving(handler)
    with client() as one:
        one.receive_exactly(1)
        ended = stopped(thread, "abort", server)
        thread.passes(3)
        assert not ended
        thread.call(server.abort)
        wait_until(lambda: ended)
    release.append("go")
    wait_until(lambda: "done" in release)


def test_a_handler_can_stop_its_own_server(serving):
    ended = []

    async def handler(stream: Stream) -> None:
        async for line in stream.lines():
            if line == b"stop":
                server.drain(lambda: ended.append(1))
            stream.write(line + b"\n")
            await sleep(0)

    _, server, client = serving(handler)
    with client() as one, client() as other:
        other.ask(b"x\n", 2)
        other.send(b"y\n")  # has arrived before the server stops
        one.send(b"stop\nand\n")
        assert one.receive_rest() == b"stop\nand\n"
        assert other.receive_rest() == b"y\n"
    wait_until(lambda: ended)


PROGRAM = """
import logging
from evloop import serve, sleep, timeout

logging.basicConfig(level=logging.INFO)

async def handler(stream):
    try:
        await stream.write(b"x")
        await sleep(1000)
    finally:
        print("cancelled", flush=True)
        async with timeout(1000, shield=True):
            await sleep(1000)

serve(handler)
print("ended", flush=True)
"""


def test_a_second_signal_ends_at_once():
    with Process(["-c", PROGRAM]) as program:
        program.connect().receive_exactly(1)
        program.signal(signal.SIGTERM)
        program.wait_for_log("signal again to abort")
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
        saw, log, last = program.log.splitlines()[-3:]
        assert saw == "cancelled"
        assert log.endswith("1 handlers have not ended, and are not waited for any longer")
        assert last == "ended"


# ---------------------------------------------------------------------- errors


def test_what_a_handler_raises_is_logged_with_its_lines(serving, logged):
    logged.expect("aborted: its handler raised")

    async def handler(stream: Stream) -> None:
        await stream.read()
        raise ValueError("mine")  # the line to be seen

    _, server, client = serving(handler)
    with client() as one:
        one.send(b"x")
        assert one.receive_rest() == b""
    wait_until(lambda: server.stats.failed == 1)
    text = "".join(traceback.format_exception(logged.records[-1].exc_info[1]))
    assert "# the line to be seen" in text
    assert "evloop/protocols" not in text


def test_a_reset_is_quiet(serving):
    _, server, client = serving(upper)
    one = client()
    one.ask(b"x\n", 2)
    one.reset()
    wait_until(lambda: server.stats.closed == 1)
