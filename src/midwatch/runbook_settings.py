"""Settings of runbooks: where they are, and which pages of alerts may be fetched."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from midwatch.setting_group import Group, PortChecked, Seconds


class RunbookRepositorySettings(Group):
    """A git repository with runbooks. Its token is one of `sessions.git`."""

    url: PortChecked = Field(min_length=1, description="The URL to fetch.")
    ref: str | None = Field(
        None, description="A branch or a tag; null for the default branch."
    )
    folder: str = Field(
        "", description="The folder in it that has the runbooks; empty for all of it."
    )

    @field_validator("folder")
    @classmethod
    def _relative(cls, value: str) -> str:
        parts = [part for part in value.strip("/").split("/") if part not in ("", ".")]
        if ".." in parts or any(not part.isprintable() for part in parts):
            raise ValueError("a folder within the repository, such as ops/runbooks")
        return "/".join(parts)


class RunbookSettings(Group):
    """Runbooks: what people wrote on what to do, in Markdown, for the tickets that each one names."""

    folders: list[Path] = Field(
        default=[], description="Folders with runbooks: files `*.md`."
    )
    repositories: list[RunbookRepositorySettings] = Field(
        default=[], description="Git repositories with runbooks, see below."
    )
    refresh: Seconds = Field(
        300.0,
        ge=1,
        description="How old what was read may be before folders, repositories and pages are read again.",
    )
    most: int = Field(
        3, ge=0, le=20, description="Runbooks of one ticket, the most specific first."
    )
    tokens: int = Field(
        3000,
        ge=100,
        description="Tokens of all runbooks of a diagnosis; at most a quarter of its evidence.",
    )
    fetch_from: list[str] = Field(
        default=[],
        description="Hosts from which the page that an alert names as `runbook_url` is fetched, such as "
        "runbooks.example.org or wiki.example.org:8443; empty for none.",
    )
    fetch_private: bool = Field(
        False,
        description="Fetch also where one of these hosts has a private or loopback address.",
    )
    fetch_timeout: Seconds = Field(
        5.0, gt=0, le=60, description="Timeout of one such page, redirects included."
    )

    @property
    def used(self) -> bool:
        """Whether there is anything that runbooks come from."""
        return bool(self.folders or self.repositories or self.fetch_from)
