"""The settings of schedules: sessions that start at times."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator

from midwatch.cron import Cron
from midwatch.setting_group import Group, PortChecked, Sandbox, Seconds, TimeZone

Policy = Literal["Allow", "Forbid", "Replace"]
ScheduleName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
"""Also the name of a CronJob, which adds 11 characters for each Job."""


class RepositorySettings(Group):
    """A repository that sessions work in."""

    url: PortChecked = Field(min_length=1, description="The URL to clone.")
    branch: str | None = Field(
        None,
        description="The branch that a session starts from; null for the repository's default.",
    )


class SubjectRepositorySettings(RepositorySettings):
    """A repository that sessions work in, and whose commits are changes of the subject."""

    paths: list[str] = Field(
        default=[],
        description="Folders and files of which commits are changes of the subject; empty for the whole repository.",
    )


class ScheduleSettings(Group):
    """A session that starts at the times of a cron expression."""

    name: ScheduleName = Field(
        description="Its name; unique. Lower-case letters, digits and hyphens, at most 40."
    )
    cron: str = Field(
        description="Minute, hour, day of month, month and day of week, such as `0 6 * * mon-fri`, or a name such as @daily.",
    )
    timezone: TimeZone = Field(
        "UTC", description="The IANA time zone that the expression is read in."
    )
    enabled: bool = Field(True, description="Whether its sessions start.")
    concurrency: Policy = Field(
        "Forbid",
        description="While its last session runs: Forbid leaves the time out, Allow starts one more, Replace stops the last one first.",
    )
    starting_deadline: Seconds = Field(
        600.0,
        ge=10,
        le=86400,
        description="How late a session may start. A time that is further back is missed: it is reported, and not made up for.",
    )
    repositories: list[RepositorySettings] = Field(
        min_length=1, description="The repositories that it works in."
    )
    main: int = Field(
        0, ge=0, description="Index of the main repository (0 is the first)."
    )
    prompt: str = Field(min_length=1, max_length=400_000, description="The task.")
    push: bool = Field(
        False, description="Push the changes once the session is Completed."
    )
    push_branch: str | None = Field(
        None, description="Branch to push to; null for the session's own."
    )
    model: str | None = Field(
        None, description="The model to use; null for sessions.model."
    )
    trust_repository: bool | None = Field(
        None,
        description="As in `sessions`, whose value null takes; so for those below.",
    )
    sandbox: Sandbox | None = Field(None, description="As in `sessions`.")
    max_turns: int | None = Field(None, ge=1, description="As in `sessions`.")
    max_usd: float | None = Field(None, gt=0, description="As in `sessions`.")
    wall: Seconds | None = Field(None, gt=0, description="As in `sessions`.")
    idle: Seconds | None = Field(None, gt=0, description="As in `sessions`.")
    allowed_tools: list[str] = Field(
        default=[],
        description="Tools that need no permission, besides those of `sessions`.",
    )
    denied_tools: list[str] = Field(
        default=[],
        description="Tools that Claude may not use, besides those of `sessions`.",
    )

    @field_validator("cron")
    @classmethod
    def _check_cron(cls, expression: str) -> str:
        Cron(expression, ZoneInfo("UTC"))
        return expression

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("is empty; describe the task")
        return prompt

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.main >= len(self.repositories):
            raise ValueError("main names no repository; the first of them is 0")
        if self.push_branch is not None and not self.push:
            raise ValueError("push_branch has no effect without push: true")
        return self

    @property
    def times(self) -> Cron:
        """Its times."""
        return Cron(self.cron, ZoneInfo(self.timezone))

    @property
    def definition(self) -> str:
        """What its times follow from."""
        return f"{self.cron} {self.timezone}"

    @property
    def fingerprint(self) -> str:
        """What tells it from a schedule of the same name that works elsewhere: a hash of its repositories and branches."""
        places = [[one.url, one.branch] for one in self.repositories]
        return hashlib.sha256(json.dumps(places).encode()).hexdigest()[:16]


def one_of_each_name(schedules: list[ScheduleSettings]) -> list[ScheduleSettings]:
    """Return the schedules. Raises ValueError if two have one name."""
    for name, count in Counter(one.name for one in schedules).items():
        if count > 1:
            raise ValueError(f"{count} schedules have the name {name}; rename one")
    return schedules
