"""What git says when it fails, as our own errors. The one place that reads git's words."""

from __future__ import annotations

import re

from midwatch.workspace.errors import (
    GitFailed,
    GitTimedOut,
    NoSuchBranch,
    NotAuthorised,
    PushRejected,
    RepositoryCorrupted,
    RepositoryError,
    RepositoryNotFound,
    RepositoryUnreachable,
    WorkspaceDiskFull,
)
from midwatch.workspace.urls import conceal

# The first pattern that is found decides. What git says of the cause comes before what follows
# from it ("could not read from remote repository" ends many different stories).
_PATTERNS: tuple[tuple[str, type[RepositoryError], str | None], ...] = (
    (r"No space left on device|Disk quota exceeded", WorkspaceDiskFull, None),
    (
        r"dubious ownership",
        NotAuthorised,
        "the repository's folder belongs to another user: change its owner",
    ),
    (
        r"\(non-fast-forward\)|\(fetch first\)|tip of your current branch is behind",
        PushRejected,
        "the branch has commits that the session does not have: push to another branch, "
        "or start a new session from that branch",
    ),
    (
        r"protected branch|GH006|not allowed to push|hook declined",
        PushRejected,
        "the server does not allow it: push to another branch and open a pull request",
    ),
    (
        r"\[remote rejected\].*(refusing to update checked out branch|branch is currently checked out)",
        PushRejected,
        "that branch is checked out there: push to another branch",
    ),
    (
        r"requested URL returned error: 403|Write access to repository not granted"
        r"|Permission to \S+ denied|insufficient permission|read.only",
        NotAuthorised,
        "the credentials are known, but may not do this: use a token with write access",
    ),
    (
        r"Authentication failed|could not read (Username|Password)|terminal prompts disabled"
        r"|requested URL returned error: 401|Invalid username or password",
        NotAuthorised,
        None,
    ),
    (
        r"Host key verification failed",
        NotAuthorised,
        "connect once with `ssh` to make the host's key known",
    ),
    (r"Permission denied \(|Too many authentication failures", NotAuthorised, None),
    (
        r"Permission denied",
        NotAuthorised,
        "the user who runs this may not read or write the files",
    ),
    (
        r"Operation too slow|Connection timed out|Operation timed out|timed out after"
        r"|Timeout was reached|SSL connection timeout",
        GitTimedOut,
        None,
    ),
    (
        r"Could not resolve (host|proxy)|Couldn't connect to server|Failed to connect"
        r"|Connection refused|Connection reset|Network is unreachable|No route to host"
        r"|Empty reply from server|early EOF|unexpected disconnect|hung up unexpectedly"
        r"|RPC failed|requested URL returned error: (429|5\d\d)|curl \d+|kex_exchange"
        r"|Recv failure|SSL_ERROR|Temporary failure in name resolution",
        RepositoryUnreachable,
        None,
    ),
    (
        r"SSL certificate problem|unable to get local issuer",
        NotAuthorised,
        "check the host's certificate",
    ),
    (
        r"[Rr]epository .*not found|requested URL returned error: 404|does not appear to be a git repo"
        r"|not a git repository|does not exist|not valid: is this a git|invalid gitfile format",
        RepositoryNotFound,
        None,
    ),
    (
        r"Remote branch .* not found|couldn't find remote ref|not our ref",
        NoSuchBranch,
        None,
    ),
    (
        r"corrupt|inflate: data stream error|bad object|unable to read (tree|sha1 file|[0-9a-f]{40})"
        r"|missing (blob|tree|commit)|loose object .* is|garbage at end|bad signature|invalid index-pack"
        r"|does not match index|pack has bad|file .*\.pack is far too short|packfile .* cannot be accessed"
        r"|index file .* is too small|bad config line|unresolved delta|did not send all necessary objects"
        r"|object .* (is not|cannot be) |broken delta|bad tree object|inconsistent",
        RepositoryCorrupted,
        None,
    ),
    (r"\[(remote )?rejected\]", PushRejected, None),
    (
        r"unable to access|Could not read from remote repository",
        RepositoryUnreachable,
        None,
    ),
)
_COMPILED = tuple(
    (re.compile(pattern), kind, hint) for pattern, kind, hint in _PATTERNS
)
_TELLING = re.compile(
    r"^(fatal|error|remote|ssh|ERROR|!)\b[:\t ]*|^\s*!\s*\[", re.MULTILINE
)
_NOISE = re.compile(
    r"%|^remote: (Enumerating|Counting|Compressing|Total)|^hint:|^Cloning into"
)


def classify(
    repository: str, said: str, code: int, branch: str | None = None
) -> RepositoryError:
    """The error that git's stderr (and a push's porcelain) tells; GitFailed if none fits.

    `said` must have its secrets removed already.
    """
    for pattern, kind, hint in _COMPILED:
        match = pattern.search(said)
        if match:
            cause = _cause(said, match.start())
            return kind(repository, cause, branch=branch, hint=hint)
    return GitFailed(repository, _cause(said, None) or f"exit {code}", branch=branch)


def _cause(said: str, at: int | None) -> str:
    """The line around `at`, else the last that looks like a reason; bounded, printable."""
    if at is not None:
        start = said.rfind("\n", 0, at) + 1
        end = said.find("\n", at)
        line = said[start : end if end >= 0 else None]
    else:
        lines = [x for x in said.splitlines() if x.strip() and not _NOISE.search(x)]
        telling = [x for x in lines if _TELLING.match(x)]
        line = (telling or lines or [""])[-1]
    line = re.sub(r"^(fatal|error|remote|ERROR): *", "", line.strip())
    return conceal(" ".join(line.replace("?", "\0").split())).replace("\ufffd", "?")
