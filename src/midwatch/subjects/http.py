"""The subject kind `http`: one URL must answer quickly, correctly and with a valid certificate.

A server that cannot be reached is a successful observation of a violation. Its status, latency, body and
certificate are unknown meanwhile.
"""

from __future__ import annotations

import asyncio
import base64
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, ClassVar, Literal
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator

from midwatch.errors import ObservationFailed
from midwatch.lifecycle import Clock, SystemClock
from midwatch.model import (
    Facts,
    Invariant,
    Json,
    Observation,
    Severity,
    Signal,
    Ticket,
    Unit,
)
from midwatch.settings import SubjectSettings
from midwatch.subjects import tls
from midwatch.subjects.base import EvidenceSource, configure
from midwatch.subjects.http_client import Answer, WebClient, WebFailure
from midwatch.text import component_name, ticket_line
from midwatch.units import Bytes, Url, format_duration

# ------------------------------------------------------------------ settings and invariants

_STATUS = re.compile(r"(?P<class>[1-5])xx|(?P<first>\d{3})(?:-(?P<last>\d{3}))?")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2


def parse_statuses(value: object) -> tuple[int, int]:
    """Return the first and last status of `2xx`, `200-204` or `200`. Raises ValueError."""
    match = _STATUS.fullmatch(str(value).strip().lower())
    if not match:
        raise ValueError(f"{value!r} is not a status; use 200, 200-204 or 2xx")
    if match["class"]:
        return int(match["class"]) * 100, int(match["class"]) * 100 + 99
    return int(match["first"]), int(match["last"] or match["first"])


def check_regex(value: str) -> str:
    """Return `value` if it is a regular expression. Raises ValueError."""
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return value


def _written_statuses(value: object) -> object:
    """Return a list with its numbers as text."""
    return [str(item) for item in value] if isinstance(value, list | tuple) else value


Regex = Annotated[str, AfterValidator(check_regex)]


class HttpSettings(SubjectSettings):
    """One URL that must answer."""

    kind: str = "http"
    url: Url = Field(description="The URL to request, http:// or https://.")
    method: Literal["GET", "HEAD", "OPTIONS", "POST"] = "GET"
    headers: dict[str, SecretStr] = Field(
        default_factory=dict, description="Request headers; the values are secret."
    )
    expect_status: Annotated[tuple[str, ...], BeforeValidator(_written_statuses)] = (
        Field(("2xx", "3xx"), description="Expected statuses: 200, 200-204, 2xx.")
    )
    redirects: int = Field(
        5,
        ge=0,
        le=20,
        description="How many redirects are followed; 0 checks the redirect itself.",
    )
    body_matches: Regex | None = Field(
        None, description="A regular expression that the body must contain."
    )
    body_lacks: Regex | None = Field(
        None, description="A regular expression that the body must not contain."
    )
    body_limit: Bytes = Field(
        256_000, gt=0, le=10_000_000, description="Bytes of the body that are read."
    )
    verify: bool = Field(True, description="Whether the certificate must be valid.")
    ca_file: Path | None = Field(
        None, description="Certificate authorities to trust besides the system's."
    )

    @field_validator("expect_status")
    @classmethod
    def _statuses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for status in value:
            parse_statuses(status)
        return value

    @field_validator("headers")
    @classmethod
    def _headers(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, secret in value.items():
            text = secret.get_secret_value()
            if not _HEADER.fullmatch(name) or not (text.isprintable()):
                raise ValueError(
                    f"{name!r} is not a header name, or its value is not one line"
                )
        return value


REACHABLE = Invariant(
    "reachable",
    "The server answers",
    "The host name resolves, a connection can be made and an HTTP answer arrives within the "
    "subject's timeout.",
    severity=Severity.CRITICAL,
    vital=True,
)
STATUS = Invariant(
    "status",
    "The status is an expected one",
    "The status of the last answer, after at most `redirects` redirects, is one of `expect_status`.",
    severity=Severity.CRITICAL,
    vital=True,
)
LATENCY = Invariant(
    "latency",
    "The answer is fast enough",
    "Seconds from the start of the request to the end of the body (or to `body_limit`), "
    "with DNS lookup, connection and redirects.",
    unit=Unit.SECONDS,
    limit=2.0,
    hold_for=60.0,
)
BODY = Invariant(
    "body",
    "The body is as expected",
    "The body contains `body_matches` and does not contain `body_lacks`.",
    severity=Severity.CRITICAL,
    vital=True,
)
CERTIFICATE_VALID = Invariant(
    "certificate_valid",
    "The certificate is accepted",
    "The certificate is within its dates, names the host and is signed by a trusted authority.",
    severity=Severity.CRITICAL,
    vital=True,
)
CERTIFICATE_EXPIRY = Invariant(
    "certificate_expiry",
    "The certificate does not expire soon",
    "Seconds until the server's certificate expires. Critical once it has expired.",
    unit=Unit.SECONDS,
    limit=14 * 86400.0,
    above=False,
)
INVARIANTS = (
    REACHABLE,
    STATUS,
    LATENCY,
    BODY,
    CERTIFICATE_VALID,
    CERTIFICATE_EXPIRY,
)


def applicable(settings: HttpSettings) -> frozenset[str]:
    """Return the ids of the invariants that apply with these settings."""
    ids = {"reachable", "status", "latency"}
    if settings.body_matches is not None or settings.body_lacks is not None:
        ids.add("body")
    if urlsplit(settings.url).scheme == "https":
        ids |= {"certificate_expiry"} | (
            {"certificate_valid"} if settings.verify else set()
        )
    return frozenset(ids)


# ------------------------------------------------------------------ the URL


@dataclass(frozen=True, slots=True)
class Target:
    """A URL split into what may be shown and its secrets: `login` is user and password."""

    url: str  # without user and password
    shown: str  # without the query as well
    host: str
    port: int
    login: tuple[str, str] | None

    @classmethod
    def of(cls, url: str) -> Target:
        parts = urlsplit(url)
        host = parts.hostname or ""
        literal = f"[{host}]" if ":" in host else host
        default = 443 if parts.scheme == "https" else 80
        port = parts.port or default
        netloc = literal if port == default else f"{literal}:{port}"
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
        """Return the values in the query, encoded and decoded."""
        query = urlsplit(self.url).query
        written = [part.partition("=")[2] for part in query.split("&")]
        return sorted({*written, *(value for _, value in parse_qsl(query))})

    def login_header(self) -> Mapping[str, str]:
        """Return the authorization header for the user and password of the URL, if it has any."""
        return basic_login(*self.login) if self.login else {}


def basic_login(user: str, password: str) -> Mapping[str, str]:
    """Return the header of HTTP basic authentication (RFC 7617)."""
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"authorization": f"Basic {token}"}


# ------------------------------------------------------------------ checks (pure)


@dataclass(frozen=True, slots=True)
class Findings:
    """Signals, and why an invariant could not be observed."""

    signals: tuple[Signal, ...]
    unavailable: Mapping[str, str] = field(default_factory=dict)


def check_answer(answer: Answer, settings: HttpSettings, target: Target) -> Findings:
    """Check all of an answer but its certificate."""
    facts: Facts = {
        "url": target.shown,
        "status": answer.status,
        "seconds": round(answer.seconds, 3),
    }
    signals = [
        verdict("reachable", True, target),
        _status(answer, settings, target, facts),
        Signal(
            "latency",
            target.shown,
            f"{target.shown} took {format_duration(answer.seconds)} to answer",
            value=answer.seconds,
            facts=facts,
        ),
    ]
    try:
        problem = body_problem(answer, settings)
    except ObservationFailed as error:
        return Findings(tuple(signals), {"body": error.message})
    message = f"{target.shown}: {problem}"
    signals.append(verdict("body", not problem, target, message, facts))
    return Findings(tuple(signals))


def check_failure(failure: WebFailure, target: Target) -> Findings:
    """Check a failure. A refused certificate and endless redirects prove that the server is reachable."""
    facts: Facts = {"url": target.shown, "cause": failure.cause}
    broken = {"redirects": "status", "certificate": "certificate_valid"}
    invariant = broken.get(failure.cause)
    if invariant is None:
        message = f"{target.shown} did not answer: {failure.message}"
        return Findings((verdict("reachable", False, target, message, facts),))
    message = f"{target.shown}: {failure.message}"
    signals = (
        verdict("reachable", True, target),
        verdict(invariant, False, target, message, facts),
    )
    return Findings(signals)


def body_problem(answer: Answer, settings: HttpSettings) -> str:
    """Return what is wrong with the body, or "". Raises ObservationFailed where that is unknown."""
    must, must_not = settings.body_matches, settings.body_lacks
    if must is None and must_not is None:
        return ""
    if answer.header("content-encoding") not in ("", "identity"):
        raise ObservationFailed(
            "the body is compressed, though the request excludes that"
        )
    text = answer.body.decode("utf-8", "replace")
    if must_not is not None and re.search(must_not, text):
        return "the body matches `body_lacks`"
    lacking = must is not None and not re.search(must, text)
    if answer.cut and (lacking or must_not is not None):
        raise ObservationFailed(
            f"the body is longer than {len(answer.body)} bytes; raise `body_limit`"
        )
    return "the body does not match `body_matches`" if lacking else ""


def expiry(end: datetime, now: datetime, target: Target) -> Signal:
    """Return the signal for the seconds until the certificate expires."""
    left = (end - now).total_seconds()
    when = (
        f"ends in {format_duration(left)}"
        if left > 0
        else f"ended {format_duration(-left)} ago"
    )
    return Signal(
        "certificate_expiry",
        target.shown,
        f"the certificate of {target.host} {when} ({end:%Y-%m-%d %H:%M} UTC)",
        value=left,
        facts={"host": target.host, "not_after": end.isoformat()},
        severity=Severity.CRITICAL if left <= 0 else None,
    )


def verdict(
    invariant: str,
    holds: bool,
    target: Target,
    message: str = "",
    facts: Facts | None = None,
) -> Signal:
    return Signal(invariant, target.shown, message, holds=holds, facts=facts or {})


def _status(
    answer: Answer, settings: HttpSettings, target: Target, facts: Facts
) -> Signal:
    ranges = [parse_statuses(text) for text in settings.expect_status]
    expected = any(first <= answer.status <= last for first, last in ranges)
    status = f"{answer.status} {answer.reason}".strip()
    wanted = ", ".join(settings.expect_status)
    message = f"{target.shown} answered {status}, expected {wanted}"
    return verdict("status", expected, target, message, facts)


# ------------------------------------------------------------------ the subject

_SHARE_OF_TIMEOUT = (
    0.8  # the rest is for the report, before the monitor cancels the observation
)


class HttpSubject:
    """A URL, requested over a new connection each time."""

    kind: ClassVar[str] = "http"
    settings_model: ClassVar[type[HttpSettings]] = HttpSettings
    default_invariants: ClassVar[Sequence[Invariant]] = INVARIANTS

    def __init__(self, settings: HttpSettings, clock: Clock | None = None) -> None:
        self.settings = settings
        self.name, self.timeout = settings.name, settings.timeout
        self.target = Target.of(settings.url)
        self.clock = clock or SystemClock()
        path = f"subjects.{settings.name}"
        wanted = applicable(settings)
        self.invariants = tuple(
            invariant
            for invariant in configure(INVARIANTS, settings.invariants, path)
            if invariant.id in wanted
        )
        self.web = WebClient(
            verify=settings.verify,
            ca_file=settings.ca_file,
            path=f"{path}.ca_file",
            clock=self.clock,
        )

    @property
    def secrets(self) -> Sequence[str]:
        login = self.target.login[1] if self.target.login else ""
        values = [
            *(value.get_secret_value() for value in self.settings.headers.values()),
            *self.target.login_header().values(),
            login,
        ]
        # Short values in a query are options, and too common to be redacted in every text.
        query = [text for text in self.target.query_values() if len(text) >= 8]
        return [value for value in values if value] + query

    @property
    def time_limit(self) -> float:
        """Timeout of one request, in seconds."""
        return self.settings.timeout * _SHARE_OF_TIMEOUT

    async def observe(self, previous: Json) -> Observation:
        """Observe the URL. Raises ObservationFailed only when this machine, not the server, is the cause."""
        try:
            answer = await self.ask()
        except WebFailure as failure:
            if failure.cause in ("local", "request"):
                raise
            found = check_failure(failure, self.target)
            if failure.cause == "certificate":
                found = await self._with_expiry(found, None)
        else:
            found = check_answer(answer, self.settings, self.target)
            if self.target.secure:
                accepted = verdict("certificate_valid", True, self.target)
                found = replace(found, signals=(*found.signals, accepted))
                found = await self._with_expiry(found, answer)
        return self._observation(found)

    async def ask(self) -> Answer:
        """Request the URL now. Raises WebFailure."""
        given = self.settings.headers.items()
        headers = {name.lower(): value.get_secret_value() for name, value in given}
        return await self.web.fetch(
            self.settings.method,
            self.target.url,
            timeout=self.time_limit,
            limit=int(self.settings.body_limit),
            headers={**self.target.login_header(), **headers},
            redirects=self.settings.redirects,
        )

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        return _sources(self)

    async def close(self) -> None:
        await self.web.close()

    async def _with_expiry(self, found: Findings, answer: Answer | None) -> Findings:
        """Add the expiry of the certificate. It is in the answer, unless refused or from another origin."""
        try:
            if answer and answer.certificate and answer.origin == self.target.origin:
                end = answer.accepted_until or tls.read(answer.certificate).not_after
            else:
                rest = self.settings.timeout - self.time_limit
                host, port = self.target.host, self.target.port
                end = (await tls.certificate(host, port, rest)).not_after
        except ObservationFailed as error:
            unavailable = {**found.unavailable, "certificate_expiry": error.message}
            return replace(found, unavailable=unavailable)
        lasts = expiry(end, self.clock.now(), self.target)
        return replace(found, signals=(*found.signals, lasts))

    def _observation(self, found: Findings) -> Observation:
        enabled = {invariant.id for invariant in self.invariants}
        signals = tuple(
            signal for signal in found.signals if signal.invariant in enabled
        )
        # An invariant that is unknown because of a reported violation is not reported as unavailable too.
        unavailable = {
            name: why for name, why in found.unavailable.items() if name in enabled
        }
        covered = frozenset(signal.invariant for signal in signals)
        return Observation(signals=signals, covered=covered, unavailable=unavailable)


# ------------------------------------------------------------------ evidence

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


def _sources(subject: HttpSubject) -> Sequence[EvidenceSource]:
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
        found = await tls.certificate(target.host, target.port, limit / 3)
        accepted = await tls.verdict(
            target.host, target.port, subject.web.tls, limit / 3
        )
        return tls.describe(found, accepted, subject.clock.now())

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
    text = answer.body.decode("utf-8", "replace")
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
