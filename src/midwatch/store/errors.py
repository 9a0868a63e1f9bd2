"""Map the errors of SQLAlchemy and the database drivers to those of Midwatch; no other module does."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import (
    DBAPIError,
    NoSuchModuleError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from midwatch.errors import (
    MidwatchError,
    SchemaMismatch,
    StoreBusy,
    StoreFull,
    StoreRejected,
    StoreUnavailable,
)

_FULL_BELOW = 1 << 20
"""An I/O error on a disk with less free space than this many bytes is a full disk."""

# Classes and codes of SQLSTATE: PostgreSQL manual, appendix A. The longest match counts.
_POSTGRES: dict[str, type[MidwatchError]] = {
    **dict.fromkeys(
        "02 03 09 0A 0B 0F 0L 0P 0Z 10 20 21 22 23 24 25 26 27 28 2B 2D 2F 34 38 39 3B 3D 3F"
        " 42 44 54 55 F0 HV P0 XX".split(),
        StoreRejected,
    ),
    "08": StoreUnavailable,  # connection
    "25006": StoreUnavailable,  # read-only: a standby, until it is promoted
    "25P03": StoreBusy,
    "25P04": StoreBusy,
    "40": StoreBusy,  # serialization, deadlock
    "42P01": SchemaMismatch,
    "42703": SchemaMismatch,
    "53": StoreUnavailable,  # too many connections and the like
    "53100": StoreFull,
    "53200": StoreBusy,
    "55P03": StoreBusy,
    "57": StoreUnavailable,  # starting, stopping, connection ended by an administrator
    "57014": StoreBusy,
    "57P04": StoreRejected,
    "58": StoreUnavailable,  # I/O of the server
    "72": StoreBusy,
}
# psycopg gives no state when the connection failed or the error is its own.
_WITHOUT_STATE: dict[str, type[MidwatchError]] = {
    "InterfaceError": StoreUnavailable,
    "OperationalError": StoreUnavailable,
    "InternalError": StoreUnavailable,
    "DatabaseError": StoreRejected,
    "DataError": StoreRejected,
    "IntegrityError": StoreRejected,
    "ProgrammingError": StoreRejected,
    "NotSupportedError": StoreRejected,
}
_LOGIN_REFUSED = (
    "authentication failed",
    "no pg_hba.conf entry",
    "no password supplied",
    "is not permitted to log in",
)
# Primary result codes: sqlite.org/rescode.html.
_SQLITE: dict[int, type[MidwatchError]] = {
    **dict.fromkeys(
        (
            sqlite3.SQLITE_ERROR,
            sqlite3.SQLITE_INTERNAL,
            sqlite3.SQLITE_PERM,
            sqlite3.SQLITE_ABORT,
            sqlite3.SQLITE_READONLY,
            sqlite3.SQLITE_CORRUPT,
            sqlite3.SQLITE_NOTFOUND,
            sqlite3.SQLITE_EMPTY,
            sqlite3.SQLITE_TOOBIG,
            sqlite3.SQLITE_CONSTRAINT,
            sqlite3.SQLITE_MISMATCH,
            sqlite3.SQLITE_MISUSE,
            sqlite3.SQLITE_NOLFS,
            sqlite3.SQLITE_AUTH,
            sqlite3.SQLITE_FORMAT,
            sqlite3.SQLITE_RANGE,
            sqlite3.SQLITE_NOTADB,
        ),
        StoreRejected,
    ),
    sqlite3.SQLITE_SCHEMA: StoreBusy,
    sqlite3.SQLITE_BUSY: StoreBusy,
    sqlite3.SQLITE_LOCKED: StoreBusy,
    sqlite3.SQLITE_PROTOCOL: StoreBusy,
    sqlite3.SQLITE_INTERRUPT: StoreBusy,
    sqlite3.SQLITE_NOMEM: StoreBusy,
    sqlite3.SQLITE_FULL: StoreFull,
    sqlite3.SQLITE_IOERR: StoreUnavailable,
    sqlite3.SQLITE_CANTOPEN: StoreUnavailable,
}


@contextmanager
def map_database_errors(file: str | None = None) -> Iterator[None]:
    """Raise errors of SQLAlchemy and its drivers as those of `midwatch.errors`.

    Args:
        file: The SQLite file, which tells whether an I/O error is a full disk.
    """
    try:
        yield
    except DBAPIError as error:
        raise map_database_error(error, file) from error
    except sqlite3.Error as error:  # of statements that the bare driver runs
        raise _from_sqlite(error, _one_line(error), file) from error
    except PoolTimeout as error:
        raise StoreBusy("all connections to the database are in use") from error
    except NoSuchModuleError as error:
        raise StoreRejected(str(error)) from error
    except StatementError as error:  # its own text has the statement and the values
        raise StoreRejected(f"a statement failed: {_one_line(error.orig)}") from error
    except SQLAlchemyError as error:
        raise StoreRejected(f"{type(error).__name__}: {error}") from error
    except OverflowError as error:  # SQLite's driver raises it bare
        raise StoreRejected(f"a number is too large: {error}") from error


def map_database_error(error: DBAPIError, file: str | None = None) -> MidwatchError:
    """Return the error for one of a driver. Statements and values stay out of the message."""
    original = error.orig
    if isinstance(original, sqlite3.Error):
        return _from_sqlite(original, _one_line(original), file)
    state = getattr(original, "sqlstate", None)
    if not state:
        return _without_state(error, _one_line(original))
    # The whole text would show the statement and, of a conflict, the values.
    diagnostics = getattr(original, "diag", None)
    text = _one_line(getattr(diagnostics, "message_primary", None) or original)
    if state[:2] in ("28", "3D"):
        return _login(text) or _with_hint(StoreRejected, text)
    for length in (5, 3, 2):
        if kind := _POSTGRES.get(state[:length]):
            return _with_hint(kind, text)
    return _with_hint(StoreRejected, text)


def _with_hint(kind: type[MidwatchError], text: str) -> MidwatchError:
    if kind is StoreRejected:
        hint = "check the setting `database` and the log of the database"
        return kind(f"the database refused: {text}", hint=hint)
    return kind(f"the database reported: {text}")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:300]


def _without_state(error: DBAPIError, text: str) -> MidwatchError:
    if login := _login(text):
        return login
    kind = _WITHOUT_STATE.get(type(error).__name__, StoreRejected)
    if error.connection_invalidated or kind is StoreUnavailable:
        return StoreUnavailable(f"the database does not answer: {text}")
    return _with_hint(kind, text)


def _login(text: str) -> MidwatchError | None:
    if any(part in text for part in _LOGIN_REFUSED):
        hint = "check the user and the password in `database`"
    elif re.search(r'\b(role|database) ".*" does not exist', text):
        hint = "create the database, or correct the setting `database`"
    else:
        return None
    return StoreRejected(f"the database refused the login: {text}", hint=hint)


def _from_sqlite(error: sqlite3.Error, text: str, file: str | None) -> MidwatchError:
    code = getattr(error, "sqlite_errorcode", 0)
    unclear = code & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
    if unclear and file and _disk_is_full(file):
        return StoreFull(f"the database's disk is full: {text}")
    if "no such table" in text or "no such column" in text:
        return SchemaMismatch(f"not a Midwatch database, or not up to date: {text}")
    return _with_hint(_SQLITE.get(code & 0xFF, StoreRejected), text)


def _disk_is_full(file: str) -> bool:
    try:
        return shutil.disk_usage(Path(file).parent).free < _FULL_BELOW
    except OSError:
        return False
