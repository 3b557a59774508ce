"""Services of several processes that are told to end while they do something else: rows 107 and 108."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from contextlib import suppress

import pytest

from clients import Client
from waiting import wait_until
from workers import TELLING_SERVER, Service, alive, answered_by, wait_for_workers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="workers need Unix sockets"),
]


def owe(client: Client) -> None:
    """Have its worker owe it answers that it does not take: it can't move, and its drain takes time."""
    client.send_until_full((b"x" * 99 + b"\n") * 10)


@pytest.mark.parametrize(
    ("workers", "order", "handover_timeout_s"),
    [(2, "SIGHUP", 0), (2, "SIGUSR2", 0), (2, "SIGUSR2", 30), (1, "SIGUSR2", 0), (1, "SIGUSR2", 30)],
)
def test_108_sigterm_to_all_processes_when_some_make_way_already_aborts_nobody(workers, order, handover_timeout_s):
    with Service(workers, handover_timeout_s=handover_timeout_s) as service:
        client = service.connect()
        old = answered_by(client)
        owe(client)
        service.signal(getattr(signal, order))
        service.wait_for_log("\nreloaded: " if order == "SIGHUP" else "upgraded: the new service has pid ")
        family = [service.popen.pid, *(child.pid for child in service.psutil.children(recursive=True))]
        try:
            for pid in filter(alive, family):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not any(map(alive, set(family) - {old, service.popen.pid})), "the others have ended")
            assert alive(old)
            assert client.receive_rest().endswith(b" %d\n" % old)  # an end in order, and behind a whole answer
            client.close()
            assert service.wait() == 0
            assert "Traceback" not in service.log
        finally:
            for pid in filter(alive, family):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_108_sigterm_while_a_new_service_starts_is_for_that_one_too(tmp_path, workers):
    program = tmp_path / "program.py"
    shutil.copy(TELLING_SERVER, program)
    with Service(workers, program=str(program)) as service:
        old = {child.pid for child in service.psutil.children()}
        program.write_text("import time\ntime.sleep(100)")
        service.signal(signal.SIGUSR2)
        (new,) = wait_for_workers(service, len(old) + 1) - old
        try:
            service.signal(signal.SIGTERM)
            assert service.wait() == 0
            wait_until(lambda: not alive(new), "it has ended, too")
            assert "not upgraded" not in service.log
        finally:
            if alive(new):
                os.kill(new, signal.SIGKILL)


def test_107_new_clients_are_answered_while_a_worker_that_somebody_terminates_drains():
    with Service(3) as service:
        wait_for_workers(service, 3)
        client = service.connect()
        pid = answered_by(client)
        owe(client)
        os.kill(pid, signal.SIGTERM)
        began = time.monotonic()
        while time.monotonic() < began + 0.6:  # it accepts for 0.2 s, and has an end only when the client reads
            service.ask()
        assert all(service.ask() != pid for _ in range(20))
        assert alive(pid)
        assert client.receive_rest().endswith(b" %d\n" % pid)
        client.close()
        wait_for_workers(service, 3, without={pid})
