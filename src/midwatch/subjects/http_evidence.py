"""Evidence on a URL: what it answers now, its certificates with and without SNI, and each address of its host."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

from midwatch.errors import ObservationFailed, without_frames
from midwatch.lifecycle import Clock
from midwatch.model import Origin, Ticket
from midwatch.subjects import tls
from midwatch.subjects.base import EvidenceSource
from midwatch.subjects.certificates import fingerprint, parse_chain
from midwatch.subjects.error_pages import error_page
from midwatch.subjects.host_mounts import OffLoop
from midwatch.subjects.host_units import log_tail
from midwatch.subjects.http_client import Answer
from midwatch.subjects.http_errors import WebFailure, map_http_error
from midwatch.subjects.http_trace import Hop, show_origin
from midwatch.text import ticket_line
from midwatch.units import format_duration

# Cookies, locations with tokens and similar headers are left out.
_SHOWN_HEADERS = (
    "age",
    "allow",
    "cache-control",
    "cf-cache-status",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "proxy-status",
    "ratelimit-remaining",
    "ratelimit-reset",
    "retry-after",
    "server",
    "server-timing",
    "via",
    "www-authenticate",
    "x-cache",
    "x-envoy-upstream-service-time",
    "x-powered-by",
    "x-ratelimit-remaining",
    "x-served-by",
)
_BODY_CHARACTERS = 2000
SERVER_TEXT = (
    re.compile(r"(?m)^\| .*$|^header .*$"),
    re.compile(r"(?m)^status: \S+ \d+ (.*)$"),
)
"""What the server wrote into an answer: its body, headers, and the words behind the status."""
_MOST_ADDRESSES = 3
_MOST_CERTIFICATES = 6
_MOST_CONNECTIONS = 6
_NO_NAME = "192.0.2.1"
"""A name that is never sent in a handshake, as it is an address (of RFC 5737, for documentation)."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What evidence on a URL needs of its subject.

    `request` is the method and the URL, as it may be shown. `ask` sends it, `problems` returns what is wrong
    with the certificates of an address, which may be the one that failed, and `peek` the certificates that an address
    shows; it is None behind a proxy. `name` is the one that the certificate must have.
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
    peek: Callable[[Hop, float], Awaitable[tuple[bytes, ...]]] | None = None
    name: str = ""
    log_files: Sequence[Path] = ()


def sources(watched: Watched, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
    """Return the sources of evidence of a subject of the kind `http`."""
    limit = watched.timeout
    place = f"{watched.host}:{watched.port}"

    async def exchange() -> str:
        try:
            return describe(await watched.ask(), watched.host)
        except WebFailure as failure:
            spent = [
                f"{name}: {format_duration(t)}" for name, t in failure.timings.items()
            ]
            lines = ["request: failed", f"cause: {failure.cause}"]
            return "\n".join([*lines, f"message: {failure.message}", *spent])

    async def certificates() -> str:
        return await _certificates(watched)

    async def logs() -> str:
        parts = [
            await OffLoop().run(partial(log_tail, str(path)), limit / 8, str(path))
            for path in watched.log_files
        ]
        return "\n".join(parts)

    async def addresses() -> str:
        return await _addresses(watched)

    found = [
        EvidenceSource(
            f"{watched.request} now",
            watched.shown,
            exchange,
            10,
            limit,
            reported=SERVER_TEXT,
        )
    ]
    about = any(ticket.key.invariant.startswith("certificate_") for ticket in tickets)
    if watched.secure or about:
        title = f"Certificates of {place}"
        found.append(EvidenceSource(title, "TLS handshake", certificates, 20, limit))
    found.append(
        EvidenceSource(
            f"Addresses of {watched.host}", "name resolution", addresses, 40, limit
        )
    )
    if watched.log_files:
        found.append(
            EvidenceSource(
                "Log of the service", "log files", logs, 15, limit, Origin.REPORTED
            )
        )
    return found


async def _certificates(watched: Watched) -> str:
    """Return the certificates of every address of a request and its redirects. Raises WebFailure without any."""
    failure = None
    try:
        hops = (await watched.ask()).hops
    except WebFailure as error:
        failure, hops = without_frames(error), error.hops
    secured = list(dict.fromkeys(hop for hop in hops if hop.origin[0] == "https"))
    parts = [
        await _chain(watched, hop, await watched.problems(hop, failure))
        for hop in secured[:_MOST_ADDRESSES]
    ]
    if failure is None or any(parts):
        return "\n\n".join(filter(None, parts)) or "no address uses TLS"
    try:
        raise failure
    finally:
        del failure  # its traceback has this frame


async def _chain(watched: Watched, hop: Hop, problems: tls.Problems) -> str:
    if not problems.chain:
        return ""
    now = watched.clock.now()
    found, unreadable = parse_chain(problems.chain[:_MOST_CERTIFICATES], None)
    reasons = [why for why in (problems.untrusted, problems.misnamed) if why]
    reasons += [f"{one.subject} has expired" for one in found if one.not_after <= now]
    verification = f"not accepted: {'; '.join(reasons)}" if reasons else "accepted"
    if problems.untrusted is None and problems.misnamed is None:
        verification = "not checked (`verify` is off)"
    lines = [f"address: {show_origin(hop.origin)}, as {hop.name}"]
    lines += [f"verification: {verification}"]
    if problems.untrusted:
        lines.append(f"certificates sent: {len(problems.chain)}")
    lines += [f"now: {now:%Y-%m-%d %H:%M:%S} UTC on this machine"]
    lines += [tls.describe(found, now), unreadable]
    if reasons and watched.peek is not None:
        lines.append(await _without_sni(watched, hop, problems.chain[0]))
    return "\n".join(filter(None, lines))


async def _without_sni(watched: Watched, hop: Hop, shown: bytes) -> str:
    """Return which certificate a client gets that names no host: the server's default one."""
    assert watched.peek is not None
    try:
        chain = await watched.peek(Hop(hop.origin, _NO_NAME), watched.timeout / 8)
    except (WebFailure, tls.Refused) as failure:
        return f"without SNI: {failure}"
    if chain[0] == shown:
        return "without SNI: the same certificate, so it is the server's default"
    return f"without SNI: another certificate, {_own(chain)}"


def _own(chain: Sequence[bytes]) -> str:
    """Return a server's own certificate in one line."""
    try:
        one = tls.parse(chain[0])
    except ValueError as error:
        return f"certificate {fingerprint(chain[0])} ({error})"
    names = ", ".join(one.names[:5])
    return ticket_line(
        f"certificate {fingerprint(chain[0])} {one.subject} for {names}, until {one.not_after:%Y-%m-%d %H:%M:%S} UTC"
    )


def way(hops: Sequence[Hop]) -> str:
    """Return the addresses of a request and its redirects, without their paths: these may hold tokens."""
    parts = []
    for origin, group in groupby(show_origin(hop.origin) for hop in hops):
        times = len(list(group))
        parts.append(origin + (f" ({times} times)" if times > 1 else ""))
    return ticket_line(" then ".join(parts))


def describe(answer: Answer, home: str) -> str:
    """Return status line, timings, harmless headers and the beginning of the body."""
    lines = [f"status: {answer.version} {answer.status} {answer.reason}"]
    if page := error_page(answer):
        lines.append(f"answered by: {page}, with its own error page")
    lines.append(f"total: {format_duration(answer.seconds)}")
    lines += [
        f"{phase}: {format_duration(spent)}" for phase, spent in answer.timings.items()
    ]
    if len(answer.hops) > 1:
        lines.append(f"redirected: {way(answer.hops)}")
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


# ------------------------------------------------------------------ addresses


async def _addresses(watched: Watched) -> str:
    """Return the addresses of the host, and whether each of them can be reached. Raises ObservationFailed."""
    resolved = await resolve(watched.host, watched.port, watched.timeout / 2)
    mark = f"{watched.host} has address "
    found = [line.removeprefix(mark) for line in resolved.splitlines() if mark in line]
    if watched.peek is None or not found:
        return resolved  # a proxy connects, not this machine
    limit = watched.timeout / 4
    tried = await asyncio.gather(
        *(_try(watched, address, limit) for address in found[:_MOST_CONNECTIONS])
    )
    return "\n".join([resolved, *tried])


async def _try(watched: Watched, address: str, limit: float) -> str:
    """Return what happens to a connection to one address of the host."""
    began = watched.clock.monotonic()
    try:
        if watched.secure:
            assert watched.peek is not None
            origin = ("https", address, watched.port)
            chain = await watched.peek(Hop(origin, watched.name), limit)
            return f"{address}: connected, {_own(chain)}"
        async with asyncio.timeout(limit):
            _, writer = await asyncio.open_connection(address, watched.port)
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(limit):
                await writer.wait_closed()
    except TimeoutError:
        return f"{address}: no connection within {limit:.3g} s"
    except WebFailure as failure:
        return f"{address}: {failure.message}"
    except tls.Refused as refused:
        return f"{address}: {refused}"
    except OSError as error:
        return f"{address}: {map_http_error(error).message}"
    spent = format_duration(watched.clock.monotonic() - began)
    return f"{address}: connected in {spent}"


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
