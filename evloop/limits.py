"""Every number that bounds what a connection or a server may use, in one place, each with its reason."""

from __future__ import annotations


class Limits:
    """The limits of a server and of each of its connections. Immutable; sizes in bytes, times in seconds.

    A time-out of None is off. Time-outs are never early; they are found by a sweep over all connections, so they can
    be late by up to a quarter of their length, at most 3 s (see `evloop.server.sweeper`).

    Raises:
        ValueError: a value that makes no sense; the text names the field.
    """

    __slots__ = (
        "accepts_per_pass",
        "backlog",
        "drain_timeout_s",
        "high_water_bytes",
        "idle_timeout_s",
        "ipv6_prefix_bits",
        "kernel_unsent_bytes",
        "linger_bytes",
        "linger_timeout_s",
        "low_water_bytes",
        "max_connections",
        "max_connections_per_address",
        "max_unsent_bytes",
        "message_timeout_s",
        "write_timeout_s",
    )

    def __init__(
        self,
        *,
        # Unsent bytes above which a connection is no longer read. Big enough that a socket whose buffer is full gets a
        # full send's worth when it drains, small enough that 10,000 slow readers cost some 640 MB. To it come the
        # replies of one turn: 16 KiB and those to one piece, 150 KiB for who does his worst (`evloop.net.receiving`);
        # and what was received and has to wait for its turn, 64 KiB at most.
        high_water_bytes: int = 65536,
        # Unsent bytes at which it is read again. Well below the high mark, so that it does not flap between the two.
        low_water_bytes: int = 16384,
        # Unsent bytes at which a connection is given up. The high mark alone does not bound a protocol that writes
        # without being asked (a broadcast); this does. Replies to one received chunk (64 KiB) fit many times.
        max_unsent_bytes: int = 16 * 1024 * 1024,
        # What the kernel may hold for a connection that it can't send yet, beside what is under way to the peer (TCP's
        # window, which the peer makes); None for as much as it likes, which is 4 MiB: then 550 clients that never
        # read use up all the memory that this machine has for TCP. Twice what one send is offered, so that the kernel
        # has something to send while the loop deals with others. It costs no throughput: one download over loopback is
        # x1.6 as fast as without it, at x0.77 of the CPU (medians of 12 interleaved rounds), as what is copied is
        # still in the caches.
        kernel_unsent_bytes: int | None = 131072,
        # A closing connection whose peer still sends is drained, so that a reset does not destroy our last bytes on
        # their way; but not for ever, and not without bound.
        linger_timeout_s: float = 2.0,
        linger_bytes: int = 1024 * 1024,
        # Connections that wait in the kernel to be accepted. Deep, so that a storm queues instead of being refused; the
        # kernel lowers it to net.core.somaxconn (4096 since Linux 5.4).
        backlog: int = 4096,
        # Connections accepted before those already served get their turn. asyncio takes `backlog` of them in one go,
        # which at 20 us each stalls everyone else for 80 ms.
        accepts_per_pass: int = 64,
        # Connections served at the same time; lowered at start if the descriptor limit does not allow it.
        max_connections: int = 10000,
        # Of those, from one address; None for no such limit, which suits a server behind a proxy or for local clients.
        max_connections_per_address: int | None = None,
        # What counts as one address in IPv6: all that have so many first bits in common. 64, as that is what one
        # customer gets at least, and within it every host can have as many addresses as it likes. Many get 56 or 48
        # bits, so lower it against who has those; each /64 in them is counted by itself now.
        ipv6_prefix_bits: int = 64,
        # No byte in either direction for this long ends a connection.
        idle_timeout_s: float | None = None,
        # A message that has begun must end within this time, however its bytes trickle in (slowloris).
        message_timeout_s: float | None = None,
        # A peer that takes not one byte of what waits for it for this long, here or in the kernel, is gone. A slow one
        # that moves lives: the kernel is asked what the peer has acknowledged, where it can tell (Linux). Elsewhere a
        # byte counts when our kernel takes it, and one that holds much takes nothing for long: choose more there.
        write_timeout_s: float | None = 60.0,
        # How long a shutdown may take to answer and flush before what is left is aborted.
        drain_timeout_s: float = 10.0,
    ) -> None:
        self.high_water_bytes = high_water_bytes
        self.low_water_bytes = low_water_bytes
        self.max_unsent_bytes = max_unsent_bytes
        self.kernel_unsent_bytes = kernel_unsent_bytes
        self.linger_timeout_s = linger_timeout_s
        self.linger_bytes = linger_bytes
        self.backlog = backlog
        self.accepts_per_pass = accepts_per_pass
        self.max_connections = max_connections
        self.max_connections_per_address = max_connections_per_address
        self.ipv6_prefix_bits = ipv6_prefix_bits
        self.idle_timeout_s = idle_timeout_s
        self.message_timeout_s = message_timeout_s
        self.write_timeout_s = write_timeout_s
        self.drain_timeout_s = drain_timeout_s
        for name, least in (
            ("high_water_bytes", 1),
            ("low_water_bytes", 0),
            ("max_unsent_bytes", 1),
            ("linger_timeout_s", 0),
            ("linger_bytes", 0),
            ("backlog", 1),
            ("accepts_per_pass", 1),
            ("max_connections", 1),
            ("ipv6_prefix_bits", 1),
            ("drain_timeout_s", 0),
        ):
            value = getattr(self, name)
            if not value >= least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.ipv6_prefix_bits > 128:
            raise ValueError(f"ipv6_prefix_bits must be at most 128, got {self.ipv6_prefix_bits}")
        for name in (
            "kernel_unsent_bytes",
            "max_connections_per_address",
            "idle_timeout_s",
            "message_timeout_s",
            "write_timeout_s",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be greater than 0 (or None for no limit), got {value}")
        if not self.low_water_bytes < self.high_water_bytes <= self.max_unsent_bytes:
            raise ValueError(
                "low_water_bytes must be below high_water_bytes, and that not above max_unsent_bytes: got "
                f"{self.low_water_bytes}, {self.high_water_bytes}, {self.max_unsent_bytes}"
            )

    def __setattr__(self, name: str, value: object) -> None:
        # Written by hand and not by `dataclasses`, which takes as long to import as half of Python takes to start.
        if hasattr(self, name):
            raise AttributeError(f"limits cannot be changed: make new ones with another {name}")
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"Limits({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"
