"""Read a kubeconfig, or the service account of a pod, as kubectl does."""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx2
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from midwatch.documents import MAX_BYTES, DocumentError, read_yaml
from midwatch.errors import SettingsError
from midwatch.text import one_line

DEFAULT_SETTING = "operator.kubeconfig"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PROXIES = ("http", "https", "socks5", "socks5h")


def _decoded(text: object) -> object:
    """Return the bytes of base64, in which nothing else stands."""
    if not isinstance(text, str):
        return text
    return base64.b64decode("".join(text.split()), validate=True)


Base64 = Annotated[bytes, BeforeValidator(_decoded)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, value: Any) -> Any:
        """Take null for what is not there, as kubectl does."""
        if not isinstance(value, dict):
            return value
        return {name: one for name, one in value.items() if one is not None}


class ClusterEntry(_Entry):
    """`cluster` of a kubeconfig. Source: https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/."""

    server: str
    ca_file: str = Field("", alias="certificate-authority")
    ca_data: Base64 = Field(b"", alias="certificate-authority-data")
    insecure: bool = Field(False, alias="insecure-skip-tls-verify")
    tls_server_name: str = Field("", alias="tls-server-name")
    proxy_url: str = Field("", alias="proxy-url")
    extensions: list[dict[str, Any]] = []


class Variable(_Entry):
    """An environment variable of a credential program."""

    name: str
    value: str


class CredentialProgram(_Entry):
    """`exec` of a user: a program that prints credentials. Source: the same page, and client-authentication.v1."""

    command: str
    args: list[str] = []
    env: list[Variable] = []
    version: Literal[
        "client.authentication.k8s.io/v1",
        "client.authentication.k8s.io/v1beta1",
        "client.authentication.k8s.io/v1alpha1",
    ] = Field(alias="apiVersion")
    hint: str = Field("", alias="installHint")
    wants_cluster: bool = Field(False, alias="provideClusterInfo")
    interactive: str = Field("", alias="interactiveMode")


class UserEntry(_Entry):
    """`user` of a kubeconfig."""

    token: str = Field("", repr=False)
    token_file: str = Field("", alias="tokenFile")
    username: str = ""
    password: str = Field("", repr=False)
    certificate_file: str = Field("", alias="client-certificate")
    certificate_data: Base64 = Field(b"", alias="client-certificate-data")
    key_file: str = Field("", alias="client-key")
    key_data: Base64 = Field(b"", alias="client-key-data", repr=False)
    program: CredentialProgram | None = Field(None, alias="exec")
    provider: dict[str, Any] | None = Field(None, alias="auth-provider")
    as_user: str = Field("", alias="as")
    as_uid: str = Field("", alias="as-uid")
    as_groups: list[str] = Field([], alias="as-groups")
    as_extra: dict[str, list[str]] = Field({}, alias="as-user-extra")


class _Context(_Entry):
    cluster: str
    user: str = ""


class _Named(_Entry):
    name: str
    cluster: ClusterEntry | None = None
    user: UserEntry | None = None
    context: _Context | None = None


class _File(_Entry):
    current: str = Field("", alias="current-context")
    clusters: list[_Named] = []
    contexts: list[_Named] = []
    users: list[_Named] = []


@dataclass(frozen=True, slots=True)
class ClusterLogin:
    """Where an API server is, and who asks it.

    Attributes:
        cluster: Its address, and how to reach and trust it.
        user: The credentials.
        folder: What relative paths in the kubeconfig are relative to.
    """

    cluster: ClusterEntry
    user: UserEntry
    folder: Path

    def file(self, name: str) -> Path:
        """Return the path of a file that the kubeconfig names."""
        return self.folder / Path(name).expanduser()


def read_login(
    kubeconfig: Path | None, context: str | None, setting: str = DEFAULT_SETTING
) -> ClusterLogin:
    """Return the login of a kubeconfig, or of the pod's service account without one.

    Args:
        kubeconfig: The file; None for the service account.
        context: One of its contexts; None for the current one.
        setting: The setting that errors name.

    Raises:
        SettingsError: It cannot be read, or needs what is not there.
    """
    try:
        if kubeconfig is None:
            return _service_account(os.environ)
        login = _chosen(kubeconfig.expanduser(), context)
        _check(login)
    except (_Unusable, DocumentError, OSError) as error:
        where = kubeconfig or "the service account of the pod"
        raise SettingsError(
            f"cannot read {where}: {error}",
            path=setting,
            hint=getattr(error, "hint", None)
            or "name a kubeconfig, or run in a pod with a service account",
        ) from error
    return login


class _Unusable(Exception):
    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.hint = hint


def _service_account(environ: Mapping[str, str]) -> ClusterLogin:
    """Source of files and variables: https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/."""
    token = SERVICE_ACCOUNT / "token"
    token.read_bytes()
    try:
        host = environ["KUBERNETES_SERVICE_HOST"]
        port = environ["KUBERNETES_SERVICE_PORT"]
    except KeyError as error:
        raise _Unusable(f"the variable {error.args[0]} is not set") from None
    host = f"[{host}]" if ":" in host else host
    cluster = ClusterEntry(server=f"https://{host}:{port}", ca_file="ca.crt")
    return ClusterLogin(cluster, UserEntry(token_file="token"), SERVICE_ACCOUNT)


def _chosen(file: Path, context: str | None) -> ClusterLogin:
    with file.open("rb") as opened:
        document = read_yaml(opened.read(MAX_BYTES + 1))
    try:
        found = _File.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise _Unusable(f"{place}: {one_line(first['msg'], 200)}") from None
    name = found.current if context is None else context
    if not name:
        raise _Unusable("it has no current-context", "name one with `context`")
    entry = _of(found.contexts, name, "context").context or _Context(cluster="")
    cluster = _of(found.clusters, entry.cluster, "cluster").cluster
    user = _of(found.users, entry.user, "user").user if entry.user else None
    if cluster is None:
        raise _Unusable(f"the cluster {one_line(entry.cluster, 80)} is empty")
    return ClusterLogin(cluster, user or UserEntry(), file.parent)


def _of(entries: list[_Named], name: str, kind: str) -> _Named:
    for one in entries:
        if one.name == name:
            return one
    raise _Unusable(f"it has no {kind} {one_line(name, 80)!r}")


def _check(login: ClusterLogin) -> None:
    cluster, user = login.cluster, login.user
    if user.provider:
        raise _Unusable(
            "its user logs in by an auth-provider, which Kubernetes dropped with version 1.26",
            "name a user with `exec`, a token or a certificate",
        )
    if user.program and user.program.interactive == "Always":
        raise _Unusable(
            f"{user.program.command} asks a person (interactiveMode: Always)",
            "name a user whose program asks no one, a token or a certificate",
        )
    if cluster.insecure and (cluster.ca_file or cluster.ca_data):
        raise _Unusable(
            "it has a certificate-authority and insecure-skip-tls-verify: remove one"
        )
    if cluster.proxy_url:
        scheme = httpx2.URL(cluster.proxy_url).scheme
        if scheme not in _PROXIES:
            raise _Unusable(f"its proxy-url has none of the schemes {_PROXIES}")
        if scheme.startswith("socks") and find_spec("socksio") is None:
            raise _Unusable("its proxy-url needs SOCKS", "pip install socksio")


# ------------------------------------------------------------------ TLS


def tls_context(login: ClusterLogin) -> ssl.SSLContext:
    """Return what to trust and the client's own certificate. Raises OSError and ValueError."""
    cluster, user = login.cluster, login.user
    data = cluster.ca_data.decode("ascii", "replace") or None
    file = login.file(cluster.ca_file) if cluster.ca_file and not data else None
    if cluster.insecure or httpx2.URL(cluster.server).scheme == "http":
        # To load what the system trusts takes tens of milliseconds, and nothing is verified.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    else:
        context = ssl.create_default_context(cafile=file, cadata=data)
    # Python 3.13 refuses an authority without a key identifier, which clusters have and kubectl takes.
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    if cluster.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate = user.certificate_data or _content(login, user.certificate_file)
    if certificate:
        load_certificate(
            context, certificate, user.key_data or _content(login, user.key_file)
        )
    return context


def _content(login: ClusterLogin, name: str) -> bytes:
    return login.file(name).read_bytes() if name else b""


def load_certificate(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Make connections from now on present this certificate (PEM). Raises OSError, also for what is none."""
    # The library reads keys from files only. This one is readable for its owner only, and gone at once.
    with tempfile.NamedTemporaryFile(prefix="midwatch-") as file:
        file.write(certificate + b"\n" + key)
        file.flush()
        context.load_cert_chain(file.name)
