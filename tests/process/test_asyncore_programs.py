"""Programs of asyncore: those of docs/from-asyncore.md before, on the way and after, and one that forks."""

from __future__ import annotations

import inspect
import re
import signal
import subprocess
import sys

import pytest

from evloop.compat import asynchat, asyncore
from evloop_bench.loadgen.target import free_port
from paths import ROOT
from processes import Process
from waiting import wait_until

PAGE = (ROOT / "docs" / "from-asyncore.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.S | re.M)
ALIAS, BEFORE, ON_THE_WAY, AFTER = BLOCKS

OLD_IMPORTS = "import asynchat\nimport asyncore\n"
REMOVED, ADDED = (
    "".join(f"{line}\n" for line in re.findall(rf"^{re.escape(sign)}(\w.*)$", PAGE.partition("```")[2], re.M))
    for sign in "-+"
)


def has_old_modules() -> bool:
    return sys.version_info < (3, 12)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(
            BEFORE, id="before", marks=pytest.mark.skipif(not has_old_modules(), reason="this Python has no asyncore")
        ),
        pytest.param(BEFORE.replace(OLD_IMPORTS, ADDED), id="imports changed"),
        pytest.param(ON_THE_WAY, id="on the way"),
        pytest.param(AFTER, id="after"),
    ],
)
def test_the_program_at_each_stage(program: str) -> None:
    chat, count = free_port(), free_port()
    program = program.replace("9000", str(chat)).replace("9001", str(count))
    with Process(["-W", "ignore::DeprecationWarning", "-c", program]) as process:
        with process.connect_when_ready(chat) as one, process.connect_when_ready(count) as asks:
            assert one.ask(b"hello\n", 6) == b"hello\n"
            two = process.connect_when_ready(chat)
            assert two.ask(b"there\n", 6) == b"there\n"
            assert one.receive_line() == b"there\n"
            assert asks.ask(b"?\n", 10) == b"2 members\n"
            two.send(b"quit\n")
            assert two.receive_rest() == b"bye\n"
            two.close()
            assert asks.ask(b"?\n", 10) == b"1 members\n"
        if "serve(" in program:
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
        assert "Traceback" not in process.log


def test_the_page_shows_the_imports_of_its_program() -> None:
    assert REMOVED == OLD_IMPORTS
    assert ADDED in ON_THE_WAY
    assert OLD_IMPORTS in BEFORE


def test_a_library_that_imports_them_gets_ours() -> None:
    program = ALIAS + "import asynchat as one, asyncore as other\nprint(one.__name__, other.__name__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.stdout == "evloop.compat.asynchat evloop.compat.asyncore\n", done.stderr


def public_names() -> set[str]:
    found = set()
    for module in (asyncore, asynchat):
        for name, value in vars(module).items():
            ours = getattr(value, "__module__", "").startswith("evloop.compat") or name == "socket_map"
            if name.startswith("_") or not ours or name in INSIDE:
                continue
            found.add(name)
            if inspect.isclass(value) and name in ("dispatcher", "async_chat"):
                found |= {member for member in dir(value) if not member.startswith("_")}
    return found


# Of evloop.compat, and never asyncore's.
INSIDE = {"Attachment", "EventHandlers", "Touching", "Watch", "foreseen", "watch_of", "attach"}


def test_the_page_has_each_name() -> None:
    table = PAGE.partition("## What replaces what")[2].partition("\n## ")[0]
    shown = {word for code in re.findall(r"`([^`]+)`", table) for word in re.findall(r"\w+", code)}
    assert {"dispatcher", "handle_read", "push", "socket_map", "ExitNow"} <= public_names()
    assert not public_names() - shown


FORKS = """
import os, signal
from evloop.compat import asyncore

class Answer(asyncore.dispatcher_with_send):
    def handle_read(self):
        data = self.recv(100)
        if data == b"fork":
            if os.fork() == 0:
                signal.alarm(30)  # nobody else ends it if this test fails
                for one in list(asyncore.socket_map.values()):
                    if one is not self:
                        one.close()
            self.send(b"%d" % os.getpid())
            if os.getpid() != parent:
                asyncore.loop()
                os._exit(0)
            self.close()
        elif data:
            self.send(data)

    def handle_close(self):
        self.close()

class Listener(asyncore.dispatcher):
    def handle_accepted(self, sock, addr):
        Answer(sock)

parent = os.getpid()
listener = Listener()
listener.create_socket()
listener.bind(("127.0.0.1", 0))
listener.listen(5)
print("listening on %s:%d" % listener.socket.getsockname(), flush=True)
asyncore.loop()
"""


def test_a_child_that_closes_what_is_its_parents_does_not_disturb_it() -> None:
    with Process(["-c", FORKS]) as process:
        other, forked = process.connect(), process.connect()
        assert other.ask(b"1", 1) == b"1"
        forked.send(b"fork")
        children = wait_until(process.psutil.children, "a child")
        assert other.ask(b"2", 1) == b"2"  # the child has closed this one, for itself
        assert process.connect().ask(b"3", 1) == b"3"  # and the listener
        pids = {process.popen.pid, children[0].pid}
        said = b""
        while len(said) < sum(len(str(pid)) for pid in pids):
            said += forked.receive_exactly(1)
        assert said in {b"%d%d" % pair for pair in (tuple(pids), tuple(reversed(list(pids))))}
        assert forked.ask(b"4", 1) == b"4"  # by the child: the parent has closed it
        forked.close()
        wait_until(
            lambda: not any(child.status() != "zombie" for child in process.psutil.children()), "the child's end"
        )
        assert "Traceback" not in process.log
