"""Two hosts and a bad network between them, on one Linux machine.

Each host is a network namespace with a TUN device. What the kernel sends through one, this program reads as packets
and passes to the other: late, twice, out of order, or not at all, as a seeded generator decides. It is netem's work
done by hand, as netem is not in every kernel, and it can't be told to pull the cable at a certain packet.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000

SERVER_ADDRESS, CLIENT_ADDRESS = "10.213.77.1", "10.213.77.2"


def why_not() -> str | None:
    """Why this can't be had here; None if it can."""
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    probe = f"evprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", probe], capture_output=True)
    return None if made.returncode == 0 else f"no network namespace can be made: {made.stderr.strip()}"


@dataclass
class Weather:
    """How bad it is. Chances from 0 to 1, times in seconds."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0  # more than the distance of two packets puts them out of order
    cable_pulled: bool = False


class BadNetwork:
    """Two namespaces and the relay between them. Use it as a context manager.

    Attributes:
        weather: how bad it is; may be changed at any time.
        passed, lost: packets so far.
        server_side: what a command has to begin with to run on the server's host.
    """

    def __init__(self, seed: int) -> None:
        self.weather = Weather()
        self.passed = self.lost = 0
        self._chance = random.Random(seed)
        self._names = [f"ev{os.getpid()}-{seed}-{end}" for end in ("server", "client")]
        self.server_side = ["ip", "netns", "exec", self._names[0]]
        self._tuns: list[int] = []
        self._stop_reader, self._stop_writer = os.pipe()
        self._thread = threading.Thread(target=self._relay, daemon=True)
        try:
            for name, address in zip(self._names, (SERVER_ADDRESS, CLIENT_ADDRESS), strict=True):
                _ip("netns", "add", name)
                self._tuns.append(_in_namespace(name, _open_tun))
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", name, "address", "add", f"{address}/24", "dev", "tun0")
                _ip("-n", name, "link", "set", "tun0", "up")
        except BaseException:
            self.close()
            raise
        self._thread.start()

    def connect(self, port: int, receive_buffer: int | None = None) -> socket.socket:
        """A client on the client's host, connected to the server's."""

        def make() -> socket.socket:
            sock = socket.socket()
            sock.settimeout(20)
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            try:
                sock.connect((SERVER_ADDRESS, port))
            except BaseException:
                sock.close()
                raise
            return sock

        return _in_namespace(self._names[1], make)

    def _relay(self) -> None:
        late: list[tuple[float, int, int, bytes]] = []  # when, sequence, where to, packet
        sequence = 0
        while True:
            timeout_s = max(late[0][0] - time.monotonic(), 0) if late else None
            ready, _, _ = select.select([*self._tuns, self._stop_reader], [], [], timeout_s)
            if self._stop_reader in ready:
                return
            for tun in ready:
                packet = os.read(tun, 65536)
                other = self._tuns[1 - self._tuns.index(tun)]
                weather = self.weather
                if weather.cable_pulled or self._chance.random() < weather.loss:
                    self.lost += 1
                    continue
                for _ in range(1 + (self._chance.random() < weather.duplicate)):
                    sequence += 1
                    due = time.monotonic() + weather.delay_s + self._chance.uniform(0, weather.jitter_s)
                    heapq.heappush(late, (due, sequence, other, packet))
            while late and late[0][0] <= time.monotonic():
                _, _, other, packet = heapq.heappop(late)
                if not self.weather.cable_pulled:
                    self.passed += 1
                    os.write(other, packet)

    def close(self) -> None:
        """Take everything down."""
        os.write(self._stop_writer, b"x")
        if self._thread.is_alive():
            self._thread.join(10)
        for number in [*self._tuns, self._stop_reader, self._stop_writer]:
            os.close(number)
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def __enter__(self) -> BadNetwork:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _in_namespace(name: str, work: Callable[[], T]) -> T:
    """Run something in a network namespace: in a thread of its own, as a namespace belongs to a thread."""

    def enter_and_work() -> T:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{name}", "rb") as namespace:
            if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"cannot enter {name}")
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(enter_and_work).result()


def _open_tun() -> int:
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _IFF_TUN | _IFF_NO_PI))
    return tun
