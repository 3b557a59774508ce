"""Telling the service manager how this service is: sd_notify(3), by which systemd and others know when it serves.

Who starts a service may want to hear of it, and then sets ``NOTIFY_SOCKET``, the address of a Unix socket. What it is
told are datagrams of lines, ``READY=1`` for one. A service that is not asked does not load this module.

With ``WATCHDOG_USEC`` it also wants a sign of life every so many microseconds, or else it ends the service and starts
it again. The sign is given by a timer of the loop that serves: a loop that is stuck gives none.

Nothing here waits. What the manager has no room for is lost if there will be more like it; what it must know is sent
again until it goes through. Only the end of all waits for that, for a moment: a manager that has not been told of
another main process takes this one's end for the service's.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, MutableMapping

from evloop.core.loop import Loop
from evloop.core.timers import Timer
from evloop.errors import EXHAUSTED, RETRY
from evloop.log import WARNING, Logger

_log = Logger("evloop.notify")

_ADDRESS, _WATCHDOG, _WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
# Set by a service of this library for the one that is to follow it.
_FOLLOWS = "EVLOOP_NOTIFY"
_VARIABLES = (_ADDRESS, _WATCHDOG, _WATCHDOG_PID, _FOLLOWS)

# Of the time that it may take, so that one sign of life may be lost, and another one late.
_WATCHDOG_FRACTION = 3
# How often it is looked whether the status line has changed.
STATUS_S = 5.0
# When the manager has no room for what it must know.
_AGAIN_S = 0.1
# At the end it is tried for so long, and so often.
_AT_THE_END_S, _AT_THE_END_AGAIN_S = 1.0, 0.01


def notification(**variables: object) -> bytes:
    """What is sent: a line for each variable. Line ends in a value become blanks."""
    return "\n".join(f"{name}={' '.join(str(value).split())}" for name, value in variables.items()).encode(
        errors="replace"
    )


def socket_address(text: str) -> str | None:
    """What ``socket.sendto`` takes, of the variable's value: a path, or ``@`` and an abstract name. None: none."""
    if text.startswith("@") and len(text) > 1:
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def watchdog_s(environ: MutableMapping[str, str], pid: int) -> float | None:
    """In what time process ``pid`` has to give a sign of life; None if it need not."""
    if environ.get(_WATCHDOG_PID, str(pid)) != str(pid):
        return None
    text = environ.get(_WATCHDOG, "")
    return int(text) / 1e6 if text.isascii() and text.isdigit() and len(text) < 18 and int(text) else None


def from_environment(loop: Loop, environ: MutableMapping[str, str] = os.environ) -> Notifier | None:
    """The one that this process was started with, if any. Takes the variables out: children have nothing to tell."""
    told = {name: environ.pop(name) for name in _VARIABLES if name in environ}
    text = told.get(_ADDRESS, "")
    address = socket_address(text)
    if address is None:
        if text:
            _log.log(WARNING, "nobody is told that the service is ready: NOTIFY_SOCKET is %a, which is no path", text)
        return None
    return Notifier(loop, text, address, watchdog_s(told, os.getpid()), _FOLLOWS in told)


class Notifier:
    """Tells the service manager. For the main process of a service.

    Args:
        loop: the one that serves; not owned.
        text: the variable's value.
        address: what it stands for.
        watchdog_s: in what time there has to be a sign of life; None for none.
        follows: another process is still the service's main one; it says so when that changes (`main_pid`).
    """

    def __init__(self, loop: Loop, text: str, address: str, watchdog_s: float | None, follows: bool = False) -> None:
        self._loop = loop
        self._text = text
        self._address = address
        self._watchdog_s = watchdog_s
        self._follows = follows
        self._left = False
        # Open for as long as it may be needed: when descriptors have run out, signs of life still have to be given.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._unsent: list[bytes] = []  # what must be sent
        self._again: Timer | None = None
        self._timers: dict[str, Timer] = {}
        self._status = ""

    def environment(self) -> dict[str, str]:
        """The variables as they were, for a process that is to be the service's main one after this."""
        found = {_ADDRESS: self._text, _FOLLOWS: "1"}
        if self._watchdog_s is not None:
            found[_WATCHDOG] = str(round(self._watchdog_s * 1e6))
        return found

    # ------------------------------------------------------------------ what is told

    def begin(self, status: Callable[[], str], is_well: Callable[[], bool] = lambda: True) -> None:
        """The service serves. From now on signs of life are given, if they are wanted, and the status when it changes.

        Args:
            status: makes a line for people; called every few seconds.
            is_well: asked each time whether there is life. For who looks after others.
        """
        if not self._follows:  # else the other one is believed, and says so
            self.ready(status())
        if self._watchdog_s is not None:
            self._repeat("watchdog", self._watchdog_s / _WATCHDOG_FRACTION, lambda: self._live(is_well()))
        self._repeat("status", STATUS_S, lambda: self._tell_status(status()))

    def ready(self, status: str = "") -> None:
        """It serves; or does so again, after `reloading`."""
        self._must_send(READY=1, **self._changed(status))

    def reloading(self) -> None:
        """It reads its files again, from now until `ready`."""
        self._must_send(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)

    def stopping(self, within_s: float, status: str = "") -> None:
        """It ends, in so many seconds at most: the manager need not be told by hand how long to wait."""
        self._must_send(STOPPING=1, EXTEND_TIMEOUT_USEC=round(within_s * 1e6), **self._changed(status))
        self._stop_telling()

    def main_pid(self, pid: int) -> None:
        """The service's main process is another one now, and serves. This one would not be believed any more, and is
        silent from now on."""
        self._must_send(MAINPID=pid, READY=1)
        self._stop_telling()
        self._left = True

    def close(self) -> None:
        """It is over."""
        self._left = True
        self._stop_telling()
        if self._again is not None:
            self._again.cancel()
        give_up_at = time.monotonic() + _AT_THE_END_S
        while self._unsent:
            if self._send(self._unsent[0]):
                del self._unsent[0]
            elif time.monotonic() < give_up_at:
                time.sleep(_AT_THE_END_AGAIN_S)
            else:
                self._unsent.clear()
        self._socket.close()

    def _live(self, is_well: bool) -> None:
        if is_well:
            self._send(notification(WATCHDOG=1))

    def _tell_status(self, text: str) -> None:
        if changed := self._changed(text):
            self._send(notification(**changed))

    def _changed(self, status: str) -> dict[str, object]:
        if status in ("", self._status):
            return {}
        self._status = status
        return {"STATUS": status}

    def _repeat(self, what: str, interval_s: float, tell: Callable[[], object]) -> None:
        def again() -> None:
            self._timers[what] = self._loop.call_later(interval_s, again)
            tell()

        self._timers[what] = self._loop.call_later(interval_s, again)

    def _stop_telling(self) -> None:
        for timer in self._timers.values():
            timer.cancel()

    # ------------------------------------------------------------------ sending

    def _must_send(self, **variables: object) -> None:
        if self._left:
            return
        self._unsent.append(notification(**variables))
        if self._again is None:
            self._send_unsent()

    def _send_unsent(self) -> None:
        self._again = None
        while self._unsent:
            if not self._send(self._unsent[0]):
                self._again = self._loop.call_later(_AGAIN_S, self._send_unsent)
                return
            del self._unsent[0]

    def _send(self, data: bytes) -> bool:
        """False if it may be sent later."""
        try:
            self._socket.sendto(data, self._address)
        except OSError as error:
            if error.errno in RETRY or error.errno in EXHAUSTED:
                return False
            self._loop.log_limited(WARNING, "the service manager cannot be told anything: %s", error.strerror or error)
        return True
