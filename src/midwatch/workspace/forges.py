"""What forges show beside the URL of a repository: commands and web pages. Pure.

People paste these. A page is recognised by its path, so that GitHub Enterprise, a GitLab of one's own and other
hosts count as well; a path that ends with `.git` is never a page.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs, quote

_COMMAND = re.compile(r"(?:git|gh|glab|hub|tea|az|gcloud)\s(?:.*\s)?clone\s", re.DOTALL)
_CODECOMMIT = re.compile(r"codecommit::([a-z0-9-]+)://(?:[^@/]+@)?([A-Za-z0-9._-]+)")

# Pages of a repository at `/OWNER/NAME/…`. GitLab reserves these words, so they name no project there.
_WITH_REF = {"tree", "blob", "raw", "blame", "edit", "commits"}
_NUMBERED = {"pull", "pulls", "issues", "pull-requests", "merge_requests"}
# What GitHub, Bitbucket Cloud and Codeberg show beside them.
_PAGES = _WITH_REF | _NUMBERED
_PAGES |= {"actions", "activity", "archive", "branch", "branches", "commit", "compare"}
_PAGES |= {"discussions", "downloads", "find", "forks", "graphs", "network", "packages"}
_PAGES |= {"projects", "pulse", "releases", "security", "settings", "src", "stargazers"}
_PAGES |= {"tags", "watchers", "wiki"}
_TWO_PARTS = ("github.com", "bitbucket.org", "codeberg.org", "gitea.com")
"""Hosts whose repositories are at `/OWNER/NAME` and nowhere else."""


@dataclass(frozen=True, slots=True)
class Page:
    """A web page of a repository.

    Attributes:
        url: The URL to clone.
        ref: The branch, or where the page's path has one and a file, both.
    """

    url: str
    ref: str = ""

    @property
    def hint(self) -> str:
        """What to write instead."""
        if not self.ref:
            return f"use {self.url}"
        if "/" in self.ref:
            return f"use {self.url} with the branch that {self.ref!r} begins with, as URL@BRANCH"
        return f"use {self.url} with the branch {self.ref!r}, as URL@BRANCH"


def is_command(text: str) -> bool:
    """Return whether a text is a command that clones, as forges show it."""
    return _COMMAND.match(text) is not None


def clone_argument(text: str) -> str | None:
    """Return URL of the command `git clone URL`; None for another command."""
    try:
        words = shlex.split(text)
    except ValueError:  # an open quote
        return None
    return words[2] if words[:2] == ["git", "clone"] and len(words) == 3 else None


def helper_hint(text: str) -> str:
    """Return what to write instead of a URL for a remote helper of git."""
    found = _CODECOMMIT.fullmatch(text)
    if found is None:
        return "use an https or ssh URL"
    return f"use {_codecommit(found[1], found[2])}, or its ssh URL"


def page_of(
    scheme: str, host: str, path: Sequence[str], query: str = ""
) -> Page | None:
    """Return the page that an https or http URL shows, or None if the URL can be cloned.

    Args:
        scheme: https or http.
        host: The host, with a port.
        path: The components of the path, decoded.
        query: The query.
    """
    base, parts = f"{scheme}://{host}", list(path)
    if not parts or parts[-1].endswith(".git"):
        return None
    fields = parse_qs(query)
    return (
        _on_known_host(base, host, parts)
        or _gitlab(base, parts)
        or _bitbucket_server(base, parts, fields.get("at", [""])[0])
        or _azure(base, parts, fields)
        or _gitiles(base, parts)
        or _two_parts(base, host, parts)
    )


def _on_known_host(base: str, host: str, parts: list[str]) -> Page | None:
    if host == "raw.githubusercontent.com" and len(parts) > 3:
        return Page(_url("https://github.com", parts[:2]), _ref(parts[2:]))
    if host == "api.github.com" and parts[0] == "repos" and len(parts) > 2:
        return Page(_url("https://github.com", parts[1:3]))
    if host == "gist.github.com" and len(parts) > 2:
        return Page(_url(base, parts[1:2]))
    if host == "source.cloud.google.com" and len(parts) > 1:
        url = "https://source.developers.google.com/p/" + "/r/".join(parts[:2])
        return Page(url, _ref(parts[3:]).partition(":")[0])
    region, _, rest = host.partition(".")
    if rest == "console.aws.amazon.com" and "repositories" in parts[:-1]:
        return Page(_codecommit(region, parts[parts.index("repositories") + 1]))
    return None


def _gitlab(base: str, parts: list[str]) -> Page | None:
    """`/GROUP/…/NAME/-/tree/BRANCH`."""
    if "-" not in parts[2:]:
        return None
    at = parts.index("-", 2)
    return Page(_url(base, parts[:at]), _ref_after(parts[at + 1 :]))


def _bitbucket_server(base: str, parts: list[str], at: str) -> Page | None:
    """`/projects/KEY/repos/NAME/browse`, and `/users/NAME/repos/NAME`."""
    for index in range(len(parts) - 3):
        kind, owner, repos, name = parts[index : index + 4]
        if kind in ("projects", "users") and repos == "repos":
            owner = f"~{owner}" if kind == "users" else owner
            url = _url(base, [*parts[:index], "scm", owner, name])
            return Page(url, at.removeprefix("refs/heads/"))
    return None


def _azure(base: str, parts: list[str], fields: dict[str, list[str]]) -> Page | None:
    """`/ORG/PROJECT/_git/NAME?version=GBmain`, and pages below."""
    if "_git" not in parts[:-1]:
        return None
    end = parts.index("_git") + 2
    version = fields.get("version", [""])[0]
    if len(parts) == end and not version and "path" not in fields:
        return None
    ref = version[2:] if version.startswith("GB") else ""
    return Page(_url(base, parts[:end], suffix=""), ref)


def _gitiles(base: str, parts: list[str]) -> Page | None:
    """`/NAME/+/refs/heads/main/FILE`, as on googlesource.com and Gerrit."""
    if "+" not in parts[1:]:
        return None
    at = parts.index("+", 1)
    ref = _ref(parts[at + 1 :]).removeprefix("refs/heads/")
    return Page(_url(base, parts[:at], suffix=""), ref)


def _two_parts(base: str, host: str, parts: list[str]) -> Page | None:
    """`/OWNER/NAME/tree/BRANCH`."""
    if len(parts) < 3:
        return None
    kind, rest = parts[2], parts[3:]
    known = host.removeprefix("www.") in _TWO_PARTS and kind in _PAGES
    numbered = kind in _NUMBERED and rest[:1] and rest[0].isdigit()
    commit = kind == "commit" and rest and re.fullmatch(r"[0-9a-f]{7,64}", rest[0])
    gitea = kind == "src" and rest[:1] and rest[0] in ("branch", "tag", "commit")
    if not (known or (kind in _WITH_REF and rest) or numbered or commit or gitea):
        return None
    return Page(_url(base, parts[:2]), _ref_after(parts[2:]))


def _ref_after(parts: list[str]) -> str:
    """Return the ref, and the file if there is one, behind the name of a page."""
    kind, rest = (parts[0], parts[1:]) if parts else ("", [])
    if kind in _WITH_REF or kind == "branch":
        return _ref(rest)
    if kind == "src":  # Gitea writes src/branch/NAME, Bitbucket Cloud src/NAME
        return _ref(rest[1:] if rest[:1] == ["branch"] else rest)
    return ""


def _ref(parts: list[str]) -> str:
    return "/".join(parts)


def _url(base: str, parts: Sequence[str], suffix: str = ".git") -> str:
    return f"{base}/{quote('/'.join(parts), safe='/~@')}{suffix}"


def _codecommit(region: str, name: str) -> str:
    return f"https://git-codecommit.{region}.amazonaws.com/v1/repos/{name}"
