"""Web servers on loopback, with and without TLS, and subjects of the kind `http` that watch them."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from midwatch.model import Observation, Signal
from midwatch.subjects.http import HttpSubject

from ..waiting import PATIENCE

TOKEN = "s3cret-token-value"
Reply = tuple[int, dict[str, str], bytes]


@contextlib.contextmanager
def serving(
    reply: Callable[[BaseHTTPRequestHandler], Reply | None],
    tls: ssl.SSLContext | None = None,
) -> Iterator[str]:
    """A server that answers each request with `reply`, or drops it; its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = reply(self)
            if answer is None:
                self.close_connection = True
                return
            status, headers, body = answer
            with contextlib.suppress(OSError):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # refused handshakes are what some tests are about

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        scheme = "https" if tls else "http"
        yield f"{scheme}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def sending(answer: bytes) -> Iterator[str]:
    """A server that sends these bytes to each request and closes; its base URL."""

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.recv(65_536)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def ok(handler: BaseHTTPRequestHandler) -> Reply:
    return 200, {"Set-Cookie": f"session={TOKEN}", "Server": "test"}, b"all is well"


def subject(url: str, **settings: object) -> HttpSubject:
    given = {"name": "shop", "url": url, "timeout": PATIENCE, **settings}
    return HttpSubject(HttpSubject.settings_model.model_validate(given))


def broken(observation: Observation) -> dict[str, Signal]:
    return {
        signal.invariant: signal
        for signal in observation.signals
        if signal.holds is False
    }


# ------------------------------------------------------------------ certificates

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Issued:
    """A certificate with its key and those above it, without the root."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    above: tuple[x509.Certificate, ...] = ()

    @classmethod
    def root(cls, name: str = "root", days: float = 3650) -> Issued:
        return _issue(name, None, days, 1, ())

    def issue(self, name: str, days: float = 365, begun: float = 1) -> Issued:
        """Return a server's certificate that ends in `days`, and began `begun` days ago."""
        return _issue(name, self, days, begun, (name,))

    def authority(self, name: str, days: float = 3650) -> Issued:
        return _issue(name, self, days, 1, ())

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write the chain and the key, and return their files."""
        chain, key = folder / f"{name}.pem", folder / f"{name}.key"
        parts = (self.certificate, *self.above)
        chain.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in parts))
        key.write_bytes(
            self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        return chain, key

    def context(self, folder: Path) -> ssl.SSLContext:
        """Return the context of a server that shows this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(
            *self.write(folder, f"c{self.certificate.serial_number}")
        )
        return context


def _issue(
    name: str, by: Issued | None, days: float, begun: float, hosts: tuple[str, ...]
) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - begun * DAY)
        .not_valid_after(now + days * DAY)
        .add_extension(
            x509.BasicConstraints(ca=not hosts, path_length=None), critical=True
        )
    )
    if hosts:
        names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
    signed = builder.sign(by.key if by else key, hashes.SHA256())
    above = (
        (by.certificate, *by.above)
        if by and by.certificate.issuer != by.certificate.subject
        else ()
    )
    return Issued(signed, key, above)


# ------------------------------------------------------------------ a proxy


@contextlib.contextmanager
def tunnelling(
    refusal: str = "", header: bytes = b"Via : test"
) -> Iterator[tuple[str, list[str]]]:
    """A proxy that connects (RFC 9110, section 9.3.6) or refuses with a status; its URL and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            asked.append(self.path)
            if refusal:
                code, _, reason = refusal.partition(" ")
                self.send_error(int(code), reason)
                return
            host, _, port = self.path.rpartition(":")
            with socket.create_connection((host, int(port))) as there:
                self.wfile.write(b"HTTP/1.1 200 Connected\r\n%s\r\n\r\n" % header)
                back = threading.Thread(
                    target=_copy, args=(there, self.connection), daemon=True
                )
                back.start()
                _copy(self.connection, there)
                back.join()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
