"""Twisted, with the project's session."""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import interfaces, protocol
from twisted.internet import reactor as installed_reactor
from zope.interface import implementer

from benchmarks.peers.common import BACKLOG, announce, new_session, prepare

# Twisted declares its interfaces without the ``self`` that a type checker expects.
reactor: Any = installed_reactor


@implementer(interfaces.IHalfCloseableProtocol)
class CountProtocol(protocol.Protocol):
    transport: Any

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        # The transport as its own producer: not read while too much is unsent.
        self.transport.registerProducer(self.transport, True)
        session = new_session()
        self._feed = session.feed
        self._finish = session.finish

    def dataReceived(self, data: bytes) -> None:
        reply = self._feed(data)
        if reply:
            self.transport.write(reply)

    def readConnectionLost(self) -> None:
        self.transport.write(self._finish())
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        pass


def main() -> None:
    prepare()
    factory = protocol.ServerFactory.forProtocol(CountProtocol)
    factory.noisy = False
    port = reactor.listenTCP(int(sys.argv[1]), factory, backlog=BACKLOG, interface="127.0.0.1")
    reactor.callWhenRunning(announce, port.socket)
    reactor.run()


if __name__ == "__main__":
    main()
