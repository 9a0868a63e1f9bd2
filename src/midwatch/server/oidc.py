"""Sign-in through an OpenID Connect provider: the authorization code flow with PKCE and a nonce."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx2
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from authlib.oidc.discovery import OpenIDProviderMetadata, get_well_known_url
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from midwatch.errors import TemporaryError
from midwatch.lifecycle import Clock
from midwatch.server.authentication import clean_name
from midwatch.server.problems import Forbidden, RequestRefused
from midwatch.server_settings import OidcSettings
from midwatch.text import one_line

_TIMEOUT = 10.0
"""Seconds for each request to the provider."""
_LONGEST = 1_000_000
"""Bytes of an answer of the provider."""
_KEPT = 3600.0
"""Seconds after which the provider's metadata and keys are read again."""
_LEEWAY = 60
"""Seconds by which the clocks of the provider and of this machine may differ."""
_ALGORITHMS = [
    *("RS256", "RS384", "RS512"),
    *("PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512"),
    "EdDSA",
]
"""Signatures by a key of the provider's; `none` and those with the client's secret are not accepted."""


class ProviderUnavailable(TemporaryError):
    """The provider that signs people in does not answer as it should."""

    hint = "try again; check server.oidc.issuer if it stays so"


class SignInRefused(RequestRefused):
    """The sign-in cannot be completed."""

    hint = "sign in again"


@dataclass(frozen=True, slots=True)
class Started:
    """A sign-in that was begun: where the browser goes, and what it brings back."""

    url: str
    state: str
    nonce: str
    verifier: str


@dataclass(frozen=True, slots=True)
class Person:
    """Who signed in, as the provider says."""

    name: str
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Provider:
    metadata: Mapping[str, Any]
    keys: KeySet
    read_at: float


class OidcClient:
    """A client of the provider.

    Args:
        settings: The provider, and this client there.
        clock: Ages what is kept of the provider.
        http: Sends the requests; the caller closes it.
    """

    def __init__(
        self, settings: OidcSettings, clock: Clock, http: httpx2.AsyncClient
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._http = http
        self._secret = settings.read_secret()
        self._provider: _Provider | None = None

    async def start(self, redirect_uri: str) -> Started:
        """Begin a sign-in, whose answer comes to `redirect_uri`. Raises ProviderUnavailable."""
        provider = await self._read_provider()
        state, nonce = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        verifier = secrets.token_urlsafe(48)
        endpoint = str(provider.metadata["authorization_endpoint"])
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(self._settings.scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": create_s256_code_challenge(verifier),
            "code_challenge_method": "S256",
        }
        separator = "&" if "?" in endpoint else "?"
        return Started(
            f"{endpoint}{separator}{urlencode(query)}", state, nonce, verifier
        )

    async def finish(
        self, code: str, nonce: str, verifier: str, redirect_uri: str
    ) -> Person:
        """Return who signed in.

        Raises:
            SignInRefused: The provider refuses the code, or its answer proves nothing.
            Forbidden: The person's address is not verified.
            ProviderUnavailable: The provider does not answer as it should.
        """
        provider = await self._read_provider()
        data = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "client_id": self._settings.client_id,
            "code_verifier": verifier,
        }
        if self._secret:
            data["client_secret"] = self._secret
        answer = await self._request(
            "POST", str(provider.metadata["token_endpoint"]), data=data
        )
        if "id_token" not in answer:
            raise ProviderUnavailable("the provider sent no ID token")
        claims = await self._claims(str(answer["id_token"]), nonce, answer)
        return self._person(claims)

    # -------------------------------------------------- the provider

    async def _read_provider(self, *, again: bool = False) -> _Provider:
        kept, now = self._provider, self._clock.monotonic()
        if kept is not None and not again and now - kept.read_at < _KEPT:
            return kept
        issuer = self._settings.issuer.rstrip("/")
        document = await self._request("GET", get_well_known_url(issuer, external=True))
        metadata = OpenIDProviderMetadata(document)
        try:
            metadata.validate_issuer()
            metadata.validate_authorization_endpoint()
            metadata.validate_token_endpoint()
            metadata.validate_jwks_uri()
        except ValueError as error:
            raise ProviderUnavailable(f"the provider's metadata: {error}") from None
        if str(metadata["issuer"]).rstrip("/") != issuer:
            raise ProviderUnavailable(
                f"the provider calls itself {one_line(str(metadata['issuer']))[:200]}",
                hint="server.oidc.issuer must be exactly that",
            )
        jwks = await self._request("GET", str(metadata["jwks_uri"]))
        try:
            keys = KeySet.import_key_set(jwks)  # type: ignore[arg-type]
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise ProviderUnavailable(f"the provider's keys: {error}") from None
        self._provider = _Provider(metadata, keys, now)
        return self._provider

    async def _request(self, method: str, url: str, **more: Any) -> dict[str, Any]:
        try:
            answer = await self._http.request(
                method, url, timeout=_TIMEOUT, follow_redirects=False, **more
            )
            document = answer.json() if len(answer.content) <= _LONGEST else None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise ProviderUnavailable(
                f"the provider does not answer: {error or type(error).__name__}"
            ) from None
        except ValueError:
            document = None
        if answer.status_code in (400, 401, 403) and method == "POST":
            told = document.get("error", "") if isinstance(document, dict) else ""
            raise SignInRefused(
                f"the provider refuses the sign-in: {one_line(str(told))[:200] or answer.status_code}"
            )
        if answer.status_code != 200 or not isinstance(document, dict):
            raise ProviderUnavailable(
                f"the provider answers {answer.status_code} without a JSON object"
            )
        return document

    # -------------------------------------------------- the ID token

    async def _claims(
        self, token: str, nonce: str, answer: Mapping[str, Any]
    ) -> CodeIDToken:
        provider = await self._read_provider()
        try:
            try:
                decoded = jwt.decode(token, provider.keys, algorithms=_ALGORITHMS)
            except (JoseError, ValueError):
                # It may be signed by a key that is newer than those we know.
                provider = await self._read_provider(again=True)
                decoded = jwt.decode(token, provider.keys, algorithms=_ALGORITHMS)
            claims = CodeIDToken(
                decoded.claims,
                decoded.header,
                options={
                    "iss": {"essential": True, "value": provider.metadata["issuer"]},
                    "aud": {"essential": True, "value": self._settings.client_id},
                    "nonce": {"essential": True, "value": nonce},
                },
                params={
                    "nonce": nonce,
                    "client_id": self._settings.client_id,
                    "access_token": answer.get("access_token"),
                },
            )
            claims.validate(now=int(self._clock.now().timestamp()), leeway=_LEEWAY)
        except (JoseError, ValueError, TypeError) as error:
            raise SignInRefused(
                f"the ID token is not valid: {one_line(str(error))[:200]}"
            ) from None
        return claims

    def _person(self, claims: Mapping[str, Any]) -> Person:
        settings = self._settings
        given = claims.get(settings.name_claim)
        name = clean_name(given) if isinstance(given, str) else ""
        if not name:
            raise Forbidden(
                f"the provider sent no {settings.name_claim}",
                hint="check server.oidc.name_claim and server.oidc.scopes",
            )
        if settings.name_claim == "email" and claims.get("email_verified") is not True:
            raise Forbidden(
                f"the provider does not say that {name} is verified",
                hint="verify the address there, or set server.oidc.name_claim to another claim",
            )
        groups = claims.get(settings.groups_claim) or []
        if isinstance(groups, str):
            groups = [groups]
        return Person(name, tuple(one for one in groups if isinstance(one, str)))
