"""Settings of pull requests, and of the forges that they are opened at."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from midwatch.setting_group import Group, Name, Origin, Seconds, Url


class ForgeSettings(Group):
    """A forge: a host of repositories with pull requests. The token itself is never in the file.

    github.com and gitlab.com need an entry only for a token of their own.
    """

    host: Origin = Field(
        description="Scheme and host of its web pages, such as https://github.example.org."
    )
    kind: Literal["github", "gitlab"] = Field(
        description="GitHub (also Enterprise Server) or GitLab (also self-managed)."
    )
    api: Url | None = Field(
        None,
        description="The URL of its API; null for HOST/api/v3 of GitHub (https://api.github.com of github.com) and HOST/api/v4 of GitLab.",
    )
    token_variable: Name | None = Field(
        None, description="The environment variable that holds the token."
    )
    token_file: Path | None = Field(
        None,
        description="A file that contains only the token. Without both, the token of sessions.git for the repository is used.",
    )


class PullRequestSettings(Group):
    """Pull requests (at GitLab: merge requests) of sessions that work on a ticket."""

    approval: bool = Field(
        False,
        description="Whether a person has to approve the changes of a session before they are pushed.",
    )
    draft: bool = Field(False, description="Open them as drafts.")
    evidence: Literal["private", "always", "never"] = Field(
        "private",
        description="Where the diagnosis and its evidence are in the description: in repositories that are not public, in all, or in none.",
    )
    interval: Seconds = Field(
        60.0,
        ge=5,
        description="Time between two looks at an open one. Answers that did not change cost nothing of a forge's limit.",
    )
    timeout: Seconds = Field(
        20.0, gt=0, le=300, description="Timeout of one request to a forge."
    )
