"""What a forge is asked for, as values and a protocol; GitHub and GitLab implement it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from midwatch.errors import PermanentError, TemporaryError
from midwatch.model import Json

ForgeState = Literal["open", "draft", "merged", "closed"]


class ForgeUnreachable(TemporaryError):
    """The forge does not answer, or answers with an error of its own."""

    hint = "try again later; a running daemon does so by itself"


class ForgeLimited(TemporaryError):
    """The forge's rate limit is reached."""

    hint = "a running daemon goes on when the limit allows it"


class ForgeRefused(PermanentError):
    """The forge refuses the request."""


class AlreadyOpen(ForgeRefused):
    """The branch has an open pull request."""


class NothingToMerge(ForgeRefused):
    """The branch has no commit that its base does not have."""


@dataclass(frozen=True, slots=True)
class ForgeRepository:
    """A repository.

    Attributes:
        url: Its page.
        default_branch: None if the forge names none, as for an empty one.
        public: Whether everyone can read it.
        problem: Why no pull request can be opened in it; empty if one can.
    """

    url: str
    default_branch: str | None
    public: bool
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ForgePullRequest:
    """A pull request.

    Attributes:
        number: Its number in the repository; at GitLab the iid.
        url: Its page.
        state: Its state.
        title: Its title.
        body: Its description.
        head: The newest commit of its branch.
        by: Who merged or closed it, if the forge says so.
    """

    number: int
    url: str
    state: ForgeState
    title: str
    body: str
    head: str
    by: str = ""

    @property
    def ended(self) -> bool:
        """Whether it was merged or closed."""
        return self.state in ("merged", "closed")


@dataclass(frozen=True, slots=True)
class NewPullRequest:
    """A pull request to open."""

    branch: str
    base: str
    title: str
    body: str
    draft: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a pull request found.

    Attributes:
        found: The pull request.
        checks: "none", "pending", "passed", "failed", or "unknown" where the token may not read them.
        review: "none", "approved" or "changes_requested"; "unknown" likewise.
        seen: The answers by path, each with its entity tag, for the next look.
    """

    found: ForgePullRequest
    checks: str
    review: str
    seen: Json = field(default_factory=dict)


class Forge(Protocol):
    """A forge with a token. `project` is the path of a repository, such as `owner/name`.

    Every method is one or a few requests, each with a time limit. Raises ForgeUnreachable, ForgeLimited with the seconds
    to wait, and ForgeRefused.
    """

    longest_body: int
    """Bytes of a description."""
    noun: str
    """What it calls a pull request."""

    async def repository(self, project: str) -> ForgeRepository:
        """Return a repository."""
        ...

    async def branch(self, project: str, name: str) -> str | None:
        """Return the newest commit of a branch; None if there is no such branch."""
        ...

    async def find(self, project: str, branch: str) -> Sequence[ForgePullRequest]:
        """Return the pull requests of a branch, in any state, the newest first."""
        ...

    async def open(self, project: str, new: NewPullRequest) -> ForgePullRequest:
        """Open a pull request. Raises AlreadyOpen and NothingToMerge too."""
        ...

    async def describe(self, project: str, number: int, body: str) -> None:
        """Replace the description."""
        ...

    async def comment(self, project: str, number: int, text: str) -> None:
        """Add a comment."""
        ...

    async def look(self, project: str, number: int, seen: Json) -> Look:
        """Return the present state; what did not change since `seen` is not sent again."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...
