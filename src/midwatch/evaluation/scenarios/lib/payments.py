"""A service that takes connections and answers nothing: `payments.py PORT`."""

from __future__ import annotations

import socketserver
import sys


class Payment(socketserver.StreamRequestHandler):
    """Reads one order."""

    def handle(self) -> None:
        self.rfile.readline()


class Payments(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    with Payments(("127.0.0.1", int(sys.argv[1])), Payment) as server:
        server.serve_forever()
