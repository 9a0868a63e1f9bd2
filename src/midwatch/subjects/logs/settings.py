"""Settings and invariants of the kind `logs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from midwatch.model import Invariant, Severity, Unit
from midwatch.setting_group import Name, Ratio, Seconds, Url
from midwatch.settings import Group, SubjectSettings
from midwatch.subjects.host_settings import UnitName
from midwatch.subjects.logs.search import check_expression
from midwatch.subjects.web_login import BasicAuth, LoginSettings
from midwatch.subjects.web_settings import Headers

__all__ = ["INVARIANTS", "LogsSettings", "SourceSettings"]

Expression = Annotated[str, Field(min_length=1, max_length=1000)]
"""A regular expression of RE2."""
Checked = Annotated[Expression, AfterValidator(check_expression)]


class HeartbeatLine(Group):
    """A line that a healthy program writes again and again."""

    name: Name = Field(description="Its name in tickets.")
    pattern: Checked = Field(
        description="A regular expression (RE2) that the line matches."
    )
    within: Seconds = Field(
        gt=0,
        description="How long it may be missing. Several times as long as `monitor.interval`.",
    )


class JournalSettings(Group):
    """The journal of systemd, read with journalctl."""

    units: list[UnitName] = Field(
        default=[], description="Units; by default all entries."
    )
    identifiers: list[Name] = Field(
        default=[], description="Identifiers of syslog, such as sudo."
    )
    priority: Literal[
        "emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"
    ] = Field("info", description="Entries of this priority and worse.")
    directory: Path | None = Field(
        None,
        description="A folder with journals, such as /var/log/journal/remote; by default those of this machine.",
    )


class LokiSettings(Group):
    """A query of Grafana Loki."""

    url: Url = Field(description="Its address: http://HOST:3100.")
    query: Expression = Field(
        description='A log query in LogQL that selects streams: {app="shop"} |= "".'
    )
    tenant: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9!._*'()|-]{1,150}$",
        description="The tenant, sent as X-Scope-OrgID.",
    )
    delay: Seconds = Field(
        10.0,
        ge=0,
        description="How old lines are when they are read: Loki gets them late and in no order.",
    )
    limit: int = Field(
        5000,
        ge=100,
        le=100_000,
        description="Lines of one answer; at most max_entries_limit_per_query of the server.",
    )
    headers: Headers = Field(
        default={}, description="Request headers; the values are secret."
    )
    bearer_token_file: Path | None = Field(None, description="A file with the token.")
    basic_auth: BasicAuth | None = None
    verify: bool = Field(True, description="Whether the certificate must be valid.")
    ca_file: Path | None = Field(
        None, description="Certificate authorities to trust besides the system's."
    )

    def login_settings(self, name: str, timeout: float) -> LoginSettings:
        """Return the settings of the connection."""
        headers = dict(self.headers)
        if self.tenant is not None:
            headers["X-Scope-OrgID"] = SecretStr(self.tenant)
        return LoginSettings(
            name=name,
            kind="logs",
            timeout=timeout,
            url=self.url,
            headers=headers,
            bearer_token_file=self.bearer_token_file,
            basic_auth=self.basic_auth,
            verify=self.verify,
            ca_file=self.ca_file,
        )


class SourceSettings(Group):
    """One log: files, a journal, or a query of Loki."""

    name: Name = Field(description="Its name in tickets, such as that of the service.")
    files: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field(
        default=[],
        max_length=50,
        description="Absolute paths, which may have the wildcards * ? [ ] and ** for folders. Rotated files need no pattern of their own.",
    )
    format: Literal["auto", "plain", "docker", "cri"] = Field(
        "auto",
        description="What is around each line: docker for /var/lib/docker/containers, cri for /var/log/pods and "
        "/var/log/containers; auto sees it.",
    )
    journal: JournalSettings | None = None
    loki: LokiSettings | None = None
    heartbeats: list[HeartbeatLine] = Field(default=[], max_length=20)

    @field_validator("files")
    @classmethod
    def _absolute(cls, value: list[str]) -> list[str]:
        for path in value:
            if not path.startswith("/") or "\0" in path:
                raise ValueError(f"{path!r:.80} is not an absolute path")
        return value

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [bool(self.files), self.journal is not None, self.loki is not None]
        if sum(given) != 1:
            raise ValueError("give one of files, journal and loki")
        if len({one.name for one in self.heartbeats}) < len(self.heartbeats):
            raise ValueError("two heartbeats have the same name")
        return self


class LogsSettings(SubjectSettings):
    """Logs: files, containers, the journal of systemd, Loki."""

    kind: str = "logs"
    sources: Annotated[list[SourceSettings], Field(min_length=1, max_length=20)] = (
        Field(description="The logs.")
    )
    since: Seconds = Field(
        0.0,
        ge=0,
        le=7 * 86_400,
        description="How far back the first observation reads; by default only what is written from then on.",
    )
    window: Seconds = Field(
        300.0,
        ge=60,
        le=3600,
        description="The time over which the error lines of a shape are counted.",
    )
    learn: Seconds = Field(
        86_400.0,
        ge=0,
        description="How long the shapes of errors of a source are learned before a new one is reported.",
    )
    new_for: Seconds = Field(
        3600.0, gt=0, description="How long a shape of errors is new."
    )
    rate_window: Seconds = Field(
        300.0,
        ge=60,
        le=3600,
        description="The time over which lines are counted for their rate; it is compared with the 36 before, once there are 12.",
    )
    rate_minimum: int = Field(
        300,
        ge=10,
        description="Lines within rate_window below which no rate is too high.",
    )
    read_share: Ratio = Field(
        0.6,
        gt=0,
        le=0.8,
        description="The share of the timeout for reading; what is left of a backlog is read in the next observation.",
    )

    @property
    def moment(self) -> float:
        """Seconds to which it is known when lines were written."""
        return self.window / 20

    @field_validator("sources")
    @classmethod
    def _distinct(cls, value: list[SourceSettings]) -> list[SourceSettings]:
        names = [one.name for one in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources have the name {twice[0]}")
        return value


_ABOUT = ("source", "shape", "example")
STORM = Invariant(
    "error_storm",
    "No error is logged again and again",
    "Lines of level error or worse of one shape, a minute, over `window`. Lines that differ in numbers, literals and names have one "
    "shape. Components are the source and the shape; the 20 most frequent shapes of a source have tickets, one counts the rest.",
    unit=Unit.COUNT,
    limit=10.0,
    about=_ABOUT,
)
NEW = Invariant(
    "new_error",
    "No unknown error is logged",
    "A shape of level error or worse that was never seen in this source. It is reported for `new_for`, and only after the time "
    "`learn`. 20 shapes of a source have tickets, one counts the rest.",
    about=_ABOUT,
)
RATE = Invariant(
    "log_rate",
    "Logs are not written far faster than usual",
    "How many times as many lines, or errors, a source has within `rate_window` as the median of the windows before. It counts above "
    "`rate_minimum` lines, and where it stands out of what these windows differ (their median absolute deviation). A rate that "
    "lasts for some hours is usual.",
    unit=Unit.COUNT,
    limit=5.0,
    about=("source", "what"),
)
BEAT = Invariant(
    "heartbeat",
    "Lines that must come again do",
    "A line that matches `pattern` was written within `within`.",
    severity=Severity.CRITICAL,
    about=("source", "heartbeat"),
)
INVARIANTS = (STORM, NEW, RATE, BEAT)
