"""The errors that end a session, as children of `midwatch.errors.MidwatchError`.

::

    TemporaryError
    ├── Overloaded            529 after every retry
    ├── RateLimited           429 after every retry
    ├── ApiFailed             5xx after every retry
    ├── ApiUnreachable        no answer, or an answer that was cut, after every retry
    ├── SessionTimedOut       the wall-clock limit
    ├── SessionIdle           nothing happened for the idle limit: a hung call or tool
    ├── ProgramCrashed        the program ended on its own; `exit_code`
    ├── RunnerCrashed         the runner of an earlier run ended without a final status
    └── DiskFull              the session's folder has no space left
    PermanentError
    ├── KeyRefused            401 or 403; `status`
    ├── ModelNotFound         404
    ├── RequestRefused        400, and any other 4xx
    ├── RequestTooLarge       413, or a conversation that is too long
    ├── TurnFailed            the program ended the turn with an error of its own
    ├── TurnLimit             the limit of turns
    ├── BudgetSpent           the limit of dollars
    ├── SessionRefused        an argument is not valid: no prompt, no such folder, …
    ├── ProgramMissing        there is no `claude` program, or no Agent SDK
    ├── ProgramRefused        the program does not start with these options
    ├── SandboxUnavailable    a sandbox is required and not available
    ├── FolderUnusable        the session's folder cannot be written
    ├── WorkspaceGone         a folder of the session was removed while it ran
    ├── OutboxLost            another process removed, replaced or truncated the outbox while the session ran
    ├── LineTooLong           a line of the program's output is over the limit
    └── SessionBusy           another runner works on this session

Errors of the API have its HTTP `status`.
"""

from __future__ import annotations

from midwatch.errors import Conflict, PermanentError, TemporaryError


class ApiError:
    """An error of the API. `status` is the HTTP status; None without an answer."""

    status: int | None = None


class Overloaded(TemporaryError, ApiError):
    """The API was overloaded at every try."""

    hint = "resume the session later"
    status = 529


class RateLimited(TemporaryError, ApiError):
    """The API's rate limit was reached at every try."""

    hint = "resume the session later, or raise the limit of the key"
    status = 429


class ApiFailed(TemporaryError, ApiError):
    """The API failed at every try."""

    hint = "resume the session later"


class ApiUnreachable(TemporaryError, ApiError):
    """The API gave no complete answer at any try."""

    hint = "check the network and the proxy, then resume the session"


class SessionTimedOut(TemporaryError):
    """The session reached its wall-clock limit."""

    hint = "resume it, or raise the limit `wall`"


class SessionIdle(TemporaryError):
    """Nothing happened in the session for its idle limit."""

    hint = "a call or a tool hangs; resume the session, or raise the limit `idle`"


class ProgramCrashed(TemporaryError):
    """The claude program ended in the middle of its work."""

    hint = "resume the session; its transcript is kept"
    exit_code: int | None = None


class RunnerCrashed(TemporaryError):
    """The runner of this session ended without closing it."""

    hint = "resume the session; its transcript and its workspace are kept"


class DiskFull(TemporaryError):
    """The disk of the session's folder is full."""

    hint = "free disk space, then resume the session"


class KeyRefused(PermanentError, ApiError):
    """The API refused the key."""

    hint = "check the API key or the credentials, and what they may use: `midwatch check` tries them"
    status = 401


class ModelNotFound(PermanentError, ApiError):
    """The API does not know the model, or the key may not use it."""

    hint = "choose another model"
    status = 404


class RequestRefused(PermanentError, ApiError):
    """The API refused the request."""

    hint = "read its message; a new session may work where a resumed one does not"
    status = 400


class RequestTooLarge(PermanentError, ApiError):
    """The conversation is too large for the API."""

    hint = "start a new session with a shorter prompt"
    status = 413


class TurnFailed(PermanentError):
    """The program ended the turn with an error."""

    hint = "read its message; the session can be resumed"


class TurnLimit(PermanentError):
    """The session reached its limit of turns."""

    hint = "raise `max_turns` and resume it"


class BudgetSpent(PermanentError):
    """The session reached its limit of dollars."""

    hint = "raise `max_usd` and resume it"


class SessionRefused(PermanentError):
    """An argument of the session is not valid."""

    hint = "correct the argument and start again"


class ProgramMissing(PermanentError):
    """The claude program or the Agent SDK is not installed."""

    hint = "install midwatch with its extra: pip install 'midwatch[sessions]'"


class ProgramRefused(PermanentError):
    """The claude program does not start with these options."""

    hint = "read its message and change the session's options"


class SandboxUnavailable(PermanentError):
    """The sandbox that the session requires is not available."""

    hint = "install bubblewrap and socat, or set sandbox to auto or off"


class LineTooLong(PermanentError):
    """A line of the program's output is longer than the limit."""

    hint = "raise `line_bytes` and resume the session"


class FolderUnusable(PermanentError):
    """The session's folder cannot be used."""

    hint = "check the folder and its permissions"


class WorkspaceGone(PermanentError):
    """A folder of the session was removed while it ran."""

    hint = "find out who removed it; the transcript may still allow a resume, in new clones"


class OutboxLost(PermanentError):
    """Another process removed, replaced or truncated the session's outbox while the session ran."""

    hint = "find out what changes the session's folder, then resume the session"


class SessionBusy(Conflict):
    """Another runner works on this session."""

    hint = "end the other runner, or wait for it"
