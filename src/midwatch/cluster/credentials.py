"""What a request to the API server says of who asks: a token, a password, or what a credential program prints."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import ssl
import time
from collections import deque
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any
from urllib.parse import quote

import httpx2

from midwatch.cluster.kubeconfig import (
    ClusterLogin,
    CredentialProgram,
    load_certificate,
)
from midwatch.errors import ObservationFailed
from midwatch.programs import run
from midwatch.text import one_line

_FILE_AGE = 60.0
"""Seconds after which the file of a token is read again; the kubelet replaces it. Source: client-go's token source."""
_MOST_PRINTED = 1_000_000  # bytes
_MOST_SECRETS = (
    20  # a token lives an hour or so, and a day of them is hidden where it is shown
)
_WITHHELD = ("ANTHROPIC_", "CLAUDE_", "MIDWATCH_")
"""How variables begin that a credential program does not get."""


class LoginFailed(Exception):
    """The credentials cannot be had now."""


class Credentials(httpx2.Auth):
    """The credentials of one login, read when they are needed and again when they are refused or over.

    Args:
        login: Whose.
        tls: Gets the certificate that a program prints.
        timeout: Seconds that a program may take.
    """

    def __init__(
        self, login: ClusterLogin, tls: ssl.SSLContext, timeout: float
    ) -> None:
        self._login = login
        self._tls = tls
        self._timeout = timeout
        self._lock = asyncio.Lock()
        self._authorization = ""
        self._known = False
        self._until: float | None = None
        """The wall clock's second after which they are read again; None for never."""
        self._acting = _impersonation(login)
        user = login.user
        key = user.key_data.decode(errors="replace")
        self._given = frozenset({user.token, user.password, key}) - {""}
        self._received: deque[str] = deque(maxlen=_MOST_SECRETS)

    @property
    def secrets(self) -> frozenset[str]:
        """The secret values that were given, and those that were received last."""
        return self._given.union(self._received)

    def forget(self) -> bool:
        """Read them again for the next request; return False if they cannot change."""
        user = self._login.user
        if not user.token_file and user.program is None:
            return False
        self._known = False
        return True

    async def headers(self) -> list[tuple[str, str]]:
        """Return the headers of a request now. Raises LoginFailed."""
        async with self._lock:
            if not self._known or (self._until or float("inf")) <= time.time():
                await self._read()
                self._known = True
        own = self._authorization
        return [*([("Authorization", own)] if own else []), *self._acting]

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Add the headers; once more if these are refused."""
        plain = request.headers.multi_items()
        request.headers = httpx2.Headers([*plain, *await self.headers()])
        response = yield request
        if response.status_code == 401 and self.forget():
            request.headers = httpx2.Headers([*plain, *await self.headers()])
            yield request

    async def _read(self) -> None:
        user = self._login.user
        self._until = None
        if user.token_file:
            self._until = time.time() + _FILE_AGE
            try:
                token = self._login.file(user.token_file).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                if self._known:  # the last one may be accepted still
                    return
                why = getattr(error, "strerror", None) or error
                raise LoginFailed(f"cannot read {user.token_file}: {why}") from error
            self._take_token(token)
        elif user.token:
            self._take_token(user.token)
        elif user.program is not None:
            self._take(await self._printed(user.program), user.program)
        elif user.username:
            pair = f"{user.username}:{user.password}".encode()
            self._authorization = f"Basic {base64.b64encode(pair).decode()}"

    def _received_secret(self, secret: str) -> None:
        if secret and secret not in self._received:
            self._received.append(secret)

    def _take_token(self, token: str) -> None:
        if not token.isascii() or not token.isprintable():
            raise LoginFailed("the token has characters that no token has")
        self._received_secret(token)
        self._authorization = f"Bearer {token}"

    def _take(self, status: dict[str, Any], program: CredentialProgram) -> None:
        token, certificate = status.get("token"), status.get("clientCertificateData")
        if not token and not certificate:
            raise LoginFailed(f"{program.command} printed no credentials")
        with contextlib.suppress(KeyError, TypeError, ValueError):
            self._until = datetime.fromisoformat(
                status["expirationTimestamp"]
            ).timestamp()
        if certificate:
            key = str(status.get("clientKeyData") or "")
            self._received_secret(key)
            try:
                load_certificate(self._tls, str(certificate).encode(), key.encode())
            except OSError as error:
                raise LoginFailed(
                    f"the certificate of {program.command} cannot be used: {error}"
                ) from error
        if token:
            self._take_token(str(token))

    # -------------------------------------------------------------- a program

    async def _printed(self, program: CredentialProgram) -> dict[str, Any]:
        """Run a credential program; return the status that it prints.

        Source: https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins.
        """
        path: str | None = program.command
        if os.sep in program.command:
            path = str(self._login.file(program.command))
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_WITHHELD)
        }
        environ |= {one.name: one.value for one in program.env}
        environ["KUBERNETES_EXEC_INFO"] = json.dumps(self._exec_info(program))
        found = shutil.which(path or "", path=environ.get("PATH"))
        if found is None:
            hint = one_line(program.hint, 300)
            raise LoginFailed(f"there is no program {program.command}. {hint}".strip())
        try:
            result = await run(
                [found, *program.args],
                env=environ,
                cwd=None,
                timeout=self._timeout,
                max_output=_MOST_PRINTED,
            )
        except ObservationFailed as error:
            raise LoginFailed(error.message) from error
        if result.code is None or result.too_large:
            raise LoginFailed(f"{program.command} {result.failure}")
        if result.code:
            said = one_line(result.stderr.decode(errors="replace"), 300)
            raise LoginFailed(f"{program.command} ended with {result.code}: {said}")
        try:
            printed = json.loads(result.stdout)
            version, status = printed["apiVersion"], printed["status"]
        except (ValueError, KeyError, TypeError):
            raise LoginFailed(f"{program.command} printed no ExecCredential") from None
        if version != program.version or not isinstance(status, dict):
            raise LoginFailed(
                f"{program.command} printed {one_line(str(version), 80)}, the kubeconfig says {program.version}"
            )
        return status

    def _exec_info(self, program: CredentialProgram) -> dict[str, Any]:
        """Return what a program reads in KUBERNETES_EXEC_INFO."""
        spec: dict[str, Any] = {"interactive": False}
        if program.wants_cluster:
            cluster = self._login.cluster
            authority = cluster.ca_data
            if not authority and cluster.ca_file:
                authority = self._login.file(cluster.ca_file).read_bytes()
            named = {
                "server": cluster.server,
                "tls-server-name": cluster.tls_server_name,
                "insecure-skip-tls-verify": cluster.insecure,
                "certificate-authority-data": base64.b64encode(authority).decode(),
                "proxy-url": cluster.proxy_url,
                "config": _extension(cluster.extensions),
            }
            spec["cluster"] = {key: value for key, value in named.items() if value}
        return {
            "apiVersion": program.version,
            "kind": "ExecCredential",
            "spec": spec,
        }


def _extension(extensions: list[dict[str, Any]]) -> Any:
    """Return what a cluster has for programs, in the extension of a reserved name."""
    name = "client.authentication.k8s.io/exec"
    return next(
        (one.get("extension") for one in extensions if one.get("name") == name), None
    )


def _impersonation(login: ClusterLogin) -> list[tuple[str, str]]:
    """Return the headers of who is acted for. Source: the Kubernetes documentation on user impersonation."""
    user = login.user
    headers = [("Impersonate-User", user.as_user), ("Impersonate-Uid", user.as_uid)]
    headers += [("Impersonate-Group", group) for group in user.as_groups]
    for key, values in user.as_extra.items():
        headers += [(f"Impersonate-Extra-{quote(key, safe='')}", one) for one in values]
    return [(name, value) for name, value in headers if value]
