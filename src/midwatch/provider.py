"""How the Claude API is reached: the provider, its credentials, and the variables of the network. Pure.

Diagnoses and sessions use the same `ApiAccess`. It is read from an environment as `anthropic.Anthropic()` reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args
from urllib.parse import unquote, urlsplit

from midwatch.errors import SettingsError

Provider = Literal["anthropic", "bedrock", "vertex"]

PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
"""Variables of proxies. The SDK and the program read their names in small letters as well."""
PROXY_VARIABLES = tuple(
    name for one in (*PROXIES, "NO_PROXY") for name in (one.lower(), one)
)
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS")
CLOUD_VARIABLES = {
    "bedrock": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "vertex": ("CLOUD_ML_REGION", "ANTHROPIC_VERTEX_PROJECT_ID"),
}
"""Variables of a provider that are not secret, which the claude program gets."""
SECRET_VARIABLES = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_CUSTOM_HEADERS",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_BEARER_TOKEN_BEDROCK",
)
"""Variables whose values neither Bash nor a log may show."""
_SHORTEST_SECRET = 8  # characters; a shorter one would be redacted in ordinary text
_ADDRESSES = {
    "anthropic": "ANTHROPIC_BASE_URL",
    "bedrock": "ANTHROPIC_BEDROCK_BASE_URL",
    "vertex": "ANTHROPIC_VERTEX_BASE_URL",
}


@dataclass(frozen=True, slots=True)
class ApiAccess:
    """How the API is reached. A client for sessions without the Anthropic SDK.

    Attributes:
        api_key: The key.
        base_url: The address of the API; None is the provider's own.
        auth_token: The token of a gateway, which is sent as `Authorization: Bearer`. A key comes first.
        headers: Headers added to every request.
        provider: Whose API it is. The credentials of a cloud come from `environ`, as its own tools read them.
        environ: The variables of proxies, certificates and clouds; others are ignored.
    """

    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = None
    auth_token: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    provider: Provider = "anthropic"
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_environ(
        cls,
        environ: Mapping[str, str],
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        provider: Provider = "anthropic",
    ) -> ApiAccess:
        """Return what `anthropic.Anthropic(api_key=…, base_url=…)` would use in this environment.

        Raises SettingsError for ANTHROPIC_CUSTOM_HEADERS that no HTTP request can carry.
        """
        key = api_key or environ.get("ANTHROPIC_API_KEY", "").strip() or None
        token = environ.get("ANTHROPIC_AUTH_TOKEN", "").strip() or None
        return cls(
            api_key=key,
            base_url=base_url or environ.get(_ADDRESSES[provider]) or None,
            auth_token=None if key else token,
            headers=parse_headers(environ.get("ANTHROPIC_CUSTOM_HEADERS", "")),
            provider=provider,
            environ=dict(environ),
        )

    def in_environ(self, environ: Mapping[str, str]) -> ApiAccess:
        """Return this access with the network of an environment, unless it has one."""
        return self if self.environ else replace(self, environ=dict(environ))

    @property
    def network(self) -> dict[str, str]:
        """The variables of proxies and certificates that are set."""
        names = (*PROXY_VARIABLES, *CERTIFICATE_VARIABLES)
        return {name: self.environ[name] for name in names if self.environ.get(name)}

    @property
    def cloud(self) -> dict[str, str]:
        """The variables of the provider that are set and not secret."""
        names = CLOUD_VARIABLES.get(self.provider, ())
        return {name: self.environ[name] for name in names if self.environ.get(name)}

    @property
    def secret_proxies(self) -> dict[str, str]:
        """Those variables of proxies whose URL has a password."""
        return {
            name: value
            for name, value in self.network.items()
            if name.upper() in PROXIES and _has_login(value)
        }

    @property
    def has_secrets(self) -> bool:
        """Whether the API needs more than a key, so that the program must not make the requests itself."""
        return bool(
            self.provider != "anthropic"
            or self.auth_token
            or self.headers
            or (self.base_url and _has_login(self.base_url))
        )

    @property
    def secrets(self) -> tuple[str, ...]:
        """All secret values, for redaction."""
        return tuple(dict.fromkeys(s for s in self._secrets() if s))

    def _secrets(self) -> Iterator[str]:
        yield self.api_key or ""
        yield self.auth_token or ""
        for value in self.headers.values():
            yield value if len(value) >= _SHORTEST_SECRET else ""
            word = value.rpartition(" ")[2]  # of "Bearer WORD"
            yield word if len(word) >= _SHORTEST_SECRET else ""
        for name in SECRET_VARIABLES[3:]:
            yield self.environ.get(name, "")
        for url in (self.base_url or "", *self.secret_proxies.values()):
            yield from _passwords(url)


def parse_headers(text: str) -> dict[str, str]:
    """Return the headers of ANTHROPIC_CUSTOM_HEADERS: one `Name: value` a line, as the SDK reads them.

    Raises SettingsError for a name or a value that HTTP does not allow; the value is not repeated.
    """
    found = {}
    for line in text.split("\n"):
        name, colon, value = line.partition(":")
        if not colon:
            continue
        name, value = name.strip(), value.strip()
        if not name or not name.isascii() or not set(name) <= _TOKEN:
            raise SettingsError(
                f"{name[:40]!r} is not the name of a header",
                path="ANTHROPIC_CUSTOM_HEADERS",
                hint="write one header a line, such as X-Team: payments",
            )
        if not value.isprintable() or not value.isascii():
            raise SettingsError(
                f"the value of {name} has characters that no header has",
                path="ANTHROPIC_CUSTOM_HEADERS",
                hint="use printable ASCII",
            )
        found[name] = value
    return found


_TOKEN = frozenset(
    "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)


def check_provider(name: str) -> Provider:
    """Return the provider of this name. Raises SettingsError."""
    for one in get_args(Provider):
        if one == name:
            return one  # type: ignore[no-any-return]
    raise SettingsError(
        f"{name!r} is not a provider",
        path="anthropic.provider",
        hint=f"choose from {', '.join(get_args(Provider))}",
    )


def _has_login(url: str) -> bool:
    return "@" in urlsplit(_with_scheme(url)).netloc


def _passwords(url: str) -> Iterator[str]:
    parts = urlsplit(_with_scheme(url))
    for text in (parts.password, None if parts.password else parts.username):
        if text:
            yield text
            yield unquote(text)


def _with_scheme(url: str) -> str:
    return url if "://" in url else f"http://{url}"
