"""Fixtures for all tests, and what every test is checked for: nothing leaked, nothing logged that wasn't expected.

A test that provokes a warning says so::

    def test_something(logged):
        logged.expect("its protocol raised")    # must be logged at least once, as a regular expression
        ...

Warnings of Python itself (ResourceWarning too) are errors by the configuration in pyproject.toml.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import selectors
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings

import descriptors
from evloop import EventLoop, Limits, Protocol, Server
from evloop.charcount.server import CharCountServer, ServiceSettings
from servers import RunningServer, small_limits
from waiting import SELECTORS, LoopThread

# No deadline: the machine may be busy. Nothing is written to disk. Half as many examples as usual: they are others in
# each run, and CI runs all tests twice. Where more are worth the time, a slow test has them.
settings.register_profile("evloop", deadline=None, database=None, max_examples=50)
settings.load_profile("evloop")


# Programs inherit what is ignored: in a shell script's background, no test would see one of them interrupted, nor under
# nohup one that reloads.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the option
def pytest_cmdline_main(config: pytest.Config) -> None:
    """In parallel where pytest-xdist is installed; without it, or with ``-n 0`` or ``--pdb``, one after the other.

    Not in pyproject.toml, where an option of a plugin that is missing would be a usage error.
    """
    option = config.option
    if getattr(option, "numprocesses", 0) is None and not option.usepdb and not hasattr(config, "workerinput"):
        option.numprocesses = min(2 * (os.cpu_count() or 1), 6)  # many tests wait


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


# ---------------------------------------------------------------------- checks of each test


class LoggedWarnings(logging.Handler):
    """Collects what the project's loggers say at WARNING or above, and knows what a test expects of it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []
        self._expected: list[str] = []
        self._allowed: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def expect(self, pattern: str) -> None:
        """Lines that match this regular expression are fine, and there must be one in the end."""
        self._expected.append(pattern)

    def allow(self, pattern: str) -> None:
        """Lines that match this regular expression are fine."""
        self._allowed.append(pattern)

    @property
    def lines(self) -> list[str]:
        """What was logged, without tracebacks."""
        return [f"{record.levelname} {record.name}: {record.getMessage()}" for record in self.records]

    def problems(self) -> list[str]:
        """What was logged and not expected, or expected and not logged."""
        lines = self.lines
        unexpected = [line for line in lines if not any(re.search(p, line) for p in self._expected + self._allowed)]
        missing = [p for p in self._expected if not any(re.search(p, line) for line in lines)]
        return [f"logged: {line}" for line in unexpected] + [f"not logged: {pattern}" for pattern in missing]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[LoggedWarnings]:
    """Fails a test that leaves a descriptor or a thread behind, or that logs what it doesn't expect.

    Used by every test, and set up before its other fixtures, so it looks after they are gone.
    """
    handler = LoggedWarnings()
    loggers = [logging.getLogger(name) for name in ("evloop", "charcount")]
    for logger in loggers:
        logger.addHandler(handler)
    threads = set(threading.enumerate())
    before = descriptors.open_descriptors()
    try:
        yield handler
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    leaked = _leaked_since(before)
    if leaked:
        gc.collect()  # makes a socket that nobody holds say where it comes from, by a ResourceWarning
        leaked = _leaked_since(before)
    problems = [f"left open: descriptor {number}, {name}" for number, name in leaked.items()]
    left = [thread for thread in threading.enumerate() if thread not in threads]
    for thread in left:
        thread.join(1)
    problems += [f"left running: {thread!r}" for thread in left if thread.is_alive()]
    problems += handler.problems()
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def _leaked_since(before: dict[int, str]) -> dict[int, str]:
    return {
        number: name + descriptors.describe_socket(number)
        for number, name in descriptors.open_descriptors().items()
        if before.get(number) != name
    }


@pytest.fixture
def logged(_clean: LoggedWarnings) -> LoggedWarnings:
    """What the project's loggers say at WARNING or above. A test that provokes some must ``expect`` it."""
    return _clean


# ---------------------------------------------------------------------- loops and servers


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that uses `selector`, or what is built on it, runs with each selector class of the platform.

    For what does not depend on it there is the mark ``one_selector``, of a test or of a file.
    """
    if "selector" in metafunc.fixturenames and metafunc.definition.get_closest_marker("one_selector") is None:
        marks = metafunc.definition.iter_markers("parametrize")
        if not any("selector" in mark.args[0] for mark in marks):
            names = [selector.__name__.removesuffix("Selector").lower() for selector in SELECTORS]
            metafunc.parametrize("selector", SELECTORS, indirect=True, ids=names)


@pytest.fixture
def selector(request: pytest.FixtureRequest) -> type[selectors.BaseSelector]:
    """A selector class: each one of the platform in turn, or the platform's own choice; see above."""
    chosen: type[selectors.BaseSelector] = getattr(request, "param", selectors.DefaultSelector)
    return chosen


@pytest.fixture
def loop(selector: type[selectors.BaseSelector]) -> Iterator[EventLoop]:
    """A loop to run in the test's own thread, with `waiting.run_pass` or `waiting.run_until`."""
    with EventLoop(selector=selector()) as loop:
        yield loop


@pytest.fixture
def loop_thread(selector: type[selectors.BaseSelector]) -> Iterator[LoopThread]:
    """A loop that runs in a thread."""
    with LoopThread(selector) as thread:
        yield thread


@pytest.fixture
def start(selector: type[selectors.BaseSelector]) -> Iterator[Callable[..., RunningServer]]:
    """Starts servers, each in a loop of its own in a thread, and ends them with the test.

    ``start(ProtocolClass, limits=..., host=..., port=...)``, or ``start(make_server=lambda loop: ...)`` for another
    kind of server.
    """
    running: list[RunningServer] = []

    def start_one(
        protocol_factory: Callable[[], Protocol] | None = None,
        limits: Limits | None = None,
        *,
        make_server: Callable[[EventLoop], Server] | None = None,
        **where: Any,
    ) -> RunningServer:
        if make_server is None:
            assert protocol_factory is not None
            factory = protocol_factory
            chosen = Limits(max_connections=500) if limits is None else limits
            make_server = lambda loop: Server(loop, factory, chosen)  # noqa: E731
        server = RunningServer(make_server, selector, **where)
        running.append(server)
        return server

    yield start_one
    for server in running:
        server.close()


@pytest.fixture
def start_tls() -> Iterator[Callable[..., RunningServer]]:
    """Starts servers that speak TLS, with the platform's selector: ``start_tls(ProtocolClass, limits, settings)``."""
    from tlsworld import TLSServer, world  # makes certificates, which not every test needs

    running: list[RunningServer] = []

    def start_one(protocol_factory: Callable[[], Protocol], limits: Limits | None = None, tls: Any = None) -> Any:
        settings = world().settings() if tls is None else tls
        chosen = Limits(max_connections=500) if limits is None else limits
        server = RunningServer(lambda loop: TLSServer(loop, protocol_factory, chosen, settings))
        running.append(server)
        return server

    yield start_one
    for server in running:
        server.close()


@pytest.fixture
def counting(start: Callable[..., RunningServer]) -> Callable[..., RunningServer]:
    """Starts character-count servers as `start` does: ``counting(limits, framing="raw", ...)``."""

    def start_counting(limits: Limits | None = None, **settings: Any) -> RunningServer:
        chosen = ServiceSettings(limits=small_limits() if limits is None else limits, **settings)
        return start(make_server=lambda loop: CharCountServer(loop, chosen))

    return start_counting


@pytest.fixture
def worlds() -> Iterator[Callable[..., Any]]:
    """Makes worlds of servers whose connections move (`moving.World`); they end with the test."""
    from moving import World  # few tests need it

    made: list[World] = []

    def make(*how: Any) -> World:
        made.append(World(*how))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def team() -> Iterator[Any]:
    """A service of three workers, which ends in order."""
    from workers import Service  # here, as it needs more than most tests do

    with Service(3) as service:
        yield service
        for client in service._clients:
            client.close()  # else the workers wait a while for their FIN
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
        assert "Traceback" not in service.log
