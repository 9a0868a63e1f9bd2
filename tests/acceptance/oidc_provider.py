"""An OpenID Connect provider on loopback, which checks what a client has to prove and errs on demand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

CLIENT, SECRET = "midwatch", "the-client-secret-0123456789"


class Provider:
    """A provider.

    Attributes:
        url: Its issuer.
        claims: Added to the ID token, or replacing what is there.
        key: Signs ID tokens.
        published: The keys that it publishes.
        down: Whether it answers 500.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.claims: dict[str, Any] = {}
        self.key: Any = RSAKey.generate_key(2048, {"kid": "1"})
        self.published = [self.key]
        self.algorithm = "RS256"
        self.down = False
        self._codes: dict[str, dict[str, str]] = {}

    def metadata(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/keys",
            "response_types_supported": ["code"],
        }

    def keys(self) -> dict[str, Any]:
        return {"keys": [key.as_dict(private=False) for key in self.published]}

    def authorize(self, query: dict[str, str]) -> str:
        """Where the browser goes once the person has signed in."""
        assert query["response_type"] == "code" and query["client_id"] == CLIENT
        assert query["code_challenge_method"] == "S256"
        assert "openid" in query["scope"].split()
        code = f"code-{len(self._codes)}"
        self._codes[code] = query
        return f"{query['redirect_uri']}?" + urlencode(
            {"code": code, "state": query["state"]}
        )

    def token(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        query = self._codes.pop(form["code"], None)
        challenge = create_s256_code_challenge(form["code_verifier"])
        if (
            query is None
            or form["client_secret"] != SECRET
            or form["redirect_uri"] != query["redirect_uri"]
            or challenge != query["code_challenge"]
        ):
            return 400, {"error": "invalid_grant"}
        claims = {
            "iss": self.url,
            "aud": CLIENT,
            "sub": "1",
            "iat": int(time.time()),
            "exp": int(time.time()) + 300,
            "nonce": query["nonce"],
            "email": "ann@example.org",
            "email_verified": True,
            **self.claims,
        }
        signed = jwt.encode(
            {"alg": self.algorithm, "kid": "1"},
            claims,
            self.key,
            algorithms=[self.algorithm],
        )
        return 200, {"access_token": "a", "token_type": "Bearer", "id_token": signed}

    def err(self, how: str) -> None:
        """Do wrong in one way from now on."""
        match how:
            case "signed by another":
                self.key = RSAKey.generate_key(2048, {"kid": "1"})
            case "signed with the client's secret":
                self.key, self.algorithm = OctKey.import_key(SECRET), "HS256"
            case "signed with a key of another kind":
                self.key, self.algorithm = ECKey.generate_key("P-256"), "ES256"
            case "down":
                self.down = True
            case "renamed":
                self.url = "https://elsewhere.example"
            case _:
                raise AssertionError(how)


@contextmanager
def provider() -> Iterator[Provider]:
    """Run a provider while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, query = urlsplit(self.path).path, urlsplit(self.path).query
            if path == "/authorize":
                fields = {name: one for name, [one] in parse_qs(query).items()}
                self.send_response(302)
                self.send_header("location", running.authorize(fields))
                self.end_headers()
                return
            pages = {
                "/.well-known/openid-configuration": running.metadata,
                "/keys": running.keys,
            }
            self._json(200, pages[path]())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            form = {name: one for name, [one] in parse_qs(body).items()}
            self._json(*running.token(form))

        def _json(self, status: int, document: dict[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(500 if running.down else status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        running = Provider(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield running
        finally:
            server.shutdown()
            thread.join()
