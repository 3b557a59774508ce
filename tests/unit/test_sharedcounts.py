"""Limits that several processes have together: counts in every order of steps, servers that use them, the memory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evloop import Connection, Limits, Protocol, Server
from evloop.server.sharedcounts import CountsMemory, SharedCounts
from evloop.testing import MemoryLoop, MemorySocket
from interleaving import SteppedCells, every_order, some_orders
from paths import ROOT
from waiting import DEADLINE_S

ANNA, BERT = ("192.0.2.1", 1024), ("192.0.2.2", 1024)


@pytest.fixture(autouse=True)
def _refusals_are_logged(logged) -> None:
    logged.allow("refused: too-many-connections")


class Process:
    """A server with a row of the counts, as if it were a process."""

    def __init__(self, counts: SharedCounts, **options: object) -> None:
        self.loop = MemoryLoop()
        limits = Limits(**{name: value for name, value in options.items() if name != "proxy_from"})  # type: ignore[arg-type]
        self.server = Server(self.loop, Protocol, limits, counts=counts, proxy_from=str(options.get("proxy_from", "")))
        self.clients: list[MemorySocket] = []

    def accept(self, address: tuple[str, int] = ANNA) -> None:
        sock, client = self.loop.pair()
        self.clients.append(client)
        self.server._accept(Connection, socket.AF_INET, sock, address)

    def lose(self) -> None:
        next(iter(self.server.connections)).abort()

    @property
    def open(self) -> int:
        return len(self.server.connections)


class Service:
    """Several of them, and the memory they share."""

    def __init__(self, processes: int, columns: int = 1, **options: object) -> None:
        self.cells = SteppedCells(processes * columns)
        self.columns = columns
        self.processes = [
            Process(SharedCounts(self.cells, columns, row, b"key"), **options) for row in range(processes)
        ]

    def check(self, most: int) -> None:
        """Not more than may be, and what is in the memory is what there is: no claim has been left behind."""
        each = [process.open for process in self.processes]
        assert sum(each) <= most
        assert self.cells.values[:: self.columns] == each
        for row, process in enumerate(self.processes):
            own = self.cells.values[row * self.columns + 1 : (row + 1) * self.columns]
            if self.columns > 1:
                assert sum(own) == process.open


Scenario = Callable[[], list[Callable[[], object]]]


def outcomes(most: int, scenario: Callable[[Service], list[Callable[[], object]]], **options: object) -> set[int]:
    """How many connections there were in the end, in all orders of steps."""
    found: set[int] = set()
    service: Service

    def set_up() -> list[Callable[[], object]]:
        nonlocal service
        service = Service(2, **options)  # type: ignore[arg-type]
        return scenario(service)

    for _ in every_order(set_up):
        service.check(most)
        found.add(sum(process.open for process in service.processes))
    return found


@pytest.mark.slow
def test_two_never_take_the_last_place_both():
    found = outcomes(1, lambda service: [process.accept for process in service.processes], max_connections=1)
    assert found == {0, 1}  # at worst neither gets it


@pytest.mark.slow
def test_two_that_both_have_a_place_both_get_it():
    found = outcomes(2, lambda service: [process.accept for process in service.processes], max_connections=2)
    assert found == {2}


@pytest.mark.slow
def test_two_of_the_same_address_never_take_its_last_place_both():
    cells: SteppedCells

    def set_up() -> list[Callable[[], object]]:
        nonlocal cells
        cells = SteppedCells(4)
        return [lambda row=row: come(SharedCounts(cells, 2, row)) for row in range(2)]

    def come(counts: SharedCounts) -> None:
        if counts.claim_from(ANNA[0]) <= 1:
            counts.by_origin[ANNA[0]] += 1
        counts.settle_from(ANNA[0])

    found = set()
    for _ in every_order(set_up):
        found.add(tuple(cells.values[1::2]))
    assert found == {(0, 0), (0, 1), (1, 0)}  # at worst neither gets it


def test_one_leaves_while_another_one_comes():
    def scenario(service: Service) -> list[Callable[[], object]]:
        leaving, coming = service.processes
        leaving.accept()
        return [leaving.lose, coming.accept]

    assert outcomes(1, scenario, max_connections=1) == {0, 1}


def test_many_at_once_in_orders_at_random():
    service: Service

    def set_up() -> list[Callable[[], object]]:
        nonlocal service
        service = Service(4, columns=3, max_connections=3, max_connections_per_address=2)
        service.processes[0].accept(BERT)

        def come_and_go(process: Process) -> None:
            process.accept()
            process.accept(BERT)
            if process.open:
                process.lose()
            process.accept()

        return [lambda process=process: come_and_go(process) for process in service.processes]

    for _ in some_orders(set_up, 20):
        service.check(3)


# ---------------------------------------------------------------------- one after another


def test_who_is_refused_is_told_the_limit_of_the_service():
    service = Service(2, max_connections=2)
    first, second = service.processes
    first.accept()
    second.accept()
    second.accept()
    second.loop.advance()
    assert second.clients[-1].recv(100) == b"ERR too-many-connections limit 2\n"
    assert second.server.stats.limits["too-many-connections"] == 1
    first.lose()
    second.accept()
    service.check(2)
    assert second.open == 2


def test_an_address_counts_in_all_processes():
    service = Service(2, columns=1000, max_connections=100, max_connections_per_address=2)
    first, second = service.processes
    first.accept()
    second.accept()
    second.accept()
    second.loop.advance()
    assert second.clients[-1].recv(100) == b"ERR too-many-connections-from-address limit 2\n"
    second.accept(BERT)
    assert (first.open, second.open) == (1, 2)
    service.check(3)


def test_addresses_of_one_column_count_as_one_but_for_those_that_a_process_has_itself():
    service = Service(2, columns=2, max_connections=100, max_connections_per_address=2)
    first, second = service.processes
    first.accept(ANNA)
    first.accept(ANNA)
    first.accept(BERT)  # here they are known exactly
    assert first.open == 3
    second.accept(BERT)  # and here taken for one: refused too early, not too late
    assert second.open == 0
    service.check(3)


def test_owners_of_addresses_are_spread_over_all_columns(memory: CountsMemory):
    counts = SharedCounts.of(memory, 0)
    for number in range(12800):
        counts.by_origin[f"192.0.{number // 256}.{number % 256}"] += 1
    each = list(memory.cells[1:129])
    assert sum(each) == 12800
    assert 40 < min(each) <= max(each) < 180  # 100 on average, with a standard deviation of 10
    for who in list(counts.by_origin):
        del counts.by_origin[who]
    assert not any(memory.cells[1:129])


def test_a_limit_for_addresses_that_came_later_holds_in_each_process_for_itself():
    service = Service(2, columns=1, max_connections=100, max_connections_per_address=1)
    for process in service.processes:
        process.accept()
        process.accept()
        assert process.open == 1
    service.check(2)


def test_a_connection_whose_protocol_cannot_be_made_does_not_count():
    service = Service(1, columns=2, max_connections=5, max_connections_per_address=5)
    (process,) = service.processes

    def fail() -> Protocol:
        raise ValueError("no protocol")

    process.server._protocol_factory = fail
    process.accept()
    with pytest.raises(ValueError, match="no protocol"):
        process.loop.advance()
    service.check(0)
    assert process.server.stats.failed == 1


def test_those_that_wait_for_a_header_count_and_their_clients_by_their_own_address():
    service = Service(2, columns=1000, max_connections=100, max_connections_per_address=1, proxy_from="192.0.2.1")
    first, second = service.processes
    for process in (first, second):
        process.accept(ANNA)
    assert service.cells.values[::1000] == [1, 1]
    assert (first.open, second.open) == (0, 0)
    header = b"PROXY TCP4 203.0.113.7 203.0.113.1 5000 80\r\n"
    for process in (first, second):
        process.clients[0].send(header)
        process.loop.advance()
    assert (first.open, second.open) == (1, 0)
    second.loop.advance()
    assert second.clients[0].recv(100) == b"ERR too-many-connections-from-address limit 1\n"
    service.check(1)


def test_a_service_that_is_full_lets_some_wait_to_be_refused_by_their_own_address():
    service = Service(2, max_connections=1, proxy_from="192.0.2.1")
    first, second = service.processes
    first.accept(BERT)
    for _ in range(9):
        second.accept(ANNA)
    assert len(second.server._gate.waiting) == 8  # type: ignore[union-attr]
    assert second.server.stats.limits["too-many-connections"] == 1


def test_what_a_dead_process_had_counts_no_more(memory: CountsMemory):
    dead, alive = (Process(SharedCounts.of(memory, row), max_connections=3) for row in (0, 1))
    for _ in range(3):
        dead.accept()
    alive.accept()
    assert alive.open == 0
    memory.give_back(0)
    alive.accept()
    assert alive.open == 1


# ---------------------------------------------------------------------- the memory


@pytest.fixture
def memory() -> Iterator[CountsMemory]:
    memory = CountsMemory.create(3, connections=10)
    yield memory
    try:
        memory.close()
    except BufferError:  # the test has not let go of it
        pass


def test_where_there_is_no_memfd_it_is_a_file_without_a_name(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    memory = CountsMemory.create(2)
    other = CountsMemory(os.dup(memory.descriptor))
    memory.cells[1] = 3
    assert list(other.cells) == [0, 3]
    assert not os.get_inheritable(memory.descriptor)
    other.close()
    memory.close()


def test_another_process_sees_the_same_numbers(memory: CountsMemory):
    assert memory.columns == 129  # 8 for each connection, a power of two, and the number of all
    memory.cells[5] = 7
    other = CountsMemory(os.dup(memory.descriptor))
    assert (other.rows, other.columns, other.key) == (3, 129, memory.key)
    assert other.cells[5] == 7
    other.close()


def test_clearing_a_row_leaves_the_others(memory: CountsMemory):
    for index in range(len(memory.cells)):
        memory.cells[index] = 1
    memory.give_back(1)
    assert [sum(memory.cells[row * 129 : (row + 1) * 129]) for row in range(3)] == [129, 0, 129]


def test_rows_are_given_and_given_back(memory: CountsMemory):
    assert [memory.take_row() for _ in range(4)] == [0, 1, 2, None]
    memory.give_back(1)
    assert (memory.take_row(), memory.take_row()) == (1, None)


def test_without_a_limit_for_addresses_a_row_is_one_number():
    memory = CountsMemory.create(100)
    assert (memory.columns, os.fstat(memory.descriptor).st_size) == (1, 64 + 400)
    memory.close()


def test_each_memory_has_a_key_of_its_own(memory: CountsMemory):
    other = CountsMemory.create(1)
    assert other.key != memory.key
    other.close()


@pytest.mark.parametrize("content", [b"something else" * 10, b"evcount1" + bytes(100)])
def test_a_file_that_is_no_such_memory(tmp_path: Path, content: bytes):
    path = tmp_path / "file"
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDWR)
    with pytest.raises(OSError, match="no memory of shared counts"):
        CountsMemory(descriptor)
    os.close(descriptor)


TAKE_ALL = """
import sys
from evloop.server.sharedcounts import CountsMemory, SharedCounts
memory = CountsMemory(int(sys.argv[1]))
counts = SharedCounts.of(memory, int(sys.argv[2]))
limit, refused = int(sys.argv[3]), 0
sys.stdin.readline()
while refused < 200:
    if counts.claim() <= limit:
        counts.connections[object()] = None
    else:
        counts.settle()
        refused += 1
print(len(counts.connections), flush=True)
sys.stdin.readline()  # to be killed
"""


def test_real_processes_take_all_places_and_not_one_more():
    limit = 20000
    memory = CountsMemory.create(3)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TAKE_ALL, str(memory.descriptor), str(row), str(limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            pass_fds=[memory.descriptor],
        )
        for row in range(3)
    ]
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        taken = [int(process.stdout.readline()) for process in processes]  # type: ignore[union-attr]
        assert sum(taken) == limit
        assert list(memory.cells) == taken
        processes[0].kill()
        processes[0].wait(DEADLINE_S)
        memory.give_back(0)
        assert sum(memory.cells) == limit - taken[0]
    finally:
        for process in processes:
            process.kill()
            process.wait(DEADLINE_S)
            process.stdin.close()  # type: ignore[union-attr]
            process.stdout.close()  # type: ignore[union-attr]
        memory.close()
