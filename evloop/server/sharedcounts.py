"""How many connections several processes have together, and each address among them: limits of a service of workers.

Theory of operation
-------------------
A piece of memory is shared by all processes of the service. Each has a *row* in it, of 32-bit numbers: how many
connections it has, then how many of each owner of addresses. It alone writes into its row, and everybody reads all
rows; what the service has is the sum of a column. So there is no lock that a process could keep for ever by dying, and
none to wait for. If a process dies, whoever started it sets its row to 0, and its connections count no more.

To be let in, a connection is *claimed*: counted first, and then the column is added up. If two processes do so at the
same moment, whichever order their steps come in, at least one of them sees the other's claim; so there never are more
than the limit allows. It may be that both are refused, though there was a place for one of them. That is the safe side,
and a claim that was refused is gone after some microseconds. (A processor may look at other rows before its own claim
is visible to other processors, but by nanoseconds; Python takes longer from the one to the other.)

There are more owners of addresses than there can be columns. Each is given one by a hash; who has the same column
counts as the same owner, so somebody may be refused too early, and nobody gets more than he may. There are at least
eight columns for each connection that may be open, so that a column has less than an eighth of a stranger on average,
and it takes as many of them as are missing to the limit. What a process has itself it knows exactly.
The hash has a secret key, so that nobody can choose addresses that get in the way of somebody else's.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections import Counter

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

    from evloop.net.connection import Connection
    from evloop.server.proxygate import WaitingSocket

# At the beginning of the memory: what it is, how many rows there are, how many numbers each has, and the secret key.
_HEADER = struct.Struct("=8sII16s")
_MAGIC = b"evcount1"
_CELLS_AT = 64
_CELL_BYTES = 4

# Columns for owners of addresses, by the number of connections that may be open.
_COLUMNS_PER_CONNECTION = 8
_MOST_COLUMNS = 1 << 20


class CountsMemory:
    """The memory that a service's processes share.

    Args:
        descriptor: of a file in memory that `create` has made; it is the same one in another process. Owned.

    Attributes:
        descriptor: to be passed to those who share it.
        rows: how many processes there can be at the same time.
        columns: how many numbers each has.
        key: of the hash.
        cells: the numbers, row after row. In the machine's own order of bytes.

    Raises:
        OSError: it can't be used as such memory.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, 0)
        magic, self.rows, self.columns, self.key = _HEADER.unpack_from(self._map)
        if magic != _MAGIC or len(self._map) != _size(self.rows, self.columns):
            raise OSError(errno.EINVAL, "this is no memory of shared counts")
        self._view = memoryview(self._map)
        self.cells = self._view[_CELLS_AT:].cast("I")
        self._free = list(range(self.rows))

    @classmethod
    def create(cls, rows: int, connections: int = 0) -> Self:
        """New memory, all of it 0.

        Args:
            rows: as above.
            connections: how many may be open if they are counted by their addresses, too; 0 if they are not.

        Raises:
            OSError: there is no descriptor or no memory.
        """
        columns = 1
        if connections:
            wanted = min(_COLUMNS_PER_CONNECTION * connections, _MOST_COLUMNS)
            columns += 1 << (wanted - 1).bit_length()
        descriptor = _file_in_memory()
        try:
            os.ftruncate(descriptor, _size(rows, columns))
            os.pwrite(descriptor, _HEADER.pack(_MAGIC, rows, columns, os.urandom(16)), 0)
            return cls(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def take_row(self) -> int | None:
        """A row for a process that is being started; None if there is none left. For the one that starts them all."""
        return self._free.pop(0) if self._free else None

    def give_back(self, row: int) -> None:
        """The process that had this row is dead: nothing of what it had counts any more."""
        first = row * self.columns
        self.cells[first : first + self.columns] = memoryview(bytes(self.columns * _CELL_BYTES)).cast("I")
        self._free.append(row)

    def close(self) -> None:
        """Give the memory back; whoever else has it keeps it. Counts that use it must not be used any more."""
        self.cells.release()
        self._view.release()
        self._map.close()
        os.close(self.descriptor)


def _size(rows: int, columns: int) -> int:
    return _CELLS_AT + rows * columns * _CELL_BYTES


def _file_in_memory() -> int:
    """The descriptor of a file without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("evloop-counts")
    import tempfile  # here, as Linux does without

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class SharedCounts:
    """What one process counts, for itself and for the others.

    The collections below are those of a server, and count whatever is put into them, or taken out.

    Args:
        cells: the numbers that are shared, row after row. This process writes only those of its row.
        columns: how many numbers a row has.
        row: which one is this process's.
        key: of the hash.

    Attributes:
        connections: that are open, each with the owner of its address.
        waiting: sockets of which it isn't known yet whose they are.
        by_origin: how many connections each owner of addresses has here.
        knows_origins: whether that is shared, too. It is not if the memory was made when there was no such limit.
    """

    def __init__(self, cells: Any, columns: int, row: int, key: bytes = b"") -> None:
        self.connections: dict[Connection, object] = _CountedDict(self.settle)
        self.waiting: set[WaitingSocket] = _CountedSet(self.settle)
        self.knows_origins = columns > 1
        self.by_origin: Counter[object] = Counter()
        if self.knows_origins:
            self.by_origin = _CountedCounter(self._add_to_origin)
        self._cells = cells
        self._columns = columns
        self._first = row * columns
        self._key = key
        self._last_column: tuple[object, int] = (None, 0)
        self.settle()

    @classmethod
    def of(cls, memory: CountsMemory, row: int) -> Self:
        """Those in a row of shared memory."""
        return cls(memory.cells, memory.columns, row, memory.key)

    def claim(self) -> int:
        """Count one more connection, until `settle`. How many there are with it, in all processes."""
        self._cells[self._first] = len(self.connections) + len(self.waiting) + 1
        return sum(self._cells[:: self._columns])

    def settle(self) -> None:
        """Count those that there are."""
        self._cells[self._first] = len(self.connections) + len(self.waiting)

    def claim_from(self, who: object) -> int:
        """Count one more connection of this owner of addresses, until `settle_from`.

        Returns:
            how many there are with it, in all processes; or more, if others have the same column.
        """
        column = self._column(who)
        cell = self._first + column
        self._cells[cell] += 1
        elsewhere: int = sum(self._cells[column :: self._columns]) - self._cells[cell]
        return elsewhere + self.by_origin[who] + 1

    def settle_from(self, who: object) -> None:
        """Take the claim back; what became of it is counted by itself."""
        self._cells[self._first + self._column(who)] -= 1

    def _add_to_origin(self, who: object, change: int) -> None:
        self._cells[self._first + self._column(who)] += change

    def _column(self, who: object) -> int:
        last, column = self._last_column
        if who != last:  # it is asked for several times for each connection, one after another
            column = self._find_column(who)
            self._last_column = (who, column)
        return column

    def _find_column(self, who: object) -> int:
        # Here, as it is only needed by who limits addresses: it loads OpenSSL. Python's own hash has another key in
        # each process, if it has one at all.
        from hashlib import blake2b

        digest = blake2b(repr(who).encode(), digest_size=8, key=self._key).digest()
        return 1 + int.from_bytes(digest, "little") % (self._columns - 1)


class _CountedDict(dict["Connection", object]):
    """Calls ``changed`` when there are more or fewer."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def __setitem__(self, key: Connection, value: object) -> None:
        super().__setitem__(key, value)
        self._changed()

    def __delitem__(self, key: Connection) -> None:
        super().__delitem__(key)
        self._changed()

    def pop(self, *arguments: Any) -> Any:
        value = super().pop(*arguments)
        self._changed()
        return value


class _CountedSet(set["WaitingSocket"]):
    """Calls ``changed`` when there are more or fewer."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def add(self, item: WaitingSocket) -> None:
        super().add(item)
        self._changed()

    def discard(self, item: object) -> None:
        super().discard(item)
        self._changed()


class _CountedCounter(Counter[object]):
    """Calls ``changed`` with what has been counted, and how much more it is than before."""

    def __init__(self, changed: Callable[[object, int], None]) -> None:
        self._changed = changed

    def __setitem__(self, who: object, count: int) -> None:
        self._changed(who, count - self[who])
        super().__setitem__(who, count)

    def __delitem__(self, who: object) -> None:
        self._changed(who, -self[who])
        super().__delitem__(who)
