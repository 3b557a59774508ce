"""The standard library's socketserver: a thread for each connection, blocking calls, lines from a file object."""

from __future__ import annotations

import socketserver
import sys

from benchmarks.peers.common import BACKLOG, announce, prepare, reply_to


class CountHandler(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self) -> None:
        try:
            for line in self.rfile:
                self.wfile.write(reply_to(line))
        except ConnectionError:
            pass


class CountServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = BACKLOG


def main() -> None:
    prepare()
    with CountServer(("127.0.0.1", int(sys.argv[1])), CountHandler) as server:
        announce(server.socket)
        server.serve_forever()


if __name__ == "__main__":
    main()
