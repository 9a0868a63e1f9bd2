"""A shop that answers with the total of its cart; it runs from the work tree of its repository."""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

CART = [{"price": 20, "count": 2}, {"price": 5, "count": 1}]


def checkout() -> int:
    return sum(line["price"] * line["count"] for line in CART)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        try:
            status, body = 200, f"total {checkout()}"
        except LookupError as error:
            status, body = 500, f"checkout failed: {type(error).__name__}: {error}"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
