"""What webhooks about deployments have in common once they are read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from midwatch.agent.reported_changes import ReportedChange
from midwatch.server.senders.reading import Unreadable, text_of, time_of

NO_COMMIT = re.compile(r"0+")
"""The object id that a push has for a branch or a tag that was not there, or is gone."""
OID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_GITLAB_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d)(?:\.\d+)? (UTC|[+-]\d{4})"
)
_SCP = re.compile(r"(?:[^@/\s]+@)?(?P<host>[^:/\s]+):(?!//)(?P<path>[^\s]+)")
_URL = re.compile(
    r"[a-z+]+://(?:[^@/\s]*@)?(?P<host>[^:/\s]+)(?::\d+)?/(?P<path>[^\s?#]+)"
)


@dataclass(frozen=True, slots=True)
class ReportedDelivery:
    """What one request reports.

    Attributes:
        changes: The changes, without their subjects.
        repositories: The URLs of the repository that it is about.
        branch: The branch that was changed; empty where it is about none.
        default_branch: The default branch of the repository.
        environment: Where it was deployed to; empty where it was not.
    """

    changes: tuple[ReportedChange, ...] = ()
    repositories: tuple[str, ...] = ()
    branch: str = ""
    default_branch: str = ""
    environment: str = ""


def place_of(url: str) -> str:
    """Return host and path of a repository: the same for each way to clone it. Empty for a text that is no URL."""
    found = _URL.fullmatch(url.strip()) or _SCP.fullmatch(url.strip())
    if found is None:
        return ""
    path = found["path"].strip("/").removesuffix(".git")
    return f"{found['host'].lower()}/{path.lower()}"


def first_line(value: Any, where: str) -> str:
    """Return the first line of a text. Raises Unreadable."""
    return text_of(value, where).strip().partition("\n")[0]


def part_of(value: Any, name: str) -> Mapping[str, Any]:
    """Return a member that is an object; an empty one for anything else."""
    found = value.get(name) if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def when(value: Any, where: str) -> datetime | None:
    """Return a time, also as GitLab writes it: 2026-11-30 09:15:00 +0100. Raises Unreadable."""
    if isinstance(value, str) and (found := _GITLAB_TIME.fullmatch(value.strip())):
        zone = "+0000" if found[3] == "UTC" else found[3]
        try:
            parsed = datetime.strptime(f"{found[1]} {found[2]} {zone}", _FORMAT)
            return parsed.astimezone(UTC)
        except (ValueError, OverflowError):
            raise Unreadable(f"{where}: is no time") from None
    return time_of(value, where)


_FORMAT = "%Y-%m-%d %H:%M:%S %z"


def files_of(commits: Iterable[Any]) -> tuple[str, ...]:
    """Return the files that commits of a push name, each once."""
    names: dict[str, None] = {}
    for commit in commits:
        if not isinstance(commit, Mapping):
            continue
        for list_ in ("added", "modified", "removed"):
            found = commit.get(list_)
            for name in found if isinstance(found, list) else ():
                if isinstance(name, str):
                    names[name] = None
    return tuple(names)


def short(oid: str) -> str:
    """Return an object id as people write it; other texts stay as they are."""
    return oid[:12] if OID.fullmatch(oid) else oid


def labels(**named: str) -> dict[str, str]:
    """Return labels without those that are empty."""
    return {name: value for name, value in named.items() if value}
