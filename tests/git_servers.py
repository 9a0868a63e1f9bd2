"""Servers for git on loopback: a real `sshd`, and an HTTP host of repositories with Git LFS.

Each records what a client sent it, so that a test can state what a host was never given.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import pwd
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import pytest

from midwatch.testing.fakes import GitServer, _Handler, add_commit, run_git

# ------------------------------------------------------------------ HTTP: repositories and Git LFS


@dataclass(frozen=True, slots=True)
class Request:
    """What a client sent: method, path with the query, and the user name and password of Basic, or other credentials."""

    method: str
    path: str
    authorization: str

    @property
    def password(self) -> str:
        """The password of Basic credentials; empty without."""
        kind, _, value = self.authorization.partition(" ")
        if kind.lower() != "basic":
            return ""
        return base64.b64decode(value).decode().partition(":")[2]


@dataclass
class GitHost:
    """A host of repositories with Git LFS on loopback.

    Attributes:
        root: The folder of its repositories.
        token: The password that it asks for; None serves everyone.
        url: Its address.
        moved: Prefixes of paths, and where they are redirected to.
        moved_after_login: The same, for requests with the token only.
        content: The files of Git LFS by object id, of all its repositories.
        object_base: The host that its batch API names for downloads; itself by default.
        object_header: Headers that its batch API gives for downloads, and asks for there.
        lfs_token: The password that Git LFS asks for instead of `token`.
        batch_header: The Authorization that its batch API asks for instead of the token.
        requests: What it was sent.
    """

    root: Path
    token: str | None = None
    url: str = ""
    moved: dict[str, str] = field(default_factory=dict)
    moved_after_login: dict[str, str] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)
    object_base: str | None = None
    object_header: dict[str, str] = field(default_factory=dict)
    batch_header: str | None = None
    lfs_token: str | None = None
    requests: list[Request] = field(default_factory=list)

    def saw(self, secret: str) -> bool:
        """Return whether a client sent `secret`, in whatever form."""
        return any(
            secret in f"{one.path} {one.authorization} {one.password}"
            for one in self.requests
        )

    def add_lfs_file(self, bare: Path, name: str, data: bytes) -> str:
        """Commit a pointer of Git LFS to a repository, and keep the content. Return the object id."""
        oid = hashlib.sha256(data).hexdigest()
        self.content[oid] = data
        add_commit(bare, {name: lfs_pointer(data), ".gitattributes": LFS}, "lfs")
        return oid


LFS = "*.bin filter=lfs diff=lfs merge=lfs -text\n"


def lfs_pointer(data: bytes) -> str:
    """Return the pointer that stands for `data` in a repository with Git LFS.

    Source: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
    """
    oid = hashlib.sha256(data).hexdigest()
    version = "version https://git-lfs.github.com/spec/v1"
    return f"{version}\noid sha256:{oid}\nsize {len(data)}\n"


@contextlib.contextmanager
def git_host(root: Path, token: str | None = None) -> Iterator[GitHost]:
    """Serve the repositories under `root` over HTTP while the block runs."""
    state = GitHost(root, token)

    class Handler(_HostHandler):
        host = state
        server_state = GitServer(root)

    Handler.server_state.gate.set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _HostHandler(_Handler):
    host: GitHost

    def _serve(self, body: bytes) -> None:
        host = self.host
        given = self.headers.get("Authorization", "")
        request = Request(self.command, self.path, given)
        host.requests.append(request)
        if self._moved(host.moved):
            return None
        wanted = host.batch_header if "/info/lfs" in self.path else None
        if "/lfs-objects/" in self.path:
            wanted = host.object_header.get("Authorization")
        if wanted is not None:
            if given != wanted:
                return self._send(403, b"{}")
        elif self._password() not in (None, request.password):
            return self._ask()
        if self._moved(host.moved_after_login):
            return None
        if self.path.endswith("/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        if "/lfs-objects/" in self.path:
            found = host.content.get(self.path.rpartition("/")[2])
            return self._send(404, b"") if found is None else self._send(200, found)
        if "/info/lfs" in self.path:
            return self._send(404, b"{}")
        self._answer(self._backend(body))

    def _batch(self, asked: Any) -> None:
        """Answer the batch API: https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md."""
        base = self.host.object_base or self.host.url
        objects = []
        for one in asked["objects"]:
            href = f"{base}/lfs-objects/{one['oid']}"
            download = {"href": href, "header": self.host.object_header}
            objects.append({**one, "actions": {"download": download}})
        answer = json.dumps({"transfer": "basic", "objects": objects}).encode()
        self._send(200, answer, "application/vnd.git-lfs+json")

    def _ask(self) -> None:
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="git"')
        self.send_header("LFS-Authenticate", 'Basic realm="lfs"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _password(self) -> str | None:
        lfs = self.host.lfs_token if "/info/lfs" in self.path else None
        return lfs or self.host.token

    def _moved(self, table: Mapping[str, str]) -> bool:
        """Redirect the request if the table has its path, and return whether it has."""
        for prefix, to in table.items():
            if self.path.startswith(prefix):
                self.send_response(307)
                self.send_header("Location", to + self.path.removeprefix(prefix))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return True
        return False

    def _send(self, status: int, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def add_submodules(bare: Path, submodules: Mapping[str, tuple[str, Path]]) -> None:
    """Commit submodules to a repository: by their path, the URL and the repository whose `main` they are at."""
    modules, entries = "", []
    for path, (url, repository) in submodules.items():
        modules += f'[submodule "{path}"]\n\tpath = {path}\n\turl = {url}\n'
        entries.append(
            f"160000 commit {run_git(repository, 'rev-parse', 'main')}\t{path}"
        )
    add_commit(bare, {".gitmodules": modules}, "modules")
    tree = run_git(bare, "ls-tree", "main").splitlines()
    made = run_git(
        bare, "mktree", "--missing", stdin="\n".join(tree + entries).encode() + b"\n"
    )
    author = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    commit = run_git(
        bare, *author, "commit-tree", made, "-p", "main", "-m", "submodules"
    )
    run_git(bare, "update-ref", "refs/heads/main", commit)


def why_no_lfs() -> str:
    """Return why Git LFS cannot be tested here; empty if it can."""
    return "" if shutil.which("git-lfs") else "the program git-lfs is not installed"


needs_lfs = pytest.mark.skipif(bool(why_no_lfs()), reason=why_no_lfs())

# ------------------------------------------------------------------ SSH

_SSHD = shutil.which(
    "sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
)
_SERVE = """#!/bin/sh
printf '%s\\n' "$SSH_ORIGINAL_COMMAND" >> {folder}/commands
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
cd {root} || exit 1
case "$SSH_ORIGINAL_COMMAND" in
git-lfs-authenticate*) exec cat {folder}/lfs ;;
git-upload-pack*|git-receive-pack*) exec sh -c "$SSH_ORIGINAL_COMMAND" ;;
esac
echo "not served: $SSH_ORIGINAL_COMMAND" >&2
exit 127
"""


@dataclass
class SshServer:
    """A real `sshd` on loopback, for the present user only.

    Attributes:
        folder: Its keys and files.
        user: The user who may log in.
        port: Its port on 127.0.0.1.
        key: The private key that it lets in.
    """

    folder: Path
    user: str
    port: int
    key: Path

    @property
    def known_hosts(self) -> str:
        """A line for `known_hosts`."""
        public = (self.folder / "host.pub").read_text().split()
        return f"[127.0.0.1]:{self.port} {public[0]} {public[1]}\n"

    def url(self, path: Path) -> str:
        """Return the ssh URL of a repository on this machine."""
        return f"ssh://{self.user}@127.0.0.1:{self.port}{path}"

    @property
    def commands(self) -> list[str]:
        """The commands that clients asked for."""
        log = self.folder / "commands"
        return log.read_text().splitlines() if log.exists() else []

    def serve_lfs(self, href: str, header: Mapping[str, str]) -> None:
        """Name the LFS server to clients of `git-lfs-authenticate`."""
        answer = {"href": href, "header": dict(header)}
        (self.folder / "lfs").write_text(json.dumps(answer))

    def renew_host_key(self) -> None:
        """Change the host's key, as a listener in the middle would."""
        for path in (self.folder / "host", self.folder / "host.pub"):
            path.unlink()
        _make_key(self.folder / "host")

    def make_home(self, folder: Path, *, known: bool = True, config: str = "") -> Path:
        """Make a home folder whose `.ssh` has the key, and the host if it is `known`."""
        ssh = folder / ".ssh"
        ssh.mkdir(parents=True, mode=0o700)
        shutil.copy(self.key, ssh / "id_ed25519")
        (ssh / "id_ed25519").chmod(0o600)
        (ssh / "known_hosts").write_text(self.known_hosts if known else "")
        if config:
            (ssh / "config").write_text(config)
            (ssh / "config").chmod(0o600)
        return folder


@contextlib.contextmanager
def ssh_server(folder: Path, root: Path) -> Iterator[SshServer]:
    """Run `sshd` on loopback while the block runs. Relative paths of repositories begin at `root`."""
    assert _SSHD is not None
    folder.mkdir(mode=0o700)
    for name in ("host", "client"):
        _make_key(folder / name)
    shutil.copy(folder / "client.pub", folder / "authorized_keys")
    serve = folder / "serve"
    serve.write_text(_SERVE.format(folder=folder, root=root))
    serve.chmod(0o755)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd insists on it
    config = folder / "sshd_config"
    config.write_text(
        f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        f"ForceCommand {serve}\nPidFile none\nStrictModes no\nUsePAM no\n"
        "PermitRootLogin yes\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nPrintMotd no\nUseDNS no\n"
    )
    arguments = [_SSHD, "-i", "-e", "-f", str(config)]

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            connection: socket.socket = self.request
            with (folder / "log").open("ab") as log:
                subprocess.run(
                    arguments, stdin=connection, stdout=connection, stderr=log
                )

    # The listener is of this process: its port is free for certain, and known at once.
    server = ThreadingTCPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
        yield SshServer(folder, user, server.server_address[1], folder / "client")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _make_key(path: Path) -> None:
    make = [
        "ssh-keygen",
        "-q",
        "-t",
        "ed25519",
        "-N",
        "",
        "-C",
        "test",
        "-f",
        str(path),
    ]
    subprocess.run(make, check=True, stdin=subprocess.DEVNULL)


def why_no_ssh() -> str:
    """Return why SSH cannot be tested here; empty if it can."""
    missing = [one for one in ("ssh", "ssh-keygen") if not shutil.which(one)]
    missing += [] if _SSHD else ["sshd"]
    if missing:
        return f"not installed: {', '.join(missing)}"
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return "this user has no entry in the user database, which ssh needs"
    return ""


needs_ssh = pytest.mark.skipif(bool(why_no_ssh()), reason=why_no_ssh())
