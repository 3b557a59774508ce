"""Every number that bounds what a connection or a server may use, each with its reason.

An entry of `Limits` is all there is to declare. From it come the keyword with its default and the check of its value,
an option and a variable of the command (`evloop.charcount.cli.settings`), and its rows in the tables of the
documentation (``python tools/fill_settings.py`` writes them).

Written by hand and not by `dataclasses`, which takes as long to import as half of Python takes to start. Type checkers
see the keywords as those of a dataclass; at run time they are slots, so reading one costs what an attribute costs.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from inspect import Signature
    from typing import Any, dataclass_transform
else:

    def dataclass_transform(**_):
        return lambda cls: cls


class Limit:
    """What an entry of `Limits` declares.

    Attributes:
        name: its keyword. Ends in the unit, ``_bytes`` or ``_s``, unless it counts things.
        default: its value if none is given; None for no limit.
        least: the smallest value that makes sense.
        most: the greatest; None where there is none.
        can_be_off: it may be None, for no limit; then any other value must be above 0.
        at_it: what happens when it is reached, for a table.
        counter: its name in ``ServerStats.limits``; None for what can't be counted.
        option: what ``--help`` of the command says about it; None for what only programs set.
        off_because: why there is no such limit by default.
        suggested: what to set it to for a server that faces strangers, if it is off by default.
    """

    __slots__ = (
        "at_it",
        "can_be_off",
        "counter",
        "default",
        "least",
        "most",
        "name",
        "off_because",
        "option",
        "suggested",
    )

    name: str

    def __init__(
        self,
        default: float | None,
        least: int,
        most: int | None,
        can_be_off: bool,
        at_it: str,
        counter: str | None,
        option: str | None,
        off_because: str | None,
        suggested: int | None,
    ) -> None:
        self.default = default
        self.least = least
        self.most = most
        self.can_be_off = can_be_off
        self.at_it = at_it
        self.counter = counter
        self.option = option
        self.off_because = off_because
        self.suggested = suggested

    def check(self, value: float | None) -> None:
        """Complain about a value that makes no sense.

        Raises:
            ValueError: it does; the text names the limit.
        """
        if self.can_be_off:
            if value is not None and not value > 0:
                raise ValueError(f"{self.name} must be greater than 0 (or None for no limit), got {value}")
        elif value is None or not value >= self.least:
            raise ValueError(f"{self.name} must be at least {self.least}, got {value}")
        if self.most is not None and value is not None and value > self.most:
            raise ValueError(f"{self.name} must be at most {self.most}, got {value}")


def limit(
    *,
    default: float | None,
    least: int = 1,
    most: int | None = None,
    can_be_off: bool = False,
    at_it: str,
    counter: str | None = None,
    option: str | None = None,
    off_because: str | None = None,
    suggested: int | None = None,
) -> Any:
    """An entry of `Limits`; see `Limit`. (Its type is that of the keyword, as type checkers want it.)"""
    return Limit(default, least, most, can_be_off, at_it, counter, option, off_because, suggested)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(limit,))
class _Declared(type):
    """Makes a slot of each `Limit` in the body of a class, and keeps the limits as its ``table``."""

    table: dict[str, Limit]

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> _Declared:
        own = {key: value for key, value in body.items() if isinstance(value, Limit)}
        for key, entry in own.items():
            entry.name = key
            del body[key]  # a slot of that name can't be beside it
        made = super().__new__(cls, name, bases, {**body, "__slots__": tuple(own)})
        made.table = {key: entry for base in bases for key, entry in getattr(base, "table", {}).items()} | own
        return made

    @property
    def __signature__(cls) -> Signature:
        """What ``help(Limits)`` shows."""
        from inspect import Parameter, Signature  # only who reads help waits for it

        keyword = Parameter.KEYWORD_ONLY
        return Signature([Parameter(name, keyword, default=entry.default) for name, entry in cls.table.items()])


class _Immutable(metaclass=_Declared):
    """What holds whatever the entries are."""

    def __init__(self, **given: float | None) -> None:
        table = type(self).table
        for name in given:
            if name not in table:
                raise TypeError(f"Limits() got an unexpected keyword argument {name!r}; there are: {', '.join(table)}")
        for name, entry in table.items():
            value = given.get(name, entry.default)
            entry.check(value)
            setattr(self, name, value)
        self._check_together()

    def _check_together(self) -> None:
        """Complain about values that make no sense beside each other."""

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, name):
            raise AttributeError(f"limits cannot be changed: make new ones with another {name}")
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"Limits({', '.join(f'{name}={getattr(self, name)!r}' for name in type(self).table)})"


class Limits(_Immutable):
    """The limits of a server and of each of its connections. Immutable; sizes in bytes, times in seconds.

    Given by keyword; what is not given has its default. None means no limit. Three are off by default, since only the
    person who runs the server can know their values:

    - ``max_connections_per_address``: behind a proxy everyone has the same address;
    - ``idle_timeout_s``: people think between two messages;
    - ``message_timeout_s``: a slow link may take long for a large message.

    A server to which strangers can connect should set them:
    ``Limits(max_connections_per_address=100, idle_timeout_s=600, message_timeout_s=60)``.

    Time-outs are never early. They are found by a sweep over all connections, so they can be late by up to a quarter of
    their length, at most 3 s (see `evloop.net.sweeper`).

    Raises:
        ValueError: a value that makes no sense; the text names the keyword.
    """

    # Unsent bytes above which a connection is no longer read. Big enough that a socket whose buffer is full gets a full
    # send's worth when it drains, small enough that 10,000 slow readers cost some 640 MB. To it come the replies of one
    # turn: 16 KiB and those to one piece, 150 KiB for the worst input (`evloop.net.receiving`); and what was
    # received and has to wait for its turn, 64 KiB at most.
    high_water_bytes: int = limit(default=65536, at_it="it is not read until `low_water_bytes`", counter="high-water")
    # Unsent bytes at which it is read again. Well below the high mark, so that it does not flap between the two.
    low_water_bytes: int = limit(default=16384, least=0, at_it="it is read again")
    # Unsent bytes at which a connection is given up. The high mark alone does not bound a protocol that writes without
    # being asked (a broadcast); this does. Replies to one received chunk (64 KiB) fit many times.
    max_unsent_bytes: int = limit(default=16 * 1024 * 1024, at_it="aborted", counter="unsent")
    # What the kernel may hold for a connection that it can't send yet, beside what is under way to the peer (TCP's
    # window, which the peer makes); None for as much as it likes, which is 4 MiB: then 550 clients that never read use
    # up all the memory that a machine of 24 GiB has for TCP. Twice what one send is offered, so that the kernel has
    # something to send while the loop deals with others. It costs no throughput: one download over loopback is x1.6 as
    # fast as without it, at x0.77 of the CPU (medians of 12 interleaved rounds), as what is copied is still in the
    # caches.
    kernel_unsent_bytes: int | None = limit(
        default=131072, can_be_off=True, at_it="the kernel takes no more until it has sent some"
    )
    # A closing connection whose peer still sends is drained, so that a reset does not destroy our last bytes on their
    # way; but not for ever, and not without bound.
    linger_timeout_s: float = limit(
        default=2.0, least=0, at_it="closed, the peer's input unread", counter="linger-timeout"
    )
    linger_bytes: int = limit(
        default=1024 * 1024, least=0, at_it="closed, the peer's input unread", counter="linger-bytes"
    )
    # Connections that wait in the kernel to be accepted. Deep, so that a storm queues instead of being refused; the
    # kernel lowers it to net.core.somaxconn (4096 since Linux 5.4).
    backlog: int = limit(
        default=4096, option="connections that may wait to be accepted", at_it="the kernel lets the next one try again"
    )
    # Connections accepted before those already served get their turn. asyncio takes `backlog` of them in one go, which
    # at 20 us each stalls everyone else for 80 ms.
    accepts_per_pass: int = limit(default=64, at_it="the others get their turn first", counter="accepts-per-pass")
    # Connections served at the same time; lowered at start if the descriptor limit does not allow it.
    max_connections: int = limit(
        default=10000,
        option="clients served at the same time",
        at_it="refused with a line",
        counter="too-many-connections",
    )
    # Of those, from one address; None for no such limit, which suits a server behind a proxy or for local clients.
    max_connections_per_address: int | None = limit(
        default=None,
        can_be_off=True,
        option="clients from one address served at the same time",
        at_it="refused with a line",
        counter="too-many-connections-from-address",
        off_because="behind a proxy everyone has the same address",
        suggested=100,
    )
    # What counts as one address in IPv6: all that have so many first bits in common. 64, as that is what one customer
    # gets at least, and within it every host can have as many addresses as it likes. Many customers get a /56 or a /48:
    # to count such a customer as one address, lower it. With 64, each /64 of theirs is counted by itself.
    ipv6_prefix_bits: int = limit(
        default=64,
        most=128,
        option="IPv6 addresses count as one for that if their first N bits are equal",
        at_it="IPv6 addresses with so many equal first bits count as one",
    )
    # No byte in either direction for this long ends a connection.
    idle_timeout_s: float | None = limit(
        default=None,
        can_be_off=True,
        option="end a connection when no byte was sent or received for so long",
        at_it="aborted",
        counter="idle-timeout",
        off_because="people think between two messages",
        suggested=600,
    )
    # A message that has begun must end within this time, however its bytes trickle in (slowloris).
    message_timeout_s: float | None = limit(
        default=None,
        can_be_off=True,
        option="end a connection when a message that has begun takes longer than this",
        at_it="aborted",
        counter="message-timeout",
        off_because="a slow link may take long for a large message",
        suggested=60,
    )
    # A peer that takes not one byte of what waits for it for this long, here or in the kernel, is gone. A slow one that
    # moves lives: the kernel is asked what the peer has acknowledged, where it can tell (Linux). Elsewhere a byte
    # counts when our kernel takes it, and one that holds much takes nothing for long: choose more there.
    write_timeout_s: float | None = limit(
        default=60.0,
        can_be_off=True,
        option="end a connection when its client reads none of its replies for so long",
        at_it="aborted",
        counter="write-timeout",
    )
    # What a trusted proxy says first is there as soon as its connection is, so this is long. A proxy that is not set up
    # to say it is found by what comes instead; by this one only if nothing comes.
    proxy_header_timeout_s: float = limit(
        default=10.0, least=0, at_it="closed, nothing is sent", counter="proxy-header-timeout"
    )
    # The addresses take 232 bytes at most; the rest is for what else is told, a client's certificate for one.
    proxy_header_bytes: int = limit(
        default=4096, least=107, at_it="closed, nothing is sent; counted as a bad PROXY header"
    )
    # How long a shutdown may take to answer and flush before what is left is aborted.
    drain_timeout_s: float = limit(
        default=10.0,
        least=0,
        option="time to finish when the server is stopped; then it aborts what is left. 0: abort at once",
        at_it="aborted, exit status 1",
        counter="drain-timeout",
    )
    # Of several processes: one that loads much, or a machine that is busy, may take long; this is for one that hangs.
    worker_boot_timeout_s: float | None = limit(
        default=60.0,
        can_be_off=True,
        option="a worker (--workers) that does not serve by then is ended, and another one started",
        at_it="the worker is ended, and another one started",
    )
    # Its clients wait meanwhile, new ones go to others. Long: a handler that comes back has lost nothing of theirs.
    worker_stuck_timeout_s: float | None = limit(
        default=30.0,
        can_be_off=True,
        option="the same for a worker whose loop has not run for so long; it says what it hung in",
        at_it="the worker says what it hangs in and is ended, and another one started",
    )

    # How long connections may take to get to where they can move to another process. Nearly all do at once: those that
    # can't have a peer that does not read what it is owed, or wait for an answer from elsewhere. As long as the old
    # process waits for them, it takes its share of memory, and serves by the settings of yesterday.
    handover_timeout_s: float = limit(
        default=5.0,
        least=0,
        option="on a reload, time for clients that can't move to the new process yet; then drain. 0: drain all",
        at_it="drained",
        counter="handover-timeout",
    )

    def _check_together(self) -> None:
        if not self.low_water_bytes < self.high_water_bytes <= self.max_unsent_bytes:
            raise ValueError(
                "low_water_bytes must be below high_water_bytes, and that not above max_unsent_bytes: got "
                f"{self.low_water_bytes}, {self.high_water_bytes}, {self.max_unsent_bytes}"
            )
