"""What a process is told to be, and who may not believe it."""

from __future__ import annotations

import os
import socket

import pytest

from evloop.program.workers.role import ROLE_VARIABLE, WORKER, Role, take_role


@pytest.fixture
def pair():
    with_ends = socket.socketpair()
    yield with_ends
    for end in with_ends:
        end.close()


def test_a_process_is_what_it_is_told_and_its_children_are_not(pair):
    told = Role(WORKER, pair[0].fileno(), None, "worker 2", {3: "a", 4: ""})
    environ = {ROLE_VARIABLE: told.as_text(os.getpid()), "OTHER": "x"}
    role = take_role(environ)
    assert role is not None
    assert (role.kind, role.control, role.life, role.name) == (WORKER, pair[0].fileno(), None, "worker 2")
    assert role.inherited == {3: "a", 4: ""}
    # What the service was started with is announced again.
    assert environ == {"OTHER": "x", "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:"}
    assert take_role(environ) is None


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="the system does not tell who has made a socket")
def test_a_socket_of_somebody_else_makes_no_worker(pair):
    assert take_role({ROLE_VARIABLE: Role(WORKER, pair[0].fileno()).as_text(os.getppid())}) is None


def test_without_its_channel_it_is_no_worker(tmp_path):
    for number in (999_999, -1, 1 << 80):
        assert take_role({ROLE_VARIABLE: Role(WORKER, number).as_text(os.getpid())}) is None
    with open(tmp_path / "file", "w") as file:
        assert take_role({ROLE_VARIABLE: Role(WORKER, file.fileno()).as_text(os.getpid())}) is None


@pytest.mark.parametrize("text", ["", "{}", "worker", '{"role": "worker"}', "[]"])
def test_somebody_elses_variable_means_nothing(text):
    environ = {ROLE_VARIABLE: text}
    assert take_role(environ) is None
    assert environ == {}
