#!/bin/sh
# obstore 0.12.1 forgets AWS_ALLOW_HTTP as soon as any client option is given.
#
# Expected: the environment says AWS_ALLOW_HTTP=true and AWS_ENDPOINT=http://…; a time limit among the client options
#           changes the time limit, and nothing else, as the endpoint, the region and the keys are still read from there.
# Seen:     every request ends with "HTTP error: builder error", and nothing is sent. With allow_http among the options
#           once more, or without options, the endpoint is asked.
# So a time limit, which every external call needs, takes an http endpoint that worked out of reach.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check obstore==0.12.1
"$folder/venv/bin/python" - <<'PYTHON'
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from obstore.store import S3Store


class Empty(BaseHTTPRequestHandler):
    """A bucket without objects."""

    def do_GET(self):
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Empty)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {
    "AWS_ALLOW_HTTP": "true",
    "AWS_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
}
for options, seen in (
    (None, "FileNotFoundError"),
    ({"timeout": "5s"}, "GenericError"),
    ({"timeout": "5s", "allow_http": True}, "FileNotFoundError"),
):
    store = S3Store("bucket", client_options=options, retry_config={"max_retries": 0})
    try:
        store.get("object")
    except Exception as error:
        found = type(error).__name__
        print(f"client_options={options}: {found}")
        assert found == seen, f"it has changed: {seen} was expected"
server.shutdown()
PYTHON
