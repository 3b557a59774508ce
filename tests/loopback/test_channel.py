"""The control channel: messages and descriptors between two ends, whatever the kernel takes at a time."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import sys

import pytest

from evloop import EventLoop
from evloop.program.workers.channel import Channel, MessageReader, channel_pair
from evloop.program.workers.messages import Message
from paths import ROOT
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


# As a user who may not have more descriptors on their way than a process may have open.
MANY = """
import os, resource
from evloop import EventLoop
from evloop.program.workers.channel import Channel, channel_pair

def take(message):
    assert len(message.descriptors) == 1
    os.close(message.descriptors[0])
    heard.append(message.fields["number"])
    if len(heard) == 60:
        loop.stop()

heard = []
with EventLoop() as loop:
    ours, theirs = channel_pair()
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    here = Channel(loop, ours, print, lambda: print("the end"))
    for number in range(60):
        here.send("one", descriptors=[0], number=number)
    print("some wait:", here.unsent_bytes > 0)
    loop.call_later(0.05, loop.stop)
    loop.run()
    print("it spins:", loop.passes > 50)
    there = Channel(loop, theirs, take, print)
    loop.call_later(5, loop.stop)
    loop.run()
    print(heard == list(range(60)), here.unsent_bytes)
    here.close()
    there.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other limits")
def test_more_descriptors_than_may_be_on_their_way_at_once_arrive_all():
    program = [sys.executable, "-c", MANY]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert (done.stdout, done.stderr) == ("some wait: True\nit spins: False\nTrue 0\n", "")


@pytest.mark.parametrize("number", [errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM])
def test_what_the_kernel_has_no_means_for_now_is_sent_later(loop, ends, monkeypatch, number):
    here, there = ends

    def refuse(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket, "send_fds", refuse)
    here.channel.send("first", descriptors=[0])
    here.channel.send("second")
    run_pass(loop)
    run_pass(loop)
    assert there.heard == []
    monkeypatch.undo()
    run_until(loop, lambda: len(there.heard) == 2)
    assert [(message.kind, len(message.descriptors)) for message in there.heard] == [("first", 1), ("second", 0)]


def test_who_forwards_needs_no_descriptor_more_and_has_few(loop, ends):
    source, middle = ends
    to_heir, heirs = channel_pair()
    between = Channel(loop, to_heir, print, lambda: None)
    most = 0

    def forward(message):
        nonlocal most
        between.forward(message)
        assert message.descriptors == []
        middle.channel.rest_while(lambda: between.behind)
        most = max(most, len(between._unsent))

    middle.channel._on_message = forward
    for number in range(600):
        source.channel.send("moved", bytes(1000), [0], number=number)
    idle = loop.passes
    run_until(loop, lambda: middle.channel.rests and loop.passes > idle + 50)
    assert 0 < most < 50
    assert source.channel.unsent_bytes > 0
    heir = End(loop, heirs)
    run_until(loop, lambda: len(heir.heard) == 600)
    assert [message.fields["number"] for message in heir.heard] == list(range(600))
    assert most < 50
    for message in heir.heard:
        (descriptor,) = message.descriptors
        os.close(descriptor)
    between.close()
    heir.channel.close()


def test_what_waits_to_be_forwarded_is_no_duplicate(loop, ends, monkeypatch):
    here, there = ends
    here.channel.send("long", bytes(1_000_000))
    reader, writer = os.pipe()
    message = Message("moved", {}, b"", [reader])
    monkeypatch.setattr(os, "dup", None)  # there is none left
    here.channel.forward(message)
    monkeypatch.undo()
    run_until(loop, lambda: len(there.heard) == 2)
    assert len(there.heard[1].descriptors) == 1
    os.close(writer)


def test_who_rests_hears_the_last_words_though(loop, ends):
    here, there = ends
    there.channel.rest_while(lambda: True)
    for number in range(10):
        here.channel.send("n", number=number)
    run_pass(loop)
    assert there.heard == []
    assert there.channel.rests
    there.channel.receive_all()
    assert len(there.heard) == 10


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
