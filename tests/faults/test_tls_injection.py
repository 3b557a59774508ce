"""The whole life of a connection on a socket that misbehaves, as in test_injection.py, over TLS."""

from __future__ import annotations

import socket
import ssl
from functools import cache
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from evloop import Connection, TLSServerSettings
from faults.test_injection import Life
from tlsworld import world
from waiting import run_pass


class TLSPeer:
    """The other end: TLS over a socket that does not block, with the methods of a socket.

    What the kernel does not take waits here, and leaves with the next call.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._socket = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._unsent = b""
        self._plain = bytearray()  # received, and not asked for yet
        self._raw = bytearray()  # the beginning of a record
        self._saw_end = False
        self._ends = False
        self._ended = False

    def _push(self) -> None:
        self._unsent += self._outgoing.read()
        if self._unsent:
            try:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            except BlockingIOError:
                return
        if self._ends and not self._ended and not self._unsent:
            self._ended = True
            self._socket.shutdown(socket.SHUT_WR)

    def _put(self, data: bytes) -> None:
        """Give TLS whole records only: with a part of one in it, it would not bear to say goodbye and to read on."""
        self._raw += data
        while len(self._raw) >= 5 and len(self._raw) >= (size := 5 + int.from_bytes(self._raw[3:5], "big")):
            self._incoming.write(bytes(self._raw[:size]))
            del self._raw[:size]

    def step(self) -> bool:
        """Go on with the handshake. Whether it is done."""
        try:
            self._put(self._socket.recv(65536))
        except BlockingIOError:
            pass
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._push()
            return False
        self._push()
        return True

    def send(self, data: bytes) -> int:
        if self._ends:
            raise BrokenPipeError
        self._push()
        if self._unsent:
            raise BlockingIOError
        self._tls.write(data)
        self._push()
        return len(data)

    def recv(self, size: int) -> bytes:
        self._push()
        if not self._plain and not self._saw_end:
            try:
                data = self._socket.recv(size)
            except BlockingIOError:
                data = None  # but something may have come together with the end of the handshake
            self._put(data or b"")
            self._read_all()
            self._saw_end = self._saw_end or data == b""
        if not self._plain and not self._saw_end:
            raise BlockingIOError
        taken = bytes(self._plain[:size])
        del self._plain[:size]
        return taken

    def _read_all(self) -> None:
        # All of it: to say goodbye with something left unread is an error that OpenSSL never forgives.
        try:
            while part := self._tls.read(65536):
                self._plain += part
            self._saw_end = True
        except ssl.SSLZeroReturnError:
            self._saw_end = True
        except ssl.SSLWantReadError:
            pass

    def shutdown(self, how: int) -> None:
        self._ends = True
        self._read_all()
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass
        self._push()

    def setsockopt(self, *arguments: Any) -> None:
        self._socket.setsockopt(*arguments)

    def close(self) -> None:
        self._socket.close()


@cache
def _settings() -> TLSServerSettings:
    return world().settings(handshake_timeout_s=3600)


class TLSLife(Life):
    """One TLS connection from its beginning to its end."""

    version = ssl.TLSVersion.TLSv1_3

    def make_connection(self, *arguments: Any) -> Connection:
        return _settings().connection(*arguments)

    def meet(self) -> None:
        peer = TLSPeer(self.peer, world().client_context(maximum_version=self.version))
        self.peer = peer  # type: ignore[assignment]
        while not peer.step() or not self.protocol.events:
            run_pass(self.loop)

    def what_was_sent_was_written(self) -> None:
        """It is not to be seen."""


class TLS12Life(TLSLife):
    version = ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("life", [TLS12Life, TLSLife], ids=["1.2", "1.3"])
def test_faults_over_the_whole_life_of_a_tls_connection(life, logged):
    logged.allow("its protocol raised|No buffer space|left out")
    run_state_machine_as_test(
        life, settings=settings(max_examples=25, stateful_step_count=40, deadline=None, database=None)
    )


@pytest.mark.slow
@pytest.mark.parametrize("life", [TLS12Life, TLSLife], ids=["1.2", "1.3"])
def test_faults_over_the_whole_life_of_a_tls_connection_many(life, logged):
    logged.allow("its protocol raised|No buffer space|left out")
    run_state_machine_as_test(
        life, settings=settings(max_examples=1000, stateful_step_count=80, deadline=None, database=None)
    )
