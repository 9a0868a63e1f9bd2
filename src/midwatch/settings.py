"""Settings: documented groups; `midwatch.loading` reads them, once, at the edge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .units import Ratio, Seconds

DEFAULT_FILE = "midwatch.yaml"
DEFAULT_MODEL = "claude-sonnet-5-5"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class Group(BaseModel):
    """A group of settings: frozen, and an unknown name in it is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class AnthropicSettings(Group):
    """How Claude is reached."""

    model: str = Field(DEFAULT_MODEL, description="The model that diagnoses.")
    api_key_file: Path | None = Field(
        None, description="A file with the key; ANTHROPIC_API_KEY comes first."
    )
    timeout: Seconds = Field(
        300.0,
        gt=0,
        description="Wall clock of one call. The SDK's own limit counts per read.",
    )
    max_tokens: int = Field(
        8000, gt=0, le=128000, description="Longest answer, in tokens."
    )


class AgentSettings(Group):
    """The daemon that diagnoses."""

    poll_interval: Seconds = Field(
        10.0, gt=0, description="Wait between two looks at an empty queue."
    )
    concurrency: int = Field(1, ge=1, le=64, description="Calls in flight per daemon.")
    max_attempts: int = Field(
        5, ge=1, le=100, description="Tries before the error is stored as diagnosis."
    )
    daily_budget_usd: float | None = Field(
        20.0, ge=0, description="Dollars per UTC day; null for no limit."
    )
    critical_reserve: Ratio = Field(
        0.25, ge=0, le=1, description="Share of the budget kept for critical tickets."
    )
    lease: Seconds = Field(
        30.0, ge=1, description="A claim not renewed for so long is free again."
    )
    grace: Seconds = Field(
        3.0, ge=0, le=4, description="What a call in flight gets at a stop."
    )
    rate_limit_pause: Seconds = Field(
        60.0, gt=0, description="Pause after a 429 that names no time."
    )
    auth_probe_interval: Seconds = Field(
        60.0, gt=0, description="Wait between probes while the key is refused."
    )
    backoff: Seconds = Field(
        15.0, gt=0, description="First wait after a failed call; doubles each time."
    )
    backoff_max: Seconds = Field(
        900.0, gt=0, description="Longest wait after a failed call."
    )
    outage_after: int = Field(
        3, ge=1, description="Failed calls in a row before the daemon pauses."
    )
    outage_pause: Seconds = Field(
        60.0, gt=0, description="The pause of an outage, as long as it lasts."
    )
    context_tokens: int = Field(
        24000, ge=1000, description="Budget for evidence, in tokens."
    )


class MonitorSettings(Group):
    """The daemon that watches."""

    interval: Seconds = Field(30.0, gt=0, description="Wait between two cycles.")
    group_wait: Seconds = Field(
        10.0,
        ge=0,
        description="Violations within this time of each other are one incident.",
    )
    unobservable_after: int = Field(
        3, ge=1, description="Failed looks in a row before that is a ticket itself."
    )
    flapping_openings: int = Field(
        3, ge=2, description="Openings within flapping_window that mark a ticket."
    )
    flapping_window: Seconds = Field(
        3600.0, gt=0, description="The period that flapping_openings are counted in."
    )
    first_aid_timeout: Seconds = Field(
        0.8, gt=0, description="Longest wait for evidence before first aid is written."
    )


class InvariantSettings(Group):
    """What a subject's settings may change of one invariant."""

    enabled: bool = Field(True, description="Whether it is watched at all.")
    limit: str | float | None = Field(
        None, description="In the invariant's unit: 10s, 90%, 2GB, 5."
    )
    hold_for: Seconds | None = Field(
        None, alias="for", description="Broken for so long before a ticket opens."
    )
    severity: Literal["critical", "warning", "info"] | None = Field(
        None, description="Instead of the invariant's own."
    )


class SubjectSettings(Group):
    """What every subject has; each kind adds its own."""

    name: Name = Field(description="What tickets call it; no two have the same.")
    kind: Name = Field(description="Which of the kinds below it is.")
    timeout: Seconds = Field(10.0, gt=0, description="Wall clock of one observation.")
    invariants: dict[str, InvariantSettings] = Field(
        default_factory=dict,
        description="What is other than the default, by invariant.",
    )


class LogSettings(Group):
    """What the daemons write to standard output."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least that is written."
    )
    format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto: JSON unless the log goes to a terminal."
    )


class Settings(Group):
    """All settings. `subjects` stay as written until their kinds are built."""

    database: str = Field(
        "sqlite:///midwatch.db",
        description="sqlite:///FILE, sqlite:// (memory) or postgresql://USER@HOST/DB.",
    )
    anthropic: AnthropicSettings = AnthropicSettings()
    agent: AgentSettings = AgentSettings()
    monitor: MonitorSettings = MonitorSettings()
    log: LogSettings = LogSettings()
    subjects: list[dict[str, Any]] = Field(
        default_factory=list, description="The systems that are watched, see below."
    )
