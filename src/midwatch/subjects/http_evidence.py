"""Evidence on a URL: what it answers now, the certificates on the way, and the addresses of its host."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from midwatch.errors import ObservationFailed
from midwatch.lifecycle import Clock
from midwatch.model import Ticket
from midwatch.subjects import tls
from midwatch.subjects.base import EvidenceSource
from midwatch.subjects.certificates import parse_chain
from midwatch.subjects.http_client import Answer, Hop, WebFailure, show_origin
from midwatch.text import ticket_line
from midwatch.units import format_duration

# Cookies, locations with tokens and similar headers are left out.
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


SERVER_TEXT = (
    re.compile(r"(?m)^\| .*$|^header .*$"),
    re.compile(r"(?m)^status: \S+ \d+ (.*)$"),
)
"""What the server wrote into an answer: its body, headers, and the words behind the status."""
_MOST_ADDRESSES = 3
_MOST_CERTIFICATES = 6


@dataclass(frozen=True, slots=True)
class Watched:
    """What evidence on a URL needs of its subject.

    `request` is the method and the URL, as it may be shown. `ask` sends it, and `problems` returns what is wrong
    with the certificates of an address, which may be the one that failed.
    """

    request: str
    shown: str
    host: str
    port: int
    secure: bool
    timeout: float
    clock: Clock
    ask: Callable[[], Awaitable[Answer]]
    problems: Callable[[Hop, WebFailure | None], Awaitable[tls.Problems]]


def sources(watched: Watched, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
    """Return the sources of evidence of a subject of the kind `http`."""
    limit = watched.timeout
    place = f"{watched.host}:{watched.port}"

    async def exchange() -> str:
        try:
            return describe(await watched.ask(), watched.host)
        except WebFailure as failure:
            return (
                f"request: failed\ncause: {failure.cause}\nmessage: {failure.message}"
            )

    async def certificates() -> str:
        return await _certificates(watched)

    async def addresses() -> str:
        return await resolve(watched.host, watched.port, limit / 2)

    found = [
        EvidenceSource(
            f"{watched.request} now",
            watched.shown,
            exchange,
            10,
            limit,
            reported=SERVER_TEXT,
        ),
        EvidenceSource(
            f"Certificates of {place}", "TLS handshake", certificates, 20, limit
        ),
        EvidenceSource(
            f"Addresses of {watched.host}", "name resolution", addresses, 40, limit
        ),
    ]
    about = (ticket.key.invariant.startswith("certificate_") for ticket in tickets)
    if not watched.secure and not any(about):
        del found[1]
    return found


async def _certificates(watched: Watched) -> str:
    """Return the certificates of every address of a request and its redirects. Raises WebFailure without any."""
    failure = None
    try:
        hops = (await watched.ask()).hops
    except WebFailure as error:
        failure, hops = error, error.hops
    secured = list(dict.fromkeys(hop for hop in hops if hop.origin[0] == "https"))
    parts = [
        _chain(hop, await watched.problems(hop, failure), watched.clock.now())
        for hop in secured[:_MOST_ADDRESSES]
    ]
    if not any(parts) and failure is not None:
        raise failure
    return "\n\n".join(filter(None, parts)) or "no address uses TLS"


def _chain(hop: Hop, problems: tls.Problems, now: datetime) -> str:
    if not problems.chain:
        return ""
    found, unreadable = parse_chain(problems.chain[:_MOST_CERTIFICATES], None)
    reasons = [why for why in (problems.untrusted, problems.misnamed) if why]
    reasons += [f"{one.subject} has expired" for one in found if one.not_after <= now]
    verification = f"not accepted: {'; '.join(reasons)}" if reasons else "accepted"
    if problems.untrusted is None and problems.misnamed is None:
        verification = "not checked (`verify` is off)"
    lines = [f"address: {show_origin(hop.origin)}, as {hop.name}"]
    lines += [f"verification: {verification}", tls.describe(found, now), unreadable]
    return "\n".join(filter(None, lines))


def describe(answer: Answer, home: str) -> str:
    """Return status line, timings, harmless headers and the beginning of the body."""
    lines = [f"status: {answer.version} {answer.status} {answer.reason}"]
    lines.append(f"total: {format_duration(answer.seconds)}")
    lines += [
        f"{phase}: {format_duration(spent)}" for phase, spent in answer.timings.items()
    ]
    for name in _SHOWN_HEADERS:
        if value := answer.header(name):
            lines.append(f"header {name}: {ticket_line(value, 200)}")
    if answer.host != home:
        # The body from another host could be anything, even an internal page.
        return "\n".join(
            [*lines, f"body: not shown, it came from {ticket_line(answer.host, 100)}"]
        )
    text = answer.text()
    size = f"more than {len(answer.body)}" if answer.cut else str(len(answer.body))
    # Marked, so that no line of a body imitates a line written here.
    body = [f"| {part}" for part in text[:_BODY_CHARACTERS].splitlines()]
    return "\n".join([*lines, f"body: {size} bytes", *body])


async def resolve(host: str, port: int, limit: float) -> str:
    """Return the addresses of `host`, one a line. Raises ObservationFailed."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(limit):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise ObservationFailed(
            f"name resolution took longer than {limit:.3g} s"
        ) from None
    except (OSError, UnicodeError) as error:
        reason = ticket_line(str(error), 200)
        return f"{host}: name resolution failed: {reason}"
    return "\n".join(sorted({f"{host} has address {item[4][0]}" for item in found}))
