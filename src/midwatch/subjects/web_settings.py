"""The settings of a connection over HTTP, which the kinds `http` and `prometheus` share."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from midwatch.lifecycle import Clock
from midwatch.setting_group import Url
from midwatch.settings import SubjectSettings
from midwatch.subjects.base import Address
from midwatch.subjects.http_client import WebClient

_HOST = re.compile(r"[\w-]+(\.[\w-]+)*")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_HARMLESS = {
    *("accept", "accept-encoding", "accept-language", "cache-control", "connection"),
    *("content-type", "host", "origin", "referer", "user-agent", "x-scope-orgid"),
}
"""Headers whose values are no secrets; hidden, they would make holes in every text."""


def check_headers(value: dict[str, SecretStr]) -> dict[str, SecretStr]:
    """Return `value` if its names are names of headers and its values are one line each. Raises ValueError."""
    for name, secret in value.items():
        text = secret.get_secret_value()
        if not _HEADER.fullmatch(name) or not (text.isprintable()):
            raise ValueError(
                f"{name!r} is not a header name, or its value is not one line"
            )
    return value


def check_server_name(value: str) -> str:
    """Return `value` if it is the name or the address of a host. Raises ValueError."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        if not _HOST.fullmatch(value):
            raise ValueError(
                f"{value!r} is not a host name; use shop.example, without port"
            ) from None
    return value


Headers = Annotated[dict[str, SecretStr], AfterValidator(check_headers)]
ServerName = Annotated[str, AfterValidator(check_server_name)]


class WebSettings(SubjectSettings):
    """A subject that is reached over HTTP."""

    url: Url = Field(description="Its URL, http:// or https://.")
    headers: Headers = Field(
        default={}, description="Request headers; the values are secret."
    )
    verify: bool = Field(True, description="Whether the certificate must be valid.")
    ca_file: Path | None = Field(
        None, description="Certificate authorities to trust besides the system's."
    )
    server_name: ServerName | None = Field(
        None,
        description="The name that TLS asks for and the certificate must have, instead of the host of `url`.",
    )
    client_certificate: Path | None = Field(
        None,
        description="A PEM file with the certificate that a server may ask for (mutual TLS), and its key.",
    )
    client_key: Path | None = Field(
        None,
        description="A PEM file with the key of `client_certificate`, if that has none; without a passphrase.",
    )
    proxy: Url | None = Field(
        None,
        description="The proxy that requests go through, http://HOST:PORT. Those of the environment are not used.",
    )

    @model_validator(mode="after")
    def _key_of_a_certificate(self) -> Self:
        if self.client_key and not self.client_certificate:
            raise ValueError("client_key needs client_certificate")
        return self

    def web_client(
        self, path: str, clock: Clock, *, keep_alive: bool = False, own: bool = True
    ) -> WebClient:
        """Return a client with these settings, whose path is `path`. Raises SettingsError for a file.

        One that is not for the subject's `own` server has no certificate for it, and expects the names of the hosts.
        """
        return WebClient(
            verify=self.verify,
            ca_file=self.ca_file,
            client_certificate=self.client_certificate if own else None,
            client_key=self.client_key if own else None,
            server_name=self.server_name or "" if own else "",
            proxy=self.proxy or "",
            path=path,
            keep_alive=keep_alive,
            clock=clock,
        )

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The address that `url` names."""
        parts = urlsplit(self.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return (Address((parts.hostname or "").lower(), port),)

    def connection_secrets(self) -> list[str]:
        """Return the values of the headers that may be secret, and the password of the proxy."""
        password = unquote(urlsplit(self.proxy or "").password or "")
        values = [
            value.get_secret_value()
            for name, value in self.headers.items()
            if name.lower() not in _HARMLESS
        ]
        return [value for value in (*values, password) if value]
