"""Settings of the server, and of how people sign in to it."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from midwatch.errors import SettingsError
from midwatch.setting_group import Bytes, Group, Listen, Network, Origin, Seconds, Url


class RoleSettings(Group):
    """Who may do what. An entry is a name, a pattern such as '*@example.org', or group:NAME."""

    viewers: list[str] = Field(default=[], description="Who may read everything.")
    operators: list[str] = Field(
        default=[],
        description="Who may also acknowledge, hold, resolve, silence and retry, and steer sessions.",
    )
    admins: list[str] = Field(
        default=[], description="Who may also see and revoke tokens."
    )


class OidcSettings(Group):
    """An OpenID Connect provider that signs people in."""

    issuer: Url = Field(
        description="Its issuer URL, such as https://accounts.google.com."
    )
    client_id: str = Field(min_length=1, description="The id of this client.")
    client_secret: str | None = Field(
        None, description="The client's secret, best as ${NAME}; null without one."
    )
    client_secret_file: Path | None = Field(
        None, description="A file that contains only the secret."
    )
    scopes: list[str] = Field(
        default_factory=lambda: ["openid", "email", "profile"],
        description="Scopes that are requested.",
    )
    name_claim: str = Field(
        "email",
        description="The claim that names a person. An e-mail address must be marked as verified.",
    )
    groups_claim: str = Field(
        "groups", description="The claim that lists a person's groups."
    )

    def read_secret(self) -> str:
        """Return the client's secret; empty without one. Raises SettingsError."""
        if self.client_secret_file is None:
            return self.client_secret or ""
        try:
            return self.client_secret_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"cannot read {self.client_secret_file}: {error}",
                path="server.oidc.client_secret_file",
                hint="the file must hold the secret and nothing else",
            ) from None


class ProxySettings(Group):
    """A reverse proxy that signs people in and names them in a header."""

    addresses: list[Network] = Field(
        min_length=1,
        description="Addresses that it connects from, such as 10.0.0.7 or 10.1.0.0/16. From others the headers mean nothing.",
    )
    user_header: str = Field(
        "X-Forwarded-User", description="The header with a person's name."
    )
    groups_header: str | None = Field(
        None, description="The header with the person's groups, separated by commas."
    )


class SessionClusterSettings(Group):
    """Where the page, the API and MCP create sessions with pull requests, as AgenticSession resources."""

    namespace: str = Field(
        min_length=1,
        max_length=63,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        description="The namespace of the sessions; an operator runs them there.",
    )
    kubeconfig: Path | None = Field(
        None, description="The kubeconfig file; null for the pod's service account."
    )
    context: str | None = Field(
        None, description="The context in the kubeconfig; null for the current one."
    )
    request_timeout: Seconds = Field(
        10.0, gt=0, description="Timeout of one request to the API server."
    )


class ServerSettings(Group):
    """The server: the page, the API, MCP and the addresses that alerts are sent to."""

    listen: Listen | None = Field(
        None,
        description="HOST:PORT that it listens on, such as 127.0.0.1:8470; port 0 for any, which is logged. null for none.",
    )
    url: Origin | None = Field(
        None,
        description="The URL under which people reach it, such as https://midwatch.example.org. Links begin with it.",
    )
    hosts: list[str] = Field(
        default=[],
        description="Further host names under which it is reached without a token.",
    )
    mcp: bool = Field(
        False,
        description="Serve MCP at /mcp, for tokens with the scope mcp; needs midwatch[mcp].",
    )
    certificate_file: Path | None = Field(
        None, description="A file with its TLS certificate and those that signed it."
    )
    certificate_key_file: Path | None = Field(
        None, description="A file with the certificate's private key."
    )
    oidc: OidcSettings | None = Field(
        None, description="Sign-in through OpenID Connect, see below."
    )
    proxy: ProxySettings | None = Field(
        None, description="Sign-in by a proxy in front, see below."
    )
    roles: RoleSettings = Field(
        RoleSettings(), description="Who may do what, see below."
    )
    session_cluster: SessionClusterSettings | None = Field(
        None,
        description="The cluster for sessions with pull requests, see below; null for processes of this machine.",
    )
    sign_in_time: Seconds = Field(
        43200.0, ge=60, description="How long a person stays signed in."
    )
    max_body: Bytes = Field(
        33_554_432, ge=1024, description="Most bytes of a request's body."
    )
    max_bodies: Bytes = Field(
        134_217_728,
        ge=1024,
        description="Most bytes of all bodies that are in memory at the same time.",
    )
    max_requests: int = Field(
        256, ge=1, description="Most requests at the same time; others get 503."
    )
    max_streams: int = Field(
        2000,
        ge=1,
        description="Most open streams of events; a browser has one for each open page.",
    )
    request_time: Seconds = Field(
        30.0,
        gt=0,
        description="Timeout of a request's head, of its body, and of an answer that is not read.",
    )
