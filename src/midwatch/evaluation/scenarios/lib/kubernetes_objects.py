"""A Kubernetes API server of recorded objects: `kubernetes_objects.py PORT FILE`.

It serves lists, objects, logs and watches of the objects in a YAML file, and follows the file: what is added, changed or gone
there is an event. A time `@-60` in it is 60 seconds before the file was read, `uid: NAME` may be any text, and a document of
the kind `Log` (`namespace`, `pod`, `container`, `previous`, `text`) is what a container wrote. It does nothing else: no writes,
no roles, and no controllers.
"""

import json
import re
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

Json = dict[str, Any]
PLURALS = {"Ingress": "ingresses", "StorageClass": "storageclasses"}
PATH = re.compile(
    r"/(?:api|apis/[^/]+)/v\d\w*(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?P<log>/log)?"
)
AGO = re.compile(r"@-(\d+)")


class World:
    """The objects of the file by plural, namespace and name, and what happened to them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.objects: dict[tuple[str, str, str], Json] = {}
        self.logs: dict[tuple[str, str, str, bool], str] = {}
        self.events: list[tuple[int, str, str, Json]] = []
        self.version = 1
        self.changed = threading.Condition()
        self._written: dict[tuple[str, str, str], str] = {}

    def follow(self) -> None:
        seen = None
        while True:
            text = self.file.read_text("utf-8")
            if text != seen:
                seen = text
                self._read(text)
            time.sleep(0.1)

    def _read(self, text: str) -> None:
        found = {}
        for one in yaml.safe_load(text):
            if one["kind"] == "Log":
                key = one["namespace"], one["pod"], one["container"]
                self.logs[(*key, bool(one.get("previous")))] = one["text"]
                continue
            plural = PLURALS.get(one["kind"], f"{one['kind'].lower()}s")
            meta = one["metadata"]
            found[plural, meta.get("namespace", ""), meta["name"]] = one
        now = datetime.now(UTC)
        with self.changed:
            for key in self.objects.keys() - found.keys():
                self._happened("DELETED", key, self.objects.pop(key))
                del self._written[key]
            for key, one in found.items():
                written = json.dumps(one, sort_keys=True)
                if self._written.get(key) != written:
                    type_ = "MODIFIED" if key in self.objects else "ADDED"
                    self._written[key] = written
                    self.objects[key] = timed(one, now)
                    self._happened(type_, key, self.objects[key])
            self.changed.notify_all()

    def _happened(self, type_: str, key: tuple[str, str, str], one: Json) -> None:
        self.version += 1
        one["metadata"]["resourceVersion"] = str(self.version)
        one["metadata"].setdefault("uid", "/".join(key))
        self.events.append((self.version, type_, key[0], one))


def timed(value: Any, now: datetime) -> Any:
    if isinstance(value, dict):
        return {key: timed(item, now) for key, item in value.items()}
    if isinstance(value, list):
        return [timed(item, now) for item in value]
    if isinstance(value, str) and (found := AGO.fullmatch(value)):
        return f"{now - timedelta(seconds=int(found[1])):%Y-%m-%dT%H:%M:%SZ}"
    return value


def fits(one: Json, query: dict[str, str], namespace: str | None) -> bool:
    meta = one["metadata"]
    labels = meta.get("labels") or {}
    about = one.get("involvedObject") or {}
    fields = {"reason": one.get("reason"), "involvedObject.name": about.get("name")}
    pairs = [part.split("=", 1) for part in query.get("labelSelector", "").split(",")]
    chosen = [part.split("=", 1) for part in query.get("fieldSelector", "").split(",")]
    return (
        (namespace is None or meta.get("namespace") == namespace)
        and all(labels.get(pair[0]) == pair[-1] for pair in pairs if pair[0])
        and all(fields.get(pair[0]) == pair[-1] for pair in chosen if pair[0])
    )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    world: World

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        match = PATH.fullmatch(url.path)
        if match is None or "metrics.k8s.io" in url.path:
            self.answer({"kind": "Status", "code": 404, "message": "not served"}, 404)
        elif match["log"]:
            key = match["namespace"], match["name"], query.get("container", "")
            previous = query.get("previous") == "true"
            self.text(self.world.logs.get((*key, previous), ""))
        elif match["name"]:
            key = match["plural"], match["namespace"] or "", match["name"]
            one = self.world.objects.get(key)
            missing = {"kind": "Status", "code": 404, "message": "not found"}
            self.answer(one or missing, 200 if one else 404)
        elif query.get("watch") == "true":
            self.watch(match["plural"], match["namespace"], query)
        else:
            self.list(match["plural"], match["namespace"], query)

    def list(self, plural: str, namespace: str | None, query: dict[str, str]) -> None:
        with self.world.changed:
            items = [
                one
                for (kind, _, _), one in self.world.objects.items()
                if kind == plural and fits(one, query, namespace)
            ]
            version = str(self.world.version)
        self.answer({"metadata": {"resourceVersion": version}, "items": items})

    def watch(self, plural: str, namespace: str | None, query: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        seen = int(query["resourceVersion"])
        while True:
            with self.world.changed:
                self.world.changed.wait(5)
                news = [one for one in self.world.events if one[0] > seen]
                seen = self.world.version
            for _, type_, kind, one in news:
                if kind == plural and fits(one, query, namespace):
                    self.event(type_, one)
            self.event("BOOKMARK", {"metadata": {"resourceVersion": str(seen)}})

    def event(self, type_: str, body: Json) -> None:
        line = json.dumps({"type": type_, "object": body})
        self.wfile.write(line.encode() + b"\n")
        self.wfile.flush()

    def text(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def answer(self, body: Json, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the client has gone
            pass


def main() -> None:
    Handler.world = World(Path(sys.argv[2]))
    threading.Thread(target=Handler.world.follow, daemon=True).start()
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
