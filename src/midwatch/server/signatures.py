"""Signatures of requests: HMAC-SHA256 of the body with a secret that sender and receiver share."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence

from midwatch.server.problems import Unauthenticated

HEADERS = {
    "pagerduty": "x-pagerduty-signature",
    "grafana": "x-grafana-alerting-signature",
}
CHANGE_HEADERS = {
    "github": "x-hub-signature-256",
    "argocd": "x-midwatch-signature",
}
"""The headers with the signatures of those who report changes."""
OTHER_HEADER = "x-midwatch-signature"
_MOST_SIGNATURES = 20
_OLDEST = 300.0
"""Seconds that a signed time may differ from now."""


def sign(secret: str, body: bytes) -> str:
    """Return the signature of a body in hexadecimal."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def check_signature(
    headers: Mapping[str, str],
    header: str,
    body: bytes,
    secrets: Sequence[str],
    *,
    timestamp_header: str | None = None,
    now: float = 0.0,
) -> None:
    """Check the signature of a request. One of several is enough, with one of several secrets: these get replaced.

    Args:
        headers: The headers of the request, by their names in lower case.
        header: The name of the one with the signatures: `hex`, or `v1=hex,v1=hex`, or `sha256=hex`.
        body: The body.
        secrets: The secrets.
        timestamp_header: The name of a header with Unix seconds, which are signed before the body and a colon.
        now: Unix seconds, to which these are compared.

    Raises:
        Unauthenticated: There is no signature, or none is right, or its time is not that of now.
    """
    given = headers.get(header.lower(), "")
    if not given:
        raise Unauthenticated(
            f"the request has no signature in the header {header}",
            hint="check the secret of the webhook at its sender",
        )
    if timestamp_header is not None:
        body = _timed(headers.get(timestamp_header.lower(), ""), body, now)
    found = [
        one.rpartition("=")[2].strip().lower()
        for one in given.split(",")[:_MOST_SIGNATURES]
    ]
    right = False
    for secret in secrets:  # all are compared: the time tells nothing
        expected = sign(secret, body)
        for one in found:
            right |= hmac.compare_digest(expected.encode(), one.encode())
    if not right:
        raise Unauthenticated(
            "the signature of the request is wrong",
            hint="check signing_secrets, and the secret of the webhook at its sender",
        )


def check_gitlab(
    headers: Mapping[str, str], body: bytes, secrets: Sequence[str], now: float
) -> None:
    """Check that a request is of GitLab: by its secret token, or by a signature with its signing token.

    The signature is that of Standard Webhooks: `v1,BASE64` of the id, the time and the body, with points in between
    (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md). Who sends a request
    again within the 5 minutes that it is valid cannot change its id: so it reports nothing new.

    Args:
        headers: The headers of the request, by their names in lower case.
        body: The body.
        secrets: The secret tokens and signing tokens.
        now: Unix seconds, to which the time of the signature is compared.

    Raises:
        Unauthenticated: It proves nothing, or what it says is wrong.
    """
    token, signed = headers.get("x-gitlab-token", ""), headers.get(_STANDARD, "")
    if not (token or signed):
        raise Unauthenticated(
            "the request has neither the header X-Gitlab-Token nor a signature",
            hint="check the secret token of the webhook at GitLab",
        )
    right = False
    for secret in secrets:  # all are compared: the time tells nothing
        right |= hmac.compare_digest(secret.encode(), token.encode())
    if signed and not right:
        right = _is_signed(headers, signed, body, secrets, now)
    if not right:
        raise Unauthenticated(
            "the token or the signature of the request is wrong",
            hint="check signing_secrets, and the secret of the webhook at GitLab",
        )


_STANDARD = "webhook-signature"


def _is_signed(
    headers: Mapping[str, str],
    signed: str,
    body: bytes,
    secrets: Sequence[str],
    now: float,
) -> bool:
    stamp, id_ = headers.get("webhook-timestamp", ""), headers.get("webhook-id", "")
    _check_stamp(stamp, now)
    if not id_:
        raise Unauthenticated("the signed request has no header webhook-id")
    start = f"{id_}.{stamp}.".encode()
    parts = (one.partition(",") for one in signed.split()[:_MOST_SIGNATURES])
    given = [digest for version, _, digest in parts if version == "v1"]
    right = False
    for key in (key for secret in secrets for key in _keys(secret)):
        digest = hmac.new(key, start + body, hashlib.sha256).digest()
        expected = base64.b64encode(digest)
        for one in given:
            right |= hmac.compare_digest(expected, one.encode())
    return right


def _keys(secret: str) -> list[bytes]:
    """Return the keys that a signing token can stand for: itself, and what it has in base64 after `whsec_`."""
    keys = [secret.encode()]
    if secret.startswith("whsec_"):
        try:
            keys.append(base64.b64decode(secret.removeprefix("whsec_"), validate=True))
        except ValueError:
            pass
    return [key for key in keys if key]


def _timed(stamp: str, body: bytes, now: float) -> bytes:
    _check_stamp(stamp, now)
    return stamp.encode() + b":" + body


def _check_stamp(stamp: str, now: float) -> None:
    """Raise Unauthenticated unless a request was signed now, in Unix seconds."""
    if not (stamp.isascii() and stamp.isdecimal()) or len(stamp) > 12:
        raise Unauthenticated("the request does not say when it was signed")
    if abs(int(stamp) - now) > _OLDEST:
        raise Unauthenticated(
            "the request was signed too long ago, or in the future",
            hint="check the clocks of both machines",
        )
