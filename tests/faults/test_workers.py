"""Services of several processes: rows 100 to 109 of docs/reliability.md. What is not a fault is in tests/process."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
from collections import Counter

import pytest

from clients import Client
from paths import SERVER
from processes import Process
from waiting import DEADLINE_S, wait_until
from workers import (
    TELLING_SERVER,
    Fifo,
    Service,
    alive,
    answered_by,
    connections_by_worker,
    wait_for_workers,
    workers_of,
)

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="workers need Unix sockets")


def test_100_a_killed_worker_is_replaced_and_only_its_connections_end(team):
    wait_for_workers(team, 3)
    by_worker = connections_by_worker(team, 30)
    victim = max(by_worker)
    os.kill(victim, signal.SIGKILL)
    for client in by_worker.pop(victim):
        client.was_reset()  # or ended
    for _ in range(30):  # nobody is refused or reset meanwhile
        assert team.ask() != victim
    for pid, clients in by_worker.items():
        assert {answered_by(client) for client in clients} == {pid}
    wait_for_workers(team, 3, without={victim})
    team.wait_for_log(f"(pid {victim}) was ended by SIGKILL")


@pytest.mark.slow
def test_100_ten_kills_amid_200_clients():
    """All have sent a message when a worker is killed: whoever is not its client has an answer."""
    chance = random.Random(100)
    with Service(4) as service:
        clients = {client: pid for pid, some in connections_by_worker(service, 200).items() for client in some}
        for round_ in range(10):
            for client in clients:
                client.send(b"round %d\n" % round_)
            victim = chance.choice(sorted(wait_for_workers(service, 4)))
            os.kill(victim, signal.SIGKILL)
            ended = []
            for client, pid in clients.items():
                try:
                    assert client.receive_line() == b"round %d %d\n" % (round_, pid)
                except (ConnectionError, AssertionError):
                    assert pid == victim
                if pid == victim:
                    ended.append(client)
            for client in ended:
                del clients[client]
                client.close()
            while len(clients) < 200:  # at once, while there is nobody at the socket of the one that died
                client = service.connect()
                clients[client] = answered_by(client)
            assert victim not in clients.values()
        wait_for_workers(service, 4)


def test_101_new_clients_are_answered_while_a_worker_is_held_up(team, tmp_path):
    wait_for_workers(team, 3)
    waits = Fifo(tmp_path / "fifo")
    held_up = team.connect()
    pid = answered_by(held_up)
    held_up.send(waits.order() + b"\n")
    release = waits.wait_until_blocked()
    others = {team.ask() for _ in range(40)}  # a third of them come to its socket
    assert others
    assert pid not in others
    os.close(release)
    assert held_up.receive_line().endswith(b" %d\n" % pid)
    wait_until(lambda: team.ask() == pid, "it gets new connections again")


@pytest.mark.slow
def test_101_a_stuck_worker_says_what_it_hangs_in_and_is_replaced(tmp_path):
    waits = Fifo(tmp_path / "fifo")
    with Service(2, worker_stuck_timeout_s=0.5) as service:
        client = service.connect()
        pid = answered_by(client)
        client.send(waits.order() + b"\n")
        release = waits.wait_until_blocked()
        service.wait_for_log(f"(pid {pid}) is stuck: nothing heard of it")
        service.wait_for_log("stuck in Teller.on_line (")
        service.wait_for_log(f"(pid {pid}) was ended by SIGABRT")
        wait_for_workers(service, 2, without={pid})
        os.close(release)


@pytest.mark.slow
def test_101_one_that_hangs_in_no_python_is_killed():
    with Service(2, worker_stuck_timeout_s=0.5) as service:
        client = service.connect()
        pid = answered_by(client)
        client.send(b"spin\n")
        service.wait_for_log(f"(pid {pid}) was ended by SIGKILL")
        wait_for_workers(service, 2, without={pid})


@pytest.mark.slow
def test_101_one_that_does_not_get_ready_is_ended(tmp_path):
    program = tmp_path / "program.py"
    shutil.copy(TELLING_SERVER, program)
    with Service(2, program=str(program), worker_boot_timeout_s=5) as service:
        old = wait_for_workers(service, 2)
        program.write_text("import time\ntime.sleep(100)")
        service.signal(signal.SIGHUP)
        service.wait_for_log("does not get ready")
        service.wait_for_log("not reloaded: worker 1")
        assert {service.ask() for _ in range(10)} <= old


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["held up", "killed"])
def test_101_what_was_passed_to_it_and_not_taken_goes_to_others(tmp_path, killed):
    """A Unix socket's connections are passed in turn: also to one of which nobody knows yet that it does not run."""
    path = str(tmp_path / "s")
    with Service(2, where=f"unix:{path}") as service:
        workers = sorted(wait_for_workers(service, 2))
        os.kill(workers[0], signal.SIGSTOP)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(10)]
        for client in clients:
            client.settimeout(DEADLINE_S)
            client.connect(path)
            client.sendall(b"who\n")
        if killed:
            os.kill(workers[0], signal.SIGKILL)
        for client in clients:
            assert int(client.recv(100).split()[1]) != workers[0]
            client.close()
        os.kill(workers[0], signal.SIGCONT) if not killed else None
        service.signal(signal.SIGTERM)
        assert service.wait() == 0


@pytest.mark.slow
def test_102_a_worker_that_keeps_dying_is_started_ever_more_rarely(tmp_path):
    program = tmp_path / "program.py"
    shutil.copy(TELLING_SERVER, program)
    with Service(2, program=str(program)) as service:
        victim = max(connections_by_worker(service, 30))
        (other,) = wait_for_workers(service, 2) - {victim}
        program.write_text("raise SystemExit(1)")
        os.kill(victim, signal.SIGKILL)
        service.wait_for_log("starting another one in 1.6 s")
        # After 0, 0.1, 0.2, 0.4, 0.8, 1.6 s; and the first one had perhaps lived long enough not to count.
        assert service.log.count("starting another one") in (6, 7)
        assert {service.ask() for _ in range(10)} == {other}
        service.wait_for_log("starting another one in 5 s")


@pytest.mark.slow
def test_103_a_service_that_cannot_start_says_why_and_ends(tmp_path):
    with Process([TELLING_SERVER, f'{{"workers": 2, "needs": "{tmp_path}/missing"}}']) as service:
        assert service.wait() == 1  # the supervisor is the same program
    program = tmp_path / "program.py"
    program.write_text(
        "import os\nfrom evloop import LineProtocol, serve\n"
        "if 'EVLOOP_ROLE' in os.environ: raise SystemExit('no such table')\n"
        "serve(LineProtocol, port=0, workers=2)\n"
    )
    with Process([str(program)]) as service:
        assert service.wait() == 3
        assert "no such table" in service.log
        assert "ended with status 1 before it was ready" in service.log
        assert "Traceback" not in service.log


@pytest.mark.slow
def test_104_when_the_supervisor_is_killed_no_worker_is_left(tmp_path):
    """Not even one that hangs in a call that runs no Python."""
    with Service(3, drain_timeout_s=0.5) as service:
        by_worker = connections_by_worker(service, 30)
        workers = wait_for_workers(service, 3)
        hangs, *_ = by_worker
        by_worker[hangs][0].send(b"spin\n")
        service.wait_for_log(f"(pid {hangs}) is held up")
        service.popen.kill()
        wait_until(lambda: not any(map(alive, workers)), "no worker is left")


@pytest.mark.slow
def test_105_reload_brings_new_code_and_a_broken_one_changes_nothing(tmp_path):
    program = tmp_path / "program.py"
    shutil.copy(TELLING_SERVER, program)
    good = program.read_text()
    with Service(2, program=str(program)) as service:
        old = wait_for_workers(service, 2)
        program.write_text(good.replace("import json", "import jason"))
        service.signal(signal.SIGHUP)
        service.wait_for_log("not reloaded: worker 1")
        assert {service.ask() for _ in range(20)} <= old
        program.write_text(good.replace('b"%b %d', 'b"%b new %d'))
        service.signal(signal.SIGHUP)
        service.wait_for_log("\nreloaded: 2")
        with Client(service.address) as client:
            client.send(b"x\n")
            assert client.receive_line().startswith(b"x new ")
        wait_for_workers(service, 2, without=old)


@pytest.mark.slow
def test_105_upgrade_replaces_the_supervisor_and_a_broken_one_changes_nothing(tmp_path):
    program = tmp_path / "program.py"
    shutil.copy(TELLING_SERVER, program)
    good = program.read_text()
    with Service(2, program=str(program)) as service:
        old = wait_for_workers(service, 2)
        program.write_text("raise SystemExit('no')")
        service.signal(signal.SIGUSR2)
        service.wait_for_log("not upgraded: the new one")
        assert {service.ask() for _ in range(10)} <= old
        program.write_text(good)
        service.signal(signal.SIGUSR2)
        service.wait_for_log("upgraded: the new service has pid ")
        assert service.wait() == 0
        pid = int(service.log.rpartition("has pid ")[2].split(";")[0])
        try:
            assert service.ask() not in old
            assert not any(map(alive, old))
        finally:
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not alive(pid), "the new one has ended")


# Once there is a file beside it, a worker is held up as soon as it serves.
HELD_UP = """
import os, time
from evloop import LineProtocol, serve

class Answering(LineProtocol):
    def on_line(self, line):
        return line + b"\\n"

def hold_up(loop, server):
    if os.path.exists(__file__ + ".held-up"):
        loop.call_later(0, time.sleep, 1)

if __name__ == "__main__":
    serve(Answering, "127.0.0.1:0", workers=2, on_start=hold_up)
"""


@pytest.mark.slow
def test_105_connections_wait_with_their_worker_while_the_next_one_is_held_up(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(HELD_UP)
    with Service(2, program=str(program)) as service:
        clients = [service.connect() for _ in range(900)]
        for client in clients:
            assert client.ask(b"a\n", 2) == b"a\n"
        (tmp_path / "program.py.held-up").touch()
        seen = [service.descriptors()]
        service.signal(signal.SIGHUP)

        def reloaded() -> bool:
            seen.append(service.descriptors())
            return "reloaded: 2 workers" in service.log

        wait_until(reloaded, "reloaded")
        assert max(seen) - seen[0] < 120  # and not all those that the kernel had no room for
        for client in clients:
            assert client.ask(b"b\n", 2) == b"b\n"
            client.close()
        service.signal(signal.SIGTERM)
        assert service.wait() == 0


@pytest.mark.slow
def test_105_certificates_are_looked_at_before_anybody_is_replaced(tmp_path):
    world = pytest.importorskip("tlsworld").world()
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    for source, copy in zip(world.pair, (certificate, key), strict=True):
        shutil.copy(source, copy)
    options = ["--workers", "2", "--tls-cert", str(certificate), "--tls-key", str(key)]
    with Process([SERVER, "--listen", "tls:127.0.0.1:0", *options]) as server:
        assert server.address
        old = wait_for_workers(server, 2)
        certificate.write_text("rubbish")
        server.signal(signal.SIGHUP)
        server.wait_for_log("not reloaded: worker 1")
        assert workers_of(server) == old
        with world.client_context().wrap_socket(server.connect().socket, server_hostname="localhost") as client:
            client.sendall(b"hello\n")
            assert client.recv(10) == b"5\n"


@pytest.mark.slow
def test_106_the_port_is_refused_to_a_second_service(team):
    _, port = team.address
    with Process([TELLING_SERVER, f'{{"workers": 2, "where": "127.0.0.1:{port}"}}']) as second:
        assert second.wait() == 3
        assert "the port is taken" in second.log
        assert second.log.count("\n") == 1


@pytest.mark.slow
def test_107_a_signal_of_the_terminal_to_all_is_for_the_supervisor_alone(team):
    workers = wait_for_workers(team, 3)
    for pid in workers:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGHUP)
    assert {team.ask() for _ in range(20)} <= workers


@pytest.mark.slow
def test_107_a_worker_that_somebody_terminates_ends_in_order_and_is_replaced(team):
    wait_for_workers(team, 3)
    client = team.connect()
    pid = answered_by(client)
    os.kill(pid, signal.SIGTERM)
    assert client.receive_rest() == b""
    wait_for_workers(team, 3, without={pid})


def test_108_sigterm_answers_what_has_arrived_and_ends_all():
    with Service(2) as service:
        clients = [client for some in connections_by_worker(service, 10).values() for client in some]
        workers = workers_of(service)
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        waiting = [service.connect() for _ in range(30)]  # nobody has accepted them
        for client in [*clients, *waiting]:
            client.send(b"late\n")
        service.signal(signal.SIGTERM)
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        for client in [*clients, *waiting]:
            assert client.receive_line().startswith(b"late ")
            assert client.receive_rest() == b""
            client.close()
        assert service.wait() == 0
        assert not any(map(alive, workers))


@pytest.mark.slow
def test_108_a_second_signal_aborts(spawn):
    server = spawn("--workers", "2", "--drain-timeout", "60")
    client = server.connect()
    client.send_until_full(b"does not read\n" * 1000)
    server.signal(signal.SIGTERM)
    server.wait_for_log("1 connections to finish")
    server.signal(signal.SIGTERM)
    assert server.wait() == 1


@pytest.mark.slow
def test_109_a_unix_socket_is_shared_out_evenly(tmp_path):
    path = tmp_path / "s"
    with Service(2, where=f"unix:{path}") as service:
        pids = Counter[int]()
        clients = []
        for _ in range(20):
            client = socket.socket(socket.AF_UNIX)
            clients.append(client)
            client.connect(str(path))
            client.sendall(b"who\n")
            pids[int(client.makefile("rb").readline().split()[1])] += 1
        assert sorted(pids.values()) == [10, 10]
        for client in clients:
            client.close()
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
        assert not path.exists()


@pytest.mark.slow
def test_109_the_kernel_shares_out_tcp_connections():
    with Service(4) as service:
        uneven = []
        for _ in range(5):
            counts = [len(some) for some in connections_by_worker(service, 100).values()]
            uneven.append(max(counts) / 25)
        assert sorted(uneven)[2] <= 1.5
