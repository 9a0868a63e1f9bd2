"""An S3 service on loopback, which fails on demand: moto behind a WSGI application that puts requests in a row.

moto serves each request in a thread, and does not compare and replace an object in one step: of several puts with the
same If-Match more than one may succeed. S3 lets exactly one succeed, so requests that write run one after the other here.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import httpx2
import obstore
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    create_backend_app,
)
from obstore.store import S3Store
from werkzeug.serving import WSGIRequestHandler, make_server

from ..waiting import PATIENCE

BUCKET = "content"
URL = f"s3://{BUCKET}/team"
KEY_ID, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"

Fault = Callable[[WSGIEnvironment], "tuple[str, bytes] | None"]
"""Returns the status and body that a request gets instead, or None."""


@dataclass
class S3:
    """The service: its address, what was asked of it, and how it fails."""

    address: str
    requests: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    fault: Fault = lambda environ: None
    after: Fault = lambda environ: None
    """As `fault`, for a request that was carried out before."""

    @property
    def environ(self) -> dict[str, str]:
        """Return the variables with which any client finds it."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }

    def store(self) -> Any:
        return S3Store(
            BUCKET,
            prefix="team",
            endpoint=self.address,
            region="us-east-1",
            access_key_id=KEY_ID,
            secret_access_key=SECRET,
            client_options={"allow_http": True},
        )

    def names(self) -> set[str]:
        return {str(one["path"]) for page in obstore.list(self.store()) for one in page}


def refusing(
    status: str, code: str, methods: str = "GET HEAD PUT POST DELETE"
) -> Fault:
    body = f"<Error><Code>{code}</Code><StringToSign>{KEY_ID}</StringToSign></Error>"

    def fault(environ: WSGIEnvironment) -> tuple[str, bytes] | None:
        return (status, body.encode()) if environ["REQUEST_METHOD"] in methods else None

    return fault


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *given: Any) -> None:
        """Nothing."""


@contextmanager
def s3(bucket: str | None = BUCKET) -> Iterator[S3]:
    moto = DomainDispatcherApplication(create_backend_app)
    one_at_a_time = threading.Lock()

    def app(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        # Read before anything else: the connection is used again.
        length = int(environ.get("CONTENT_LENGTH") or 0)
        service.requests[
            "LIST" if "list-type" in environ["QUERY_STRING"] else method
        ] += 1
        service.sent += length
        if failed := service.fault(environ):
            environ["wsgi.input"].read(length)
        else:
            given: list[Any] = []
            with one_at_a_time:
                answer = list(moto(environ, lambda *head: given.extend(head)))
            failed = service.after(environ)
        if failed:
            status, body = failed
            start(status, [("Content-Length", str(len(body)))])
            return [body]
        start(*given)
        return answer

    server: Any = make_server(
        "127.0.0.1", 0, app, threaded=True, request_handler=_Quiet
    )
    server.daemon_threads = True
    service = S3(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        if bucket:
            _make_bucket(service, bucket)
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _make_bucket(service: S3, bucket: str) -> None:
    with httpx2.Client(verify=False, timeout=PATIENCE) as http:
        # moto keeps its buckets as long as the process lives.
        http.post(f"{service.address}/moto-api/reset").raise_for_status()
        http.put(f"{service.address}/{bucket}").raise_for_status()
    service.requests.clear()
