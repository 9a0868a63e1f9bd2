"""Every error Midwatch raises, as one tree.

::

    MidwatchError                 hint: what the person should do next
    ├── TemporaryError            trying again can help; retry_after: seconds, if known
    │   ├── StoreUnavailable          the database does not answer
    │   ├── StoreBusy                 it answers, but a lock or a conflict was in the way
    │   ├── StoreFull                 no space for a write; nothing was lost
    │   ├── StaleWatch                another writer changed the subject's tickets meanwhile
    │   └── ObservationFailed         a subject could not be observed
    └── PermanentError            trying again without a change cannot help
        ├── SettingsError             path: the setting that is wrong
        ├── NotFound                  no such ticket, subject, …
        ├── Conflict                  the request does not fit the present state
        ├── SchemaMismatch            the database needs `midwatch db upgrade`
        ├── StoreRejected             the database refused the statement or the login
        └── ClaimLost                 the lease passed to somebody else

Workspaces and sessions have errors of their own below the same two branches: see
`midwatch.workspace.errors` and `midwatch.session.errors`.
"""

from __future__ import annotations


class MidwatchError(Exception):
    """Something failed."""

    hint: str = ""

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])
        if hint is not None:
            self.hint = hint

    @property
    def message(self) -> str:
        return str(self.args[0])

    def one_line(self) -> str:
        """The one line a person sees: what failed, then what to do."""
        text = " ".join(self.message.split())
        return f"{text} ({' '.join(self.hint.split())})" if self.hint else text


class TemporaryError(MidwatchError):
    """Something failed that may work when tried again."""

    def __init__(
        self,
        message: str | None = None,
        *,
        hint: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class PermanentError(MidwatchError):
    """Something failed that will fail again until somebody changes it."""


class StoreUnavailable(TemporaryError):
    """The database does not answer."""

    hint = "check that it runs and that `database` names it rightly"


class StoreBusy(TemporaryError):
    """The database is busy: a lock was held for too long."""

    hint = "try again in a moment"


class StoreFull(TemporaryError):
    """The database has no space left to write."""

    hint = "free some disk; nothing was lost, the write is tried again"


class StaleWatch(TemporaryError):
    """The tickets of this subject were changed by another writer meanwhile."""


class ObservationFailed(TemporaryError):
    """The subject could not be observed."""


class SettingsError(PermanentError):
    """A setting is wrong."""

    def __init__(
        self, message: str, *, path: str = "", hint: str | None = None
    ) -> None:
        super().__init__(f"{path}: {message}" if path else message, hint=hint)
        self.path = path


class NotFound(PermanentError):
    """There is no such thing."""


class Conflict(PermanentError):
    """That does not fit the present state."""


class SchemaMismatch(PermanentError):
    """The database's schema is not the one this version needs."""

    hint = "run `midwatch db upgrade`"


class StoreRejected(PermanentError):
    """The database refused."""


class ClaimLost(PermanentError):
    """The claim on this batch is held by somebody else now."""
