"""Signatures of requests: HMAC-SHA256 of the body with a secret that sender and receiver share."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from midwatch.server.problems import Unauthenticated

HEADERS = {
    "pagerduty": "x-pagerduty-signature",
    "grafana": "x-grafana-alerting-signature",
}
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


def _timed(stamp: str, body: bytes, now: float) -> bytes:
    if not (stamp.isascii() and stamp.isdecimal()) or len(stamp) > 12:
        raise Unauthenticated("the request does not say when it was signed")
    if abs(int(stamp) - now) > _OLDEST:
        raise Unauthenticated(
            "the request was signed too long ago, or in the future",
            hint="check the clocks of both machines",
        )
    return stamp.encode() + b":" + body
