"""How the Claude API is reached: the provider, its credentials, and the variables of the network.

Diagnoses and sessions use the same `ApiAccess`. It is read from an environment as `anthropic.Anthropic()` reads it.
"""

from __future__ import annotations

import contextlib
import ssl
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from midwatch.errors import SettingsError
from midwatch.units import check_url, check_url_port

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
AWS_SECRETS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_BEARER_TOKEN_BEDROCK",
)
"""Variables of credentials of Amazon, which neither Bash nor a log may show if they are for the API."""
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
        client: The SDK's client of a cloud; None makes one of `environ` when it is needed.
    """

    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = None
    auth_token: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    provider: Provider = "anthropic"
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    client: Any = field(default=None, repr=False)

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
    def needs_trust(self) -> bool:
        """Whether the variables name certificates."""
        return any(self.environ.get(name) for name in CERTIFICATE_VARIABLES)

    @property
    def has_credentials(self) -> bool:
        """Whether there is something to log in with; those of a cloud are found when they are used."""
        named = {name.lower() for name in self.headers}
        return bool(
            self.provider != "anthropic"
            or self.api_key
            or self.auth_token
            or named & {"authorization", "x-api-key"}
        )

    @property
    def needs_relay(self) -> bool:
        """Whether the program may not have all that its requests need."""
        return self.has_secrets or bool(self.secret_proxies)

    def plain_variables(self) -> dict[str, str]:
        """Return the variables of a program that needs no relay."""
        base = {"ANTHROPIC_BASE_URL": self.base_url} if self.base_url else {}
        return {**self.network, **base}

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
        for name in AWS_SECRETS if self.provider == "bedrock" else ():
            value = self.environ.get(name, "")
            yield value if len(value) >= _SHORTEST_SECRET else ""
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


# ------------------------------------------------------------------ clients of the SDK

_CLOUD_CLIENTS: Mapping[str, Provider] = {
    "AnthropicBedrock": "bedrock",
    "AsyncAnthropicBedrock": "bedrock",
    "AnthropicVertex": "vertex",
    "AsyncAnthropicVertex": "vertex",
}
_SDK_HEADERS = frozenset(
    "accept content-type user-agent anthropic-version x-stainless-async".split()
)


def access_of(client: Any) -> ApiAccess:
    """Return what a client of the Anthropic SDK was made with: its key or token, its address, its default headers."""
    if isinstance(client, ApiAccess):
        return client
    names = (one.__name__ for one in type(client).__mro__)
    provider = next((_CLOUD_CLIENTS[n] for n in names if n in _CLOUD_CLIENTS), None)
    base_url = str(client.base_url).rstrip("/") if client.base_url else None
    if provider is not None:
        return ApiAccess(base_url=base_url, provider=provider, client=client)
    key, token = client.api_key or None, getattr(client, "auth_token", None) or None
    own = {f"Bearer {key}", f"Bearer {token}", key}
    headers = {
        name: value
        for name, value in getattr(client, "default_headers", {}).items()
        if isinstance(value, str)
        and name.lower() not in _SDK_HEADERS
        and not name.lower().startswith("x-stainless-")
        and not (name.lower() in ("authorization", "x-api-key") and value in own)
    }
    return ApiAccess(key, base_url, None if key else token, headers)


def check_access(access: ApiAccess) -> None:
    """Raise SettingsError for what can be seen to be wrong without the SDK: addresses, certificates, a cloud's needs."""
    check_addresses(access)
    if access.needs_trust:
        trust(access.environ)
    if access.client is None:
        check_cloud(access)


def check_cloud(access: ApiAccess) -> None:
    """Raise SettingsError for a library or a variable that the provider needs and that is missing."""
    environ = access.environ
    if access.provider == "bedrock" and not environ.get("AWS_BEARER_TOKEN_BEDROCK"):
        _need("boto3", access.provider)
    if access.provider == "vertex":
        _need("google.auth", access.provider)
        for name, hint in (
            ("CLOUD_ML_REGION", "the region, such as global or europe-west1"),
            ("ANTHROPIC_VERTEX_PROJECT_ID", "the project on Google Cloud"),
        ):
            if not environ.get(name):
                raise _missing(name, hint)


def cloud_client(access: ApiAccess, **options: Any) -> Any:
    """Return the SDK's asynchronous client of a cloud. Raises SettingsError, which names what is missing."""
    if access.client is not None:
        return access.client
    check_cloud(access)
    environ = access.environ
    if access.provider == "bedrock":
        from anthropic import AsyncAnthropicBedrock

        token = environ.get("AWS_BEARER_TOKEN_BEDROCK") or None
        try:
            return AsyncAnthropicBedrock(
                api_key=token,
                aws_access_key=None if token else environ.get("AWS_ACCESS_KEY_ID"),
                aws_secret_key=None if token else environ.get("AWS_SECRET_ACCESS_KEY"),
                aws_session_token=None if token else environ.get("AWS_SESSION_TOKEN"),
                aws_region=environ.get("AWS_REGION")
                or environ.get("AWS_DEFAULT_REGION")
                or None,
                base_url=access.base_url,
                default_headers=dict(access.headers),
                **options,
            )
        except ValueError:
            raise _missing("AWS_REGION", "the region, such as us-east-1") from None
    from anthropic import AsyncAnthropicVertex

    return AsyncAnthropicVertex(
        region=environ["CLOUD_ML_REGION"],
        project_id=environ["ANTHROPIC_VERTEX_PROJECT_ID"],
        base_url=access.base_url,
        default_headers=dict(access.headers),
        **options,
    )


def _need(module: str, provider: Provider) -> None:
    """Raise SettingsError if the library of a provider is not installed."""
    from importlib.util import find_spec

    with contextlib.suppress(ImportError):
        if find_spec(module) is not None:
            return
    name = {"google.auth": "google-auth"}.get(module, module)
    raise SettingsError(
        f"{provider} needs {name}, which is not installed",
        path="anthropic.provider",
        hint=f"pip install 'midwatch[{provider}]'",
    )


def _missing(name: str, what: str) -> SettingsError:
    return SettingsError("is not set", path=name, hint=f"set it to {what}")


def credential_errors() -> tuple[type[Exception], ...]:
    """Return the errors with which a cloud's library says that it has no credentials, or cannot renew them."""
    found: list[type[Exception]] = [RuntimeError, ImportError]
    for module, name in (
        ("botocore.exceptions", "BotoCoreError"),
        ("google.auth.exceptions", "GoogleAuthError"),
    ):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def trust(environ: Mapping[str, str]) -> ssl.SSLContext:
    """Return whom to trust: SSL_CERT_FILE, SSL_CERT_DIR or the usual ones, and NODE_EXTRA_CA_CERTS beside them.

    Raises SettingsError for a file that cannot be used.
    """
    import httpx2

    name = ""
    try:
        if file := environ.get(name := "SSL_CERT_FILE"):
            context = ssl.create_default_context(cafile=file)
        elif folder := environ.get(name := "SSL_CERT_DIR"):
            context = ssl.create_default_context(capath=folder)
        else:
            context = httpx2.create_ssl_context(trust_env=False)
        if extra := environ.get(name := "NODE_EXTRA_CA_CERTS"):
            context.load_verify_locations(extra)
    except OSError as error:  # ssl.SSLError is one
        raise SettingsError(
            f"cannot read certificates from {environ.get(name)}: {error}",
            path=name,
            hint="name a readable file of certificates in PEM",
        ) from error
    return context


def check_addresses(access: ApiAccess) -> None:
    """Raise SettingsError for an address of the API or of a proxy that cannot be used.

    It is not repeated, as it may have a password.
    """
    if access.base_url and access.client is None:
        import httpx2

        path = _ADDRESSES[access.provider]
        try:
            httpx2.URL(check_url(access.base_url))
        except ValueError as error:
            raise SettingsError(str(error), path=path) from None
        except httpx2.InvalidURL:
            hint = "use one such as https://gateway.example"
            raise SettingsError("is not a URL", path=path, hint=hint) from None
    check_proxies(access)


def check_proxies(access: ApiAccess) -> None:
    """Raise SettingsError for a proxy that cannot be used; its URL, which may have a password, is not repeated."""
    proxies = {n: url for n, url in access.network.items() if n.upper() in PROXIES}
    if not proxies:
        return
    import httpx2

    for name, url in proxies.items():
        hint = "use one such as http://proxy.example:3128"
        try:
            httpx2.AsyncHTTPTransport(verify=False, proxy=with_scheme(url))
            check_url_port(with_scheme(url))
        except ImportError:
            hint += ", or `pip install socksio`"
            raise SettingsError("is a SOCKS proxy", path=name, hint=hint) from None
        except (ValueError, httpx2.InvalidURL):
            raise SettingsError(
                "is not the URL of a proxy", path=name, hint=hint
            ) from None


def _has_login(url: str) -> bool:
    try:
        return "@" in urlsplit(with_scheme(url)).netloc
    except ValueError:
        return "@" in url


def _passwords(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(with_scheme(url))
    except ValueError:  # the password cannot be found in it
        yield url
        return
    for text in (parts.password, None if parts.password else parts.username):
        if text and len(text) >= 4:  # a shorter one would be redacted in ordinary text
            yield text
            yield unquote(text)


def with_scheme(url: str) -> str:
    """Return the URL of a proxy, which is one of http where it does not say."""
    return url if "://" in url else f"http://{url}"
