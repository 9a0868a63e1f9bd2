"""Evidence of the kind `http`: the exchange, the certificate and the addresses, as they are now."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ObservationFailed
from ..units import format_duration
from . import _tls
from ._text import one_line
from ._web import Answer, WebFailure
from .base import EvidenceSource

if TYPE_CHECKING:
    from .http import HttpSubject

# Cookies, locations with tokens and the like stay out.
_SHOWN_HEADERS = (
    "age",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "retry-after",
    "server",
    "via",
    "x-cache",
)
_BODY_CHARACTERS = 2000


def sources(subject: HttpSubject) -> Sequence[EvidenceSource]:
    target = subject.target
    limit = subject.settings.timeout

    async def exchange() -> str:
        try:
            return describe(await subject.ask(), target.host)
        except WebFailure as failure:
            return (
                f"request: failed\ncause: {failure.cause}\nmessage: {failure.message}"
            )

    async def certificate() -> str:
        return await _certificate(subject, limit / 3)

    async def addresses() -> str:
        return await resolve(target.host, target.port, limit / 2)

    found = [
        EvidenceSource(
            f"{subject.settings.method} {target.shown} now",
            target.shown,
            exchange,
            10,
            limit,
        ),
        EvidenceSource(
            f"Addresses of {target.host}", "name resolution", addresses, 40, limit
        ),
    ]
    if target.secure:
        found.insert(
            1,
            EvidenceSource(
                f"Certificate of {target.host}:{target.port}",
                "TLS handshake",
                certificate,
                20,
                limit,
            ),
        )
    return found


def describe(answer: Answer, home: str) -> str:
    """Status line, timings, harmless headers and the beginning of the body."""
    lines = [f"status: {answer.version} {answer.status} {answer.reason}"]
    lines.append(f"total: {format_duration(answer.seconds)}")
    lines += [
        f"{phase}: {format_duration(spent)}" for phase, spent in answer.timings.items()
    ]
    for name in _SHOWN_HEADERS:
        if value := answer.header(name):
            lines.append(f"header {name}: {one_line(value, 200)}")
    if answer.host != home:
        # What another place says could be anything, up to an internal page.
        return "\n".join(
            [*lines, f"body: not shown, it came from {one_line(answer.host, 100)}"]
        )
    text = answer.body.decode("utf-8", "replace")
    size = f"more than {len(answer.body)}" if answer.cut else str(len(answer.body))
    # Marked, so that no line of a body passes for one of ours.
    body = [f"| {part}" for part in text[:_BODY_CHARACTERS].splitlines()]
    return "\n".join([*lines, f"body: {size} bytes", *body])


async def _certificate(subject: HttpSubject, limit: float) -> str:
    host, port = subject.target.host, subject.target.port
    seen = await _tls.certificate(host, port, limit)
    verdict = await _tls.verdict(host, port, subject.web.tls, limit)
    left = (seen.not_after - subject.clock.now()).total_seconds()
    return "\n".join(
        (
            f"verification: {verdict}",
            f"subject: {seen.subject}",
            f"issuer: {seen.issuer}",
            f"names: {', '.join(seen.names) or '(none)'}",
            f"not before: {seen.not_before:%Y-%m-%d %H:%M:%S} UTC",
            f"not after: {seen.not_after:%Y-%m-%d %H:%M:%S} UTC",
            (
                f"left: {format_duration(left)}"
                if left > 0
                else f"expired: {format_duration(-left)} ago"
            ),
        )
    )


async def resolve(host: str, port: int, limit: float) -> str:
    """The addresses of `host`, one a line. Raises ObservationFailed."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(limit):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise ObservationFailed(
            f"name resolution took longer than {limit:.3g} s"
        ) from None
    except (OSError, UnicodeError) as error:
        reason = one_line(str(error), 200)
        return f"{host}: name resolution failed: {reason}"
    return "\n".join(sorted({f"{host} has address {item[4][0]}" for item in found}))
