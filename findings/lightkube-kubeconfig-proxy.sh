#!/bin/sh
# lightkube 1.0.1 takes a kubeconfig with `proxy-url` and goes to the server without the proxy.
#
# Expected: requests go through the proxy that the cluster's entry names, as kubectl and client-go have done since version 1.19,
#           or the file is refused because the field is not known.
# Seen:     the request arrives at the server directly; the proxy hears nothing, and nothing is said. `tls-server-name` is left out in the
#           same way: the entry that is read has no such field.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check lightkube==1.0.1
"$folder/venv/bin/python" - <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from lightkube import Client, KubeConfig
from lightkube.resources.core_v1 import Node

reached = []


def listen(name):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            reached.append(name)
            body = json.dumps(
                {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}}
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


cluster = {
    "server": listen("server"),
    "proxy-url": listen("proxy"),
    "tls-server-name": "api.example.org",
}
config = KubeConfig.from_dict(
    {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
)
Client(config=config.get(), trust_env=False).get(Node, "a")
names = set(dir(config.clusters["c"]))
print("reached:", *reached, "; the entry knows tls_server_name:", "tls_server_name" in names)
assert reached == ["server"], "it has changed: the proxy is used"
assert "tls_server_name" not in names, "it has changed: the name is known"
PYTHON
