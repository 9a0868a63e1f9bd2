"""A small HTTP service for scenarios: it answers with a status, after a delay, or with what PostgreSQL answers."""

from __future__ import annotations

import argparse
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg


def main() -> None:
    """Serve on a port of 127.0.0.1 until the process is ended."""
    options = argparse.ArgumentParser()
    options.add_argument("port", type=int)
    options.add_argument("--status", type=int, default=200)
    options.add_argument("--body", default="well")
    options.add_argument("--delay", type=float, default=0.0, help="Seconds.")
    options.add_argument("--dsn", help="Where `--statement` is executed.")
    options.add_argument("--statement", default="SELECT 1")
    given = options.parse_args()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(given.delay)
            status, body = given.status, given.body
            if given.dsn:
                try:
                    with psycopg.connect(given.dsn, connect_timeout=3) as connection:
                        connection.execute(given.statement)
                except psycopg.Error as error:
                    print(f"{self.path}: {error}", file=sys.stderr, flush=True)
                    status, body = 503, "Service Unavailable: the order was not saved"
            self.send_response(status)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            print(format % args, file=sys.stderr, flush=True)

    ThreadingHTTPServer(("127.0.0.1", given.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
