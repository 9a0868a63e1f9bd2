"""Repositories and a server of them for tests: real git, on loopback, that asks for a token."""

from __future__ import annotations

import base64
import contextlib
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

_ENV = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "LC_ALL": "C",
}


def run_git(folder: Path, *args: str, stdin: bytes | None = None) -> str:
    """Run git in a folder as a developer would; raises CalledProcessError."""
    done = subprocess.run(
        ["git", *args],
        cwd=folder,
        env=_ENV,
        input=stdin,
        capture_output=True,
        check=True,
        timeout=60,
    )
    return done.stdout.decode("utf-8", "replace").strip()


def make_repository(path: Path, files: Mapping[str, str] | None = None) -> Path:
    """A bare repository with one commit on `main` (none if `files` is None)."""
    path.mkdir(parents=True)
    run_git(path, "init", "-q", "--bare", "-b", "main", ".")
    if files is not None:
        add_commit(path, files, "first")
    return path


def add_commit(
    bare: Path, files: Mapping[str, str], message: str, branch: str = "main"
) -> str:
    """Commit files to a branch of a bare repository; returns the commit's id."""
    text = message.encode()
    ref = f"refs/heads/{branch}"
    stream = b"commit %s\ncommitter Ada <ada@example.org> 1750000000 +0000\n" % (
        ref.encode()
    )
    stream += b"data %d\n%s\n" % (len(text), text)
    if f"refs/heads/{branch}" in run_git(bare, "for-each-ref", "--format=%(refname)"):
        stream += b"from %s^0\n" % ref.encode()
    for name, content in files.items():
        data = content.encode()
        stream += b"M 100644 inline %s\ndata %d\n" % (name.encode(), len(data))
        stream += data + b"\n"
    run_git(bare, "fast-import", "--quiet", stdin=stream)
    return run_git(bare, "rev-parse", ref)


@dataclass
class GitServer:
    """What the server does, and what it saw.

    Without `token` everybody may read. `may_write` is for those with the token. While `gate` is
    not set, a transfer stops after its first bytes.
    """

    root: Path
    token: str | None = None
    may_write: bool = True
    gate: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    requests: list[str] = field(default_factory=list)
    transfer_began: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def git_server(
    root: Path, token: str | None = None, *, gated: bool = False
) -> Iterator[GitServer]:
    """Serve the repositories under `root` over HTTP on loopback while inside."""
    state = GitServer(root, token)
    if not gated:
        state.gate.set()

    class Handler(_Handler):
        server_state = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield state
    finally:
        state.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_state: GitServer

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self._body())

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self, body: bytes) -> None:
        state = self.server_state
        state.requests.append(f"{self.command} {self.path}")
        if state.token is not None and not self._knows(state.token):
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.end_headers()
        elif "git-receive-pack" in self.path and not state.may_write:
            self.send_error(403)
        else:
            self._answer(self._backend(body))

    def _knows(self, token: str) -> bool:
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        return (
            kind == "Basic"
            and base64.b64decode(value).split(b":")[-1].decode() == token
        )

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _backend(self, body: bytes) -> bytes:
        parts = urlsplit(self.path)
        env = _ENV | {
            "GIT_PROJECT_ROOT": str(self.server_state.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": parts.path,
            "QUERY_STRING": parts.query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "REMOTE_ADDR": "127.0.0.1",
            "REMOTE_USER": "somebody",
        }
        for header in ("Git-Protocol", "Content-Encoding"):
            if self.headers.get(header):
                env[f"HTTP_{header.upper().replace('-', '_')}"] = self.headers[header]
        return subprocess.run(
            ["git", "http-backend"],
            env=env,
            input=body,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=60,
        ).stdout

    def _answer(self, output: bytes) -> None:
        head, _, body = output.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._write(body)

    def _write(self, body: bytes) -> None:
        begun = 0
        if body.find(b"PACK") > 0 and not self.server_state.gate.is_set():
            begun = body.find(b"PACK") + 200
            self.wfile.write(body[:begun])
            self.wfile.flush()
            self.server_state.transfer_began.set()
            self.server_state.gate.wait(60)
        self.wfile.write(body[begun:])
