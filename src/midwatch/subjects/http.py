"""The subject kind `http`: one URL must answer quickly, correctly and with a valid certificate.

A server that cannot be reached is a successful observation of a violation. Its status, latency, body and
certificate are unknown meanwhile.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from midwatch.errors import Unsupported, without_frames
from midwatch.lifecycle import Clock, SystemClock
from midwatch.model import (
    Fact,
    Facts,
    Invariant,
    Json,
    Observation,
    Severity,
    Signal,
    Ticket,
    Unit,
)
from midwatch.setting_group import Bytes, Url
from midwatch.subjects import tls
from midwatch.subjects.base import EvidenceSource, configure
from midwatch.subjects.certificates import (
    CERTIFICATE_EXPIRY,
    CERTIFICATE_INVARIANTS,
    Findings,
    check_certificates,
    described,
    explained,
    remembered,
)
from midwatch.subjects.error_pages import error_page
from midwatch.subjects.http_client import Answer, WebClient
from midwatch.subjects.http_errors import WebFailure
from midwatch.subjects.http_evidence import Watched, sources, way
from midwatch.subjects.http_tools import HttpTools
from midwatch.subjects.http_trace import Hop, show_origin
from midwatch.subjects.tools import Tool
from midwatch.subjects.web_settings import WebSettings
from midwatch.text import component_name
from midwatch.units import format_duration

# ------------------------------------------------------------------ settings and invariants

_STATUS = re.compile(r"(?P<class>[1-5])xx|(?P<first>\d{3})(?:-(?P<last>\d{3}))?")


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


class HttpSettings(WebSettings):
    """One URL that must answer."""

    kind: str = "http"
    url: Url = Field(description="The URL to request, http:// or https://.")
    method: Literal["GET", "HEAD", "OPTIONS", "POST"] = "GET"
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
    log_files: list[Path] = Field(
        default_factory=list,
        max_length=5,
        description="Log files on this machine, of the service or of the proxy before it: their last lines are evidence.",
    )
    body_limit: Bytes = Field(
        256_000, gt=0, le=10_000_000, description="Bytes of the body that are read."
    )

    probe_paths: list[str] = Field(
        default_factory=list,
        description="Further paths of the server that an investigation may request: a GET of them changes nothing.",
    )

    @field_validator("probe_paths")
    @classmethod
    def _plain_paths(cls, value: list[str]) -> list[str]:
        for path in value:
            if not re.fullmatch(r"/(?!/)[!-~]*", path) or "#" in path:
                raise ValueError("a path begins with one / and has no spaces")
        return value

    @field_validator("expect_status")
    @classmethod
    def _statuses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for status in value:
            parse_statuses(status)
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
INVARIANTS = (
    REACHABLE,
    STATUS,
    LATENCY,
    BODY,
    *CERTIFICATE_INVARIANTS,
)
_CERTIFICATE_OF = "certificate of"
"""Begins the names of the facts about certificates."""
_CERTIFICATE = {invariant.id for invariant in CERTIFICATE_INVARIANTS}


def applicable(settings: HttpSettings) -> frozenset[str]:
    """Return the ids of the invariants that apply with these settings."""
    ids = {"reachable", "status", "latency"}
    if settings.body_matches is not None or settings.body_lacks is not None:
        ids.add("body")
    if urlsplit(settings.url).scheme == "https" or settings.redirects:
        ids |= _CERTIFICATE if settings.verify else {CERTIFICATE_EXPIRY.id}
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
        """Scheme, host and port: what a login is for."""
        return urlsplit(self.url).scheme, self.host, self.port

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


def check_answer(answer: Answer, settings: HttpSettings, target: Target) -> Findings:
    """Check all of an answer but its certificates."""
    page = error_page(answer)
    facts: Facts = {
        "url": target.shown,
        "status": answer.status,
        **({"answered_by": page} if page else {}),
        "seconds": round(answer.seconds, 3),
        **phase_facts(answer.timings),
        **({"slowest": answer.slowest} if answer.slowest else {}),
    }
    found = Findings(
        (
            verdict("reachable", True, target),
            _status(answer, settings, target, facts),
            Signal(
                "latency",
                target.shown,
                f"{target.shown} took {format_duration(answer.seconds)} to answer",
                value=answer.seconds,
                facts=facts,
            ),
        )
    )
    try:
        problem = body_problem(answer, settings)
    except Unsupported as error:
        return found + Findings(unsupported={"body": error.one_line()})
    message = f"{target.shown}: {problem}"
    return found + Findings((verdict("body", not problem, target, message, facts),))


def check_failure(failure: WebFailure, target: Target) -> Findings:
    """Check a failure but its certificates. A refused one and endless redirects prove that the server is reachable."""
    facts: Facts = {
        "url": target.shown,
        "cause": failure.cause,
        **({"phase": failure.phase} if failure.phase else {}),
        **({"redirected": way(failure.hops)} if len(failure.hops) > 1 else {}),
        **phase_facts(failure.timings),
    }
    if failure.cause not in ("redirects", "certificate"):
        message = f"{target.shown} did not answer: {failure.message}"
        return Findings((verdict("reachable", False, target, message, facts),))
    found = Findings((verdict("reachable", True, target),))
    if failure.cause == "certificate":
        return found
    message = f"{target.shown}: {failure.message}"
    return found + Findings((verdict("status", False, target, message, facts),))


def phase_facts(timings: Mapping[str, float]) -> Facts:
    """Return the seconds of each phase as facts: `dns_seconds`, `connect_seconds`, `first_byte_seconds`, …"""
    return {
        f"{phase.replace(' ', '_')}_seconds": round(spent, 3)
        for phase, spent in timings.items()
        if spent >= 0.001
    }


def body_problem(answer: Answer, settings: HttpSettings) -> str:
    """Return what is wrong with the body, or "". Raises Unsupported where that cannot be known."""
    must, must_not = settings.body_matches, settings.body_lacks
    if must is None and must_not is None:
        return ""
    if answer.undecoded:
        raise Unsupported(
            answer.undecoded, hint="have the server honour `Accept-Encoding: identity`"
        )
    if answer.malformed:
        return answer.malformed
    text = answer.text()
    if must_not is not None and re.search(must_not, text):
        return "the body matches `body_lacks`"
    lacking = must is not None and not re.search(must, text)
    if answer.cut and (lacking or must_not is not None):
        raise Unsupported(
            f"the body is longer than {len(answer.body)} bytes",
            hint="raise `body_limit`",
        )
    return "the body does not match `body_matches`" if lacking else ""


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


def _wrong_status(signal: Signal) -> bool:
    return signal.invariant == STATUS.id and signal.holds is False


def _expired(signal: Signal) -> bool:
    expiry = signal.invariant == CERTIFICATE_EXPIRY.id
    return expiry and signal.value is not None and signal.value <= 0


# ------------------------------------------------------------------ the subject

_MOST_REMEMBERED = 10  # certificates of addresses
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
        self.addresses = settings.addresses
        self.clock = clock or SystemClock()
        path = f"subjects.{settings.name}"
        wanted = applicable(settings)
        self.invariants = tuple(
            invariant
            for invariant in configure(INVARIANTS, settings.invariants, path)
            if invariant.id in wanted
        )
        self.web = settings.web_client(path, self.clock)

    @property
    def secrets(self) -> Sequence[str]:
        login = self.target.login[1] if self.target.login else ""
        values = [
            *self.settings.connection_secrets(),
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
        """Observe the URL. Raises ObservationFailed only when this machine or the proxy, not the server, is the cause."""
        failure: WebFailure | None = None
        try:
            answer = await self.ask()
        except WebFailure as error:
            if error.cause in ("local", "request", "proxy"):
                raise
            failure, hops = without_frames(error), error.hops
            found = check_failure(error, self.target)
        else:
            hops = answer.hops
            found = check_answer(answer, self.settings, self.target)
        known = previous.get("certificates")
        seen: Json = dict(known) if isinstance(known, dict) else {}
        # Of an address that is not reached now it is unknown whether its certificate was replaced.
        shown: dict[str, Fact] = {f"{_CERTIFICATE_OF} {one}": None for one in seen}
        for component, hop in self._secured(hops).items():
            problems = await self.problems(hop, failure)
            now = self.clock.now()
            found += check_certificates(
                hop.name,
                component,
                problems,
                hop.accepted_until,
                now,
                {invariant.id: invariant for invariant in self.invariants},
                str(seen.get(component, "")),
            )
            if hop.chain:
                shown[f"{_CERTIFICATE_OF} {component}"] = described(hop.chain[0])
            if problems.untrusted == problems.misnamed == "" and hop.chain:
                seen[component] = remembered(hop.chain[0], now, seen.get(component))
        observation = self._observation(
            found, failure, dict(list(seen.items())[-_MOST_REMEMBERED:])
        )
        return replace(observation, configuration=shown)

    async def ask(self) -> Answer:
        """Request the URL now. Raises WebFailure."""
        return await self.web.fetch(
            self.settings.method,
            self.target.url,
            timeout=self.time_limit,
            limit=int(self.settings.body_limit),
            headers=self._headers(),
            redirects=self.settings.redirects,
        )

    def _headers(self) -> Mapping[str, str]:
        """Return the headers of a request: those of the settings replace those of a login."""
        given = self.settings.headers.items()
        headers = {name.lower(): value.get_secret_value() for name, value in given}
        return {**self.target.login_header(), **headers}

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        target = self.target
        watched = Watched(
            request=f"{self.settings.method} {target.shown}",
            shown=target.shown,
            host=target.host,
            port=target.port,
            secure=target.url.startswith("https:"),
            timeout=self.settings.timeout,
            clock=self.clock,
            ask=self.ask,
            problems=self.problems,
            peek=None if self.settings.proxy else self.web.peek,
            name=self.settings.server_name or target.host.rstrip("."),
            log_files=self.settings.log_files,
        )
        return sources(watched, tickets)

    def tools(self) -> Sequence[Tool]:
        settings = self.settings

        def client(name: str) -> WebClient:
            named = settings.server_name or name
            copy = settings.model_copy(update={"server_name": named or None})
            return copy.web_client(f"subjects.{self.name}", self.clock)

        return HttpTools(
            self.target.url,
            self.target.host,
            self.target.port,
            paths=settings.probe_paths,
            headers=self._headers,
            client=client,
            limit=self.time_limit,
        ).tools()

    async def close(self) -> None:
        await self.web.close()

    def _secured(self, hops: Sequence[Hop]) -> Mapping[str, Hop]:
        """Return the addresses with TLS by component: that of the URL has the URL, the others their origin."""
        found: dict[str, Hop] = {}
        for hop in hops:
            if hop.origin[0] == "https":
                home = hop.origin == hops[0].origin
                component = self.target.shown if home else show_origin(hop.origin)
                found[component_name(component)] = hop
        return found

    async def problems(self, hop: Hop, failure: WebFailure | None) -> tls.Problems:
        """Return what is wrong with the certificates of an address, which may be the one that failed."""
        if not self.settings.verify:
            return tls.Problems(None, None, hop.chain)
        refused = failure.refused if failure and hop == failure.hops[-1] else None
        if refused is None:
            fine = "" if hop.chain else None
            return tls.Problems(fine, fine, hop.chain)
        first = tls.Problems.of_first(refused)
        try:
            rest = self.settings.timeout - self.time_limit
            found = await self.web.examine(hop, rest * 0.75)
        except (WebFailure, tls.Refused):
            return first
        return explained(found, refused, self.clock.now())

    def _observation(
        self, found: Findings, failure: WebFailure | None, certificates: Json
    ) -> Observation:
        enabled = {invariant.id for invariant in self.invariants}
        signals = tuple(one for one in found.signals if one.invariant in enabled)
        seen = {signal.invariant for signal in signals}
        covered = seen - _CERTIFICATE
        if failure is None and not any(map(_wrong_status, found.signals)):
            # Every address was seen, also if none of them uses TLS. An error page may stand for a redirect.
            covered = (seen | _CERTIFICATE) & enabled
        unseen = {**found.unavailable, **found.unsupported}
        covered -= unseen.keys()
        unavailable = {k: v for k, v in found.unavailable.items() if k in enabled}
        unsupported = {k: v for k, v in found.unsupported.items() if k in enabled}
        reported = any(signal.holds is False or _expired(signal) for signal in signals)
        if failure is not None and not reported:
            # What is unknown because of a violation that is reported is not reported again.
            hidden = enabled - covered - seen - found.ignored.keys()
            rest = dict.fromkeys(sorted(hidden), failure.message)
            if failure.refused:
                hint = "set `ca_file`, `server_name` or `verify: false`"
                rest = {name: f"{why}; {hint}" for name, why in rest.items()}
                unsupported = {**rest, **unsupported}
            else:
                unavailable = {**rest, **unavailable}
        return Observation(
            signals=signals,
            covered=frozenset(covered),
            unavailable=unavailable,
            unsupported=unsupported,
            ignored=found.ignored,
            state={"certificates": certificates} if certificates else {},
        )
