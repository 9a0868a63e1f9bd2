"""What can go wrong with a workspace, as children of the one tree.

::

    TemporaryError
    ├── RepositoryUnreachable     no answer from its host
    ├── GitTimedOut               an answer, but not within the limit
    ├── WorkspaceDiskFull         no space for the clone; what was begun is removed
    └── CacheBusy                 another session holds the mirror for too long
    PermanentError
    ├── WorkspaceRefused          a URL, name or branch that is never given to git
    ├── WorkspaceExists           something is already where a clone would go
    ├── WorkspaceNotWritable      a folder of it cannot be made or written
    ├── GitMissing                there is no git program
    ├── RepositoryNotFound        the host answers, the repository is not there
    ├── NotAuthorised             the host wants other credentials
    ├── NoSuchBranch              the repository has no such branch or tag
    ├── RepositoryCorrupted       its objects cannot be read
    ├── PushRejected              the remote did not take the commits
    └── GitFailed                 git failed in a way that is not known here

Those about one repository carry `repository`, `branch` and `cause`, and say all three in one
line.
"""

from __future__ import annotations

from midwatch.errors import MidwatchError, PermanentError, TemporaryError


class RepositoryError(MidwatchError):
    """A repository failed."""

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
    """Git was stopped because it took too long."""

    what = "timed out"
    hint = "try again, ask for a shallow clone, or raise the time limit"


class WorkspaceDiskFull(RepositoryError, TemporaryError):
    """There is no space for a clone."""

    what = "disk full"
    hint = "free some disk (`midwatch cache prune` empties the mirrors) and try again"


class CacheBusy(TemporaryError):
    """Another session holds the mirror for too long."""

    hint = "try again when the other session has fetched"


class WorkspaceRefused(PermanentError):
    """The workspace cannot be planned like this."""


class WorkspaceExists(PermanentError):
    """Something is already where a clone would go."""

    hint = "choose an empty folder for the workspace, or another name for the clone"


class WorkspaceNotWritable(RepositoryError, PermanentError):
    """A folder cannot be made or written."""

    what = "cannot be written"
    hint = "check the owner and the permissions of the folder"


class GitMissing(PermanentError):
    """There is no git program on the PATH."""

    hint = "install git 2.39 or newer"


class RepositoryNotFound(RepositoryError, PermanentError):
    """The repository does not exist, or may not be seen."""

    what = "not found"
    hint = "check the URL; a private repository needs a token or an SSH key"


class NotAuthorised(RepositoryError, PermanentError):
    """The host refuses the credentials, or wants some."""

    what = "not authorised"
    hint = "give a token for this host, or an SSH agent that holds the key"


class NoSuchBranch(RepositoryError, PermanentError):
    """The repository has no such branch or tag."""

    what = "no such branch"
    hint = "check the name of the branch"


class RepositoryCorrupted(RepositoryError, PermanentError):
    """Objects of the repository cannot be read."""

    what = "corrupted"
    hint = "run `git fsck` in the repository, and `midwatch cache prune` here"


class PushRejected(RepositoryError, PermanentError):
    """The remote did not take the commits."""

    what = "push rejected"
    hint = "push to another branch"


class GitFailed(RepositoryError, PermanentError):
    """Git failed."""

    what = "git failed"
    hint = "the cause is what git itself said"
