"""Settings and invariants of the subject kind `http`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator

from ..model import Invariant, Severity, Unit
from ..settings import SubjectSettings
from ..units import Bytes

_STATUS = re.compile(r"(?P<class>[1-5])xx|(?P<first>\d{3})(?:-(?P<last>\d{3}))?")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2


def parse_statuses(value: object) -> tuple[int, int]:
    """First and last status of `2xx`, `200-204` or `200`. Raises ValueError."""
    match = _STATUS.fullmatch(str(value).strip().lower())
    if not match:
        raise ValueError(f"{value!r} is no status; write it like 200, 200-204 or 2xx")
    if match["class"]:
        return int(match["class"]) * 100, int(match["class"]) * 100 + 99
    return int(match["first"]), int(match["last"] or match["first"])


def check_url(value: str) -> str:
    """`value`, if it is a URL of http or https with a host. Raises ValueError."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not a URL of http:// or https:// with a host")
    _ = parts.port  # raises ValueError itself
    if any(char.isspace() or not char.isprintable() for char in value):
        raise ValueError("a URL has no spaces and no control characters")
    return value


def check_regex(value: str) -> str:
    """`value`, if it is a regular expression. Raises ValueError."""
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return value


def _written_statuses(value: object) -> object:
    """A list, whose items may be numbers."""
    return [str(item) for item in value] if isinstance(value, list | tuple) else value


Url = Annotated[str, AfterValidator(check_url)]
Regex = Annotated[str, AfterValidator(check_regex)]


class HttpSettings(SubjectSettings):
    """One URL that must answer."""

    kind: str = "http"
    url: Url = Field(description="What is asked, http:// or https://.")
    method: Literal["GET", "HEAD", "OPTIONS", "POST"] = "GET"
    headers: dict[str, SecretStr] = Field(
        default_factory=dict, description="Sent along; the values count as secrets."
    )
    expect_status: Annotated[tuple[str, ...], BeforeValidator(_written_statuses)] = (
        Field(("2xx", "3xx"), description="Statuses that are well: 200, 200-204, 2xx.")
    )
    redirects: int = Field(
        5, ge=0, le=20, description="How many are followed; 0 looks at the first one."
    )
    body_matches: Regex | None = Field(
        None, description="A regular expression that the body must contain."
    )
    body_lacks: Regex | None = Field(
        None, description="A regular expression that the body must not contain."
    )
    body_limit: Bytes = Field(
        256_000, gt=0, le=10_000_000, description="So much of the body is read."
    )
    verify: bool = Field(True, description="Whether the certificate must be valid.")
    ca_file: Path | None = Field(
        None, description="Certificate authorities to accept besides the system's."
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
                raise ValueError(f"{name!r} is no header, or its value is not one line")
        return value


REACHABLE = Invariant(
    "reachable",
    "The server answers",
    "The host name resolves, a connection can be made and an HTTP answer arrives within the "
    "subject's timeout.",
    severity=Severity.CRITICAL,
)
STATUS = Invariant(
    "status",
    "The status is an expected one",
    "The status of the last answer, after at most `redirects` redirects, is one of `expect_status`.",
    severity=Severity.CRITICAL,
)
LATENCY = Invariant(
    "latency",
    "The answer comes quickly",
    "Seconds from the start of the request to the end of the body (or to `body_limit`), "
    "with name look-up, connection and redirects.",
    unit=Unit.SECONDS,
    limit=2.0,
    hold_for=60.0,
)
BODY = Invariant(
    "body",
    "The body is as expected",
    "The body contains `body_matches` and does not contain `body_lacks`.",
    severity=Severity.CRITICAL,
)
CERTIFICATE_VALID = Invariant(
    "certificate_valid",
    "The certificate is accepted",
    "The certificate is within its dates, names the host and is signed by an authority that is "
    "trusted here.",
    severity=Severity.CRITICAL,
)
CERTIFICATE_EXPIRY = Invariant(
    "certificate_expiry",
    "The certificate lasts a while yet",
    "Seconds until the server's certificate ends. Critical once it has ended.",
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
    """The ids of the invariants that these settings give a meaning to."""
    ids = {"reachable", "status", "latency"}
    if settings.body_matches is not None or settings.body_lacks is not None:
        ids.add("body")
    if urlsplit(settings.url).scheme == "https":
        ids |= {"certificate_expiry"} | (
            {"certificate_valid"} if settings.verify else set()
        )
    return frozenset(ids)
