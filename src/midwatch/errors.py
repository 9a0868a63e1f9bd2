"""The tree of errors that Midwatch raises.

::

    MidwatchError                 hint: what to do next
    ├── TemporaryError            a retry can help; retry_after: seconds, if known
    │   ├── StoreUnavailable          the database does not answer
    │   ├── StoreBusy                 it answers, but a lock or a conflict was in the way
    │   ├── StoreFull                 no space for a write; nothing was lost
    │   ├── StaleWatch                another writer changed the subject's tickets meanwhile
    │   ├── SubjectTaken              another monitor watches the subject now
    │   └── ObservationFailed         a subject could not be observed
    └── PermanentError            a retry without a change cannot help
        ├── SettingsError             path: the setting that is wrong
        ├── NotFound                  no such ticket, subject, …
        ├── Conflict                  the request does not fit the current state
        │   └── Outdated                  what is to be changed was changed since it was read
        ├── SchemaMismatch            the database needs `midwatch db upgrade`
        ├── StoreRejected             the database refused the statement or the login
        └── ClaimLost                 another daemon holds the claim

Workspaces and sessions have errors of their own below the same two branches: see
`midwatch.workspace.errors` and `midwatch.session.errors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar


class MidwatchError(Exception):
    """Something failed."""

    hint: str = ""
    command_exit_code = 1
    """The exit code of a command that ends with this error."""

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])
        if hint is not None:
            self.hint = hint

    @property
    def message(self) -> str:
        return str(self.args[0])

    def one_line(self) -> str:
        """Return the line that a person sees: what failed, then what to do."""
        text = " ".join(self.message.split())
        if not self.hint:
            return text
        return f"{text.removesuffix('.')} ({' '.join(self.hint.split())})"

    def line(self) -> str:
        """Return `one_line`: the former name, for one release."""
        return self.one_line()


E = TypeVar("E", bound=BaseException)


def without_frames(error: E) -> E:
    """Return an error of a library after its traceback, and those of its causes, are forgotten.

    An error that a frame on its way keeps is a reference cycle: then a connection, a socket or a context of TLS
    in one of the frames stays until the garbage collector runs, which a daemon does rarely.
    """
    known: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is not None and id(one) not in known:
            known.add(id(one))
            one.__traceback__ = None
            left += [one.__cause__, one.__context__]
    return error


def raise_together(errors: Sequence[MidwatchError]) -> None:
    """Raise the error, or one that has the lines of all of them; nothing without an error."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise PermanentError("; ".join(one.one_line() for one in errors))


class TemporaryError(MidwatchError):
    """Something failed that may work on a retry."""

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
    """Something failed that will fail again until something is changed."""


class StoreUnavailable(TemporaryError):
    """The database does not answer."""

    hint = "check that it runs and that the setting `database` is right"


class StoreBusy(TemporaryError):
    """The database is busy: a lock was held for too long."""

    hint = "try again in a moment"


class StoreFull(TemporaryError):
    """The database has no space left to write."""

    hint = "free some disk space; nothing was lost, the write is retried"


class StaleWatch(TemporaryError):
    """The tickets of this subject were changed by another writer meanwhile."""


class SubjectTaken(TemporaryError):
    """Another monitor watches this subject now."""


class ObservationFailed(TemporaryError):
    """The subject could not be observed."""


class Unsupported(ObservationFailed):
    """A setting or a permission makes an invariant impossible to see; the hint is the remedy."""


class SettingsError(PermanentError):
    """A setting is wrong."""

    command_exit_code = 2  # as for a wrong option on the command line

    def __init__(
        self, message: str, *, path: str = "", hint: str | None = None
    ) -> None:
        super().__init__(f"{path}: {message}" if path else message, hint=hint)
        self.path = path


class NotFound(PermanentError):
    """Not found."""


class Conflict(PermanentError):
    """The request does not fit the current state."""


class Outdated(Conflict):
    """It was changed since it was read."""

    hint = "read it again, then decide"


class SchemaMismatch(PermanentError):
    """The database's schema is not the one this version needs."""

    hint = "run `midwatch db upgrade`"


class StoreRejected(PermanentError):
    """The database refused the statement or the login."""


class ClaimLost(PermanentError):
    """Another daemon holds the claim on this batch now."""
