#!/bin/sh
# anthropic 2.12.0: beta.messages.parse raises pydantic's error for an answer that was cut at max_tokens.
#
# Expected: a message with stop_reason "max_tokens" and its usage, and no parsed output, as the documentation of structured outputs says
#           that a cut answer may not fit the schema and asks to look at stop_reason.
# Seen:     pydantic_core.ValidationError out of the client. It has neither the stop reason nor the usage that is paid for, and is no
#           anthropic.APIError, so code that handles the errors of the client does not catch it. A refusal ends in the same way.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check anthropic==2.12.0
"$folder/venv/bin/python" - <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import anthropic
from pydantic import BaseModel

MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5-5",
    "stop_sequence": None,
    "usage": {"input_tokens": 900, "output_tokens": 16},
}
CUT = {"stop_reason": "max_tokens", "content": [{"type": "text", "text": '{"cause": "the disk is fu'}]}
REFUSED = {"stop_reason": "refusal", "content": [{"type": "text", "text": "I cannot help with that."}]}
answers = [CUT, REFUSED]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps(MESSAGE | answers.pop(0)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Cause(BaseModel):
    cause: str


server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = anthropic.Anthropic(
    api_key="none", base_url=f"http://127.0.0.1:{server.server_port}", max_retries=0
)
for reason in ("max_tokens", "refusal"):
    try:
        answer = client.beta.messages.parse(
            model="claude-sonnet-5-5",
            max_tokens=16,
            messages=[{"role": "user", "content": "Why?"}],
            output_format=Cause,
        )
    except Exception as error:
        name = f"{type(error).__module__}.{type(error).__name__}"
        print(f"{reason}: {name}; an APIError: {isinstance(error, anthropic.APIError)}")
        assert "ValidationError" in name, "it has changed"
    else:
        raise SystemExit(f"it has changed: {reason} is returned as {answer.stop_reason}")
PYTHON
