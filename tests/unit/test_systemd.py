"""Which sockets a process has been started with, by its variables; without any."""

from __future__ import annotations

import os

import pytest

from evloop.errors import ListenError
from evloop.net.endpoint import FdEndpoint
from evloop.program.systemd import parse_inherited, take_inherited


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {}),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "1"}, {FdEndpoint(3): ""}),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "0"}, {}),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b c"}, {FdEndpoint(3): "a", FdEndpoint(4): "b c"}),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": ":"}, {FdEndpoint(3): "", FdEndpoint(4): ""}),
        # For somebody else: whatever it says.
        ({"LISTEN_PID": "8", "LISTEN_FDS": "1"}, {}),
        ({"LISTEN_PID": "", "LISTEN_FDS": "x"}, {}),
        ({"LISTEN_FDS": "1"}, {}),
    ],
    ids=str,
)
def test_what_the_variables_say(variables: dict[str, str], expected: dict[FdEndpoint, str]) -> None:
    assert parse_inherited(variables, 7) == expected


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"LISTEN_FDS": ""},
        {"LISTEN_FDS": "-1"},
        {"LISTEN_FDS": "1 "},
        {"LISTEN_FDS": "²"},
        {"LISTEN_FDS": "1001"},
        {"LISTEN_FDS": "9" * 5000},
        {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "a:b"},
    ],
    ids=lambda variables: str(variables)[:40],
)
def test_variables_that_make_no_sense(variables: dict[str, str]) -> None:
    with pytest.raises(ListenError, match="cannot use the sockets that this process was started with: LISTEN_FDS is"):
        parse_inherited({"LISTEN_PID": "7", **variables}, 7)


def test_they_are_taken_out_so_that_no_child_believes_them() -> None:
    names = {"LISTEN_FDNAMES": "a", "LISTEN_FDS": "1", "LISTEN_PIDFDID": "5"}
    environ = {"LISTEN_PID": str(os.getpid()), **names, "PATH": "/bin"}
    assert take_inherited(environ) == {FdEndpoint(3): "a"}
    assert environ == {"PATH": "/bin"}
    others = {"LISTEN_PID": "1", **names}
    assert take_inherited(others) == {}
    assert others["LISTEN_PID"] == "1"
