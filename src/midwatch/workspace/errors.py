"""The errors of workspaces, in the tree of `midwatch.errors`.

::

    TemporaryError
    ├── RepositoryUnreachable     its host does not answer
    ├── GitTimedOut               git did not end within its timeout
    ├── WorkspaceDiskFull         no space for a clone; what was begun is removed
    └── CacheBusy                 another process uses a mirror or a clone for too long
    PermanentError
    ├── WorkspaceRefused          a URL, name or branch must not reach git
    ├── WorkspaceExists           something exists where a clone would go
    ├── WorkspaceNotWritable      a folder cannot be created or written
    ├── GitMissing                there is no git program
    ├── RepositoryNotFound        the host has no such repository
    ├── NotAuthorised             the host refuses the credentials, or needs some
    ├── NoSuchBranch              the repository has no such branch or tag
    ├── RepositoryCorrupted       its objects cannot be read
    ├── PushRejected              the remote refused the commits
    └── GitFailed                 git failed in another way

Errors of one repository are RepositoryErrors.
"""

from __future__ import annotations

from midwatch.errors import MidwatchError, PermanentError, TemporaryError


class RepositoryError(MidwatchError):
    """A repository failed.

    Attributes:
        repository: Its URL.
        branch: The branch, or None.
        cause: What git or the disk reported.
    """

    what = "failed"

    def __init__(
        self,
        repository: str,
        cause: str,
        *,
        branch: str | None = None,
        hint: str | None = None,
    ) -> None:
        where = f"{repository} (branch {branch})" if branch else repository
        super().__init__(f"{where}: {self.what}: {cause}", hint=hint)
        self.repository = repository
        self.branch = branch
        self.cause = cause


class RepositoryUnreachable(RepositoryError, TemporaryError):
    """The host of a repository does not answer."""

    what = "unreachable"
    hint = "check the host name, the network and the proxy"


class GitTimedOut(RepositoryError, TemporaryError):
    """Git did not end within its timeout."""

    what = "timed out"
    hint = "try again, use a shallow clone, or raise the timeout"


class WorkspaceDiskFull(RepositoryError, TemporaryError):
    """There is no space for a clone."""

    what = "disk full"
    hint = "free disk space (`midwatch cache prune` removes the mirrors) and try again"


class CacheBusy(TemporaryError):
    """Another process uses a mirror or a clone for too long."""

    hint = "try again when the other session has fetched"


class WorkspaceRefused(PermanentError):
    """The request for a workspace is not valid."""

    command_exit_code = 2


class WorkspaceExists(PermanentError):
    """Something exists where a clone would go."""

    hint = "choose an empty folder for the workspace, or another name for the clone"


class WorkspaceNotWritable(RepositoryError, PermanentError):
    """A folder cannot be created or written."""

    what = "cannot be written"
    hint = "check the owner and the permissions of the folder"


class GitMissing(PermanentError):
    """There is no git program on the PATH."""

    hint = "install git 2.39 or newer"


class RepositoryNotFound(RepositoryError, PermanentError):
    """The repository does not exist, or the credentials do not allow to see it."""

    what = "not found"
    hint = "check the URL; a private repository needs a token or an SSH key"


class NotAuthorised(RepositoryError, PermanentError):
    """The host refuses the credentials, or needs some."""

    what = "not authorised"
    hint = "configure a token for this host, or an SSH agent with the key"


class NoSuchBranch(RepositoryError, PermanentError):
    """The repository has no such branch or tag."""

    what = "no such branch"
    hint = "check the name of the branch"


class RepositoryCorrupted(RepositoryError, PermanentError):
    """Objects of the repository cannot be read."""

    what = "corrupted"
    hint = "run `git fsck` in the repository, and `midwatch cache prune` here"


class PushRejected(RepositoryError, PermanentError):
    """The remote refused the commits."""

    what = "push rejected"
    hint = "push to another branch"


class GitFailed(RepositoryError, PermanentError):
    """Git failed."""

    what = "git failed"
    hint = "the cause is the message of git"
