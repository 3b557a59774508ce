"""Services of several processes: who answers, and what happens when one of them dies, hangs, or is replaced."""

from __future__ import annotations

import os
import re
import signal
import socket

import pytest

from paths import SERVER
from processes import Process, listening_socket
from proxyheaders import v1
from waiting import DEADLINE_S, wait_until
from workers import TELLING_SERVER, Service, alive, answered_by, connections_by_worker, wait_for_workers

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="workers need Unix sockets")


@pytest.mark.slow
def test_all_workers_serve_and_the_supervisor_does_not(team):
    workers = wait_for_workers(team, 3)
    assert set(connections_by_worker(team, 60)) == workers
    assert team.popen.pid not in workers


@pytest.mark.slow
def test_one_status_for_all_with_each_worker_beside_it(team):
    workers = wait_for_workers(team, 3)
    before = team.log.count("status:")
    team.signal(signal.SIGUSR1)
    team.wait_for_log("status:", before + 1)
    told = team.log.rpartition("status:")[2]
    assert all(str(pid) in told for pid in workers)


@pytest.mark.slow
def test_a_worker_more_and_a_worker_less(team):
    workers = wait_for_workers(team, 3)
    team.signal(signal.SIGTTIN)
    more = wait_for_workers(team, 4)
    assert workers < more
    (new,) = more - workers
    wait_until(lambda: team.ask() == new, "the new one serves")
    team.signal(signal.SIGTTOU)
    assert wait_for_workers(team, 3) == workers
    assert {team.ask() for _ in range(30)} <= workers


def test_hang_up_replaces_all_workers(team):
    old = wait_for_workers(team, 3)
    before = team.log.count("reloaded:")
    team.signal(signal.SIGHUP)
    team.wait_for_log("reloaded:", before + 1)
    assert team.ask() not in old
    wait_for_workers(team, 3, without=old)


@pytest.mark.slow
def test_where_the_system_has_no_descriptors_for_processes_their_end_is_noticed_by_a_signal(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, runpy\nos.__dict__.pop('pidfd_open', None)\n"
        f"runpy.run_path({TELLING_SERVER!r}, run_name='__main__')"
    )
    with Service(2, program=str(program)) as service:
        for _ in range(2):
            victim = min(wait_for_workers(service, 2))
            os.kill(victim, signal.SIGKILL)
            service.wait_for_log(f"(pid {victim}) was ended by SIGKILL")
            wait_for_workers(service, 2, without={victim})
        service.signal(signal.SIGTERM)
        assert service.wait() == 0


@pytest.mark.slow
def test_every_kind_of_endpoint_at_once(tmp_path):
    """TCP, a Unix socket, TLS on both, and a socket that the service was started with; and proxies on all."""
    world = pytest.importorskip("tlsworld").world()
    certificate, key = world.pair
    plain, secret = tmp_path / "plain", tmp_path / "secret"
    inherited = listening_socket()
    with (
        inherited,
        Process(
            [
                *(
                    SERVER,
                    "--workers",
                    "2",
                    "--proxy-from",
                    "127.0.0.1,unix",
                    "--tls-cert",
                    certificate,
                    "--tls-key",
                    key,
                ),
                *("--listen", "127.0.0.1:0", "--listen", "tls:127.0.0.1:0", "--listen", f"unix:{plain}"),
                *("--listen", f"tls:unix:{secret}", "--listen", f"fd:{inherited.fileno()}"),
            ],
            pass_fds=[inherited.fileno()],
        ) as server,
    ):
        server.wait_for_log("listening on", 5)
        ports = [int(port) for port in re.findall(r"listening on \S*127.0.0.1:(\d+)", server.log)]
        context = world.client_context()
        for round_ in range(6):  # to both workers
            for number, (address, tls) in enumerate(
                [
                    (("127.0.0.1", ports[0]), False),
                    (("127.0.0.1", ports[1]), True),
                    (str(plain), False),
                    (str(secret), True),
                    (("127.0.0.1", ports[2]), False),
                ]
            ):
                with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as sock:
                    sock.settimeout(DEADLINE_S)
                    sock.connect(address)
                    sock.sendall(v1((f"192.0.2.{number}", 1000 + round_), ("192.0.2.99", 80)))
                    client = context.wrap_socket(sock, server_hostname="localhost") if tls else sock
                    client.sendall(b"hello\n")
                    assert client.recv(10) == b"5\n"
                    client.close()
                server.wait_for_log(f"disconnect 192.0.2.{number}:{1000 + round_} ")
        said = set(re.findall(r"(worker \d): connect (192.0.2.\d+)", server.log))
        for number in (2, 3, 4):  # passed in turn
            assert {(f"worker {worker}", f"192.0.2.{number}") for worker in (1, 2)} <= said
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert not plain.exists()
        assert not secret.exists()
        assert "Traceback" not in server.log


@pytest.mark.slow
def test_nobody_is_lost_when_there_are_ever_more_and_fewer_workers(team):
    """Clients come all the time; whoever has come is served, and stays."""
    stay = [team.connect() for _ in range(30)]
    for signum in [signal.SIGTTOU, signal.SIGTTIN, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTTOU] * 2:
        team.signal(signum)
        for _ in range(20):
            team.ask()
        for client in stay:
            answered_by(client)
    wait_for_workers(team, 1)


@pytest.mark.slow
def test_a_new_service_with_fewer_workers_leaves_nobody_waiting(tmp_path):
    """It was given more sockets than it has workers for."""
    program = tmp_path / "program.py"
    program.write_text(
        f"import runpy, sys\nsys.argv[1] = open({str(tmp_path / 'options')!r}).read()\n"
        f"runpy.run_path({TELLING_SERVER!r}, run_name='__main__')"
    )
    (tmp_path / "options").write_text('{"workers": 4}')
    with Service(0, program=str(program)) as service:
        (tmp_path / "options").write_text('{"workers": 2}')
        service.signal(signal.SIGUSR2)
        service.wait_for_log("upgraded: the new service has pid ")
        pid = int(service.log.rpartition("has pid ")[2].split(";")[0])
        try:
            assert service.wait() == 0
            assert len({service.ask() for _ in range(60)}) == 2
        finally:
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not alive(pid), "the new one has ended")
