"""A URL taken apart, so that nothing secret in it is ever shown."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from ._text import component_name


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes, and with which log-in."""

    url: str  # without user and password
    shown: str  # without the query as well
    host: str
    port: int
    login: tuple[str, str] | None

    @classmethod
    def of(cls, url: str) -> Target:
        parts = urlsplit(url)
        host = parts.hostname or ""
        place = f"[{host}]" if ":" in host else host
        default = 443 if parts.scheme == "https" else 80
        port = parts.port or default
        netloc = place if port == default else f"{place}:{port}"
        bare = (parts.scheme, netloc, parts.path or "/")
        login = (unquote(parts.username or ""), unquote(parts.password or ""))
        return cls(
            url=urlunsplit((*bare, parts.query, "")),
            shown=component_name(urlunsplit((*bare, "", ""))),
            host=host,
            port=port,
            login=login if any(login) else None,
        )

    @property
    def origin(self) -> tuple[str, str, int]:
        return urlsplit(self.url).scheme, self.host, self.port

    @property
    def secure(self) -> bool:
        return self.url.startswith("https:")

    def query_values(self) -> list[str]:
        """The values in the query, as written and as meant."""
        query = urlsplit(self.url).query
        written = [part.partition("=")[2] for part in query.split("&")]
        return sorted({*written, *(value for _, value in parse_qsl(query))})

    def login_header(self) -> Mapping[str, str]:
        """The header that logs in with the user and password of the URL, if it had any."""
        return basic_login(*self.login) if self.login else {}


def basic_login(user: str, password: str) -> Mapping[str, str]:
    """The header of HTTP basic authentication (RFC 7617)."""
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"authorization": f"Basic {token}"}
