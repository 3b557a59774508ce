"""The control channel: messages and descriptors between two ends, whatever the kernel takes at a time."""

from __future__ import annotations

import os
import resource
import socket

import pytest

from evloop import EventLoop
from evloop.program.workers.channel import Channel, MessageReader, channel_pair
from waiting import run_pass, run_until


class End:
    """A channel that writes down what it hears."""

    def __init__(self, loop: EventLoop, sock: socket.socket) -> None:
        self.heard = []
        self.over = False
        self.channel = Channel(loop, sock, self.heard.append, self.end)

    def end(self) -> None:
        self.over = True


@pytest.fixture
def loop():
    with EventLoop() as loop:
        yield loop


@pytest.fixture
def ends(loop):
    ends = [End(loop, sock) for sock in channel_pair()]
    yield ends
    for end in ends:
        end.channel.close()
        for message in end.heard:
            for descriptor in message.descriptors:
                os.close(descriptor)
    run_pass(loop)


def test_messages_come_whole_and_in_order_however_large(loop, ends):
    here, there = ends
    for number in range(50):
        here.channel.send("n", bytes([number]) * (number * 3000), number=number)
    assert here.channel.unsent_bytes > 0
    run_until(loop, lambda: len(there.heard) == 50)
    assert [message.fields["number"] for message in there.heard] == list(range(50))
    assert all(message.payload == bytes([n]) * (n * 3000) for n, message in enumerate(there.heard))
    assert here.channel.unsent_bytes == 0


def test_descriptors_stay_with_their_message_also_when_they_have_to_wait(loop, ends):
    here, there = ends
    for number in range(40):
        reader, writer = os.pipe()
        os.write(writer, b"%d" % number)
        os.close(writer)
        here.channel.send("one", bytes(20_000), [reader] if number % 3 else [reader, reader], number=number)
        os.close(reader)
        here.channel.send("none")
    run_until(loop, lambda: len(there.heard) == 80)
    for message in there.heard:
        if message.kind == "one":
            assert len(message.descriptors) == (1 if message.fields["number"] % 3 else 2)
            assert os.read(message.descriptors[0], 10) == b"%d" % message.fields["number"]
            assert not os.get_inheritable(message.descriptors[0])
        else:
            assert message.descriptors == []


def test_a_message_byte_by_byte(loop):
    ours, theirs = channel_pair()
    whole, copy = channel_pair()
    sender = Channel(loop, whole, lambda message: None, lambda: None)
    sender.send("hello", b"payload", number=1)
    data = copy.recv(1000)
    end = End(loop, ours)
    for index in range(len(data)):
        theirs.send(data[index : index + 1])
        run_pass(loop)
        assert len(end.heard) == (index == len(data) - 1)
    theirs.send(data[:-1])
    theirs.close()
    run_until(loop, lambda: end.over)
    assert len(end.heard) == 1  # what has not come to its end is no message
    for one in (sender, end.channel):
        one.close()
    copy.close()


def test_what_was_said_before_the_end_is_heard(loop, ends):
    here, there = ends
    for number in range(200):
        here.channel.send("n", number=number)
    here.channel.close()
    there.channel.receive_all()
    assert len(there.heard) == 200
    run_until(loop, lambda: there.over)
    there.channel.send("too late")  # to nobody: nothing happens


def test_what_an_end_says_that_nobody_reads_does_not_block(loop, ends):
    here, there = ends
    run_pass(loop)
    for _ in range(100):
        here.channel.send("n", bytes(100_000))
    assert here.channel.unsent_bytes > 5_000_000
    there.channel.close()
    run_until(loop, lambda: here.over)
    assert here.channel.unsent_bytes == 0


def test_without_a_free_descriptor_nothing_is_lost(loop, ends):
    here, there = ends
    reader, writer = os.pipe()
    here.channel.send("take", descriptors=[reader])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, hard))
    taken = []
    try:
        while True:
            try:
                taken.append(os.dup(writer))
            except OSError:
                break
        for _ in range(5):
            run_pass(loop)
        assert there.heard == []
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    run_until(loop, lambda: bool(there.heard))
    assert len(there.heard[0].descriptors) == 1
    os.close(reader)
    os.close(writer)


def test_rubbish_ends_it_and_is_logged(loop, logged):
    logged.expect("another process of this service said makes no sense")
    ours, theirs = channel_pair()
    end = End(loop, ours)
    theirs.sendall(b"GET / HTTP/1.1\r\n\r\n")
    run_until(loop, lambda: end.over)
    end.channel.close()
    theirs.close()


def test_a_reader_waits_for_a_message_or_the_end():
    ours, theirs = channel_pair()
    with ours:
        with EventLoop() as loop:
            channel = Channel(loop, theirs, lambda message: None, lambda: None)
            channel.send("first")
            channel.close()
        reader = MessageReader(ours)
        message = reader.read()
        assert message is not None
        assert message.kind == "first"
        assert reader.read() is None
