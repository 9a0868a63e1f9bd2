"""The one place where errors of the database drivers become ours."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ..errors import (
    MidwatchError,
    SchemaMismatch,
    StoreBusy,
    StoreFull,
    StoreRejected,
    StoreUnavailable,
)

_FULL_BELOW = 1 << 20
"""An I/O error on a disk with less free space than this many bytes is a full disk."""

# SQLSTATE classes and codes: PostgreSQL manual, appendix A.
_POSTGRES: dict[str, type[MidwatchError]] = {
    "08": StoreUnavailable,
    "57P": StoreUnavailable,
    "53300": StoreUnavailable,
    "53400": StoreUnavailable,
    "53100": StoreFull,
    "53200": StoreBusy,
    "40": StoreBusy,
    "55P03": StoreBusy,
    "57014": StoreBusy,
    "25P03": StoreBusy,
    "25P04": StoreBusy,
    "42P01": SchemaMismatch,
    "42703": SchemaMismatch,
    "58": StoreUnavailable,
}
# Primary result codes: sqlite.org/rescode.html.
_SQLITE: dict[int, type[MidwatchError]] = {
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
def translated(file: str | None = None) -> Iterator[None]:
    """Errors of SQLAlchemy and its drivers leave as ours. `file` is the SQLite file, if any."""
    try:
        yield
    except DBAPIError as error:
        raise translate(error, file) from error
    except PoolTimeout as error:
        raise StoreBusy("every connection to the database is in use") from error
    except NoSuchModuleError as error:
        raise StoreRejected(str(error)) from error
    except SQLAlchemyError as error:
        raise StoreRejected(f"{type(error).__name__}: {error}") from error


def translate(error: DBAPIError, file: str | None = None) -> MidwatchError:
    """Our error for one of a driver. Statements and values stay out of the message."""
    original = error.orig
    said = " ".join(str(original).split())[:300]
    if isinstance(original, sqlite3.Error):
        return _from_sqlite(original, said, file)
    state = getattr(original, "sqlstate", None)
    if state is None:
        # psycopg gives no state when the connection itself failed.
        kind = StoreUnavailable if _of_connection(error) else StoreRejected
        return _login(said) or kind(f"the database does not answer: {said}")
    for length in (5, 3, 2):
        if kind_of := _POSTGRES.get(state[:length]):
            return kind_of(f"the database says: {said}")
    return StoreRejected(f"the database refused: {said}")


def _of_connection(error: DBAPIError) -> bool:
    return error.connection_invalidated or type(error).__name__ in (
        "OperationalError",
        "InterfaceError",
        "InternalError",
    )


def _login(said: str) -> MidwatchError | None:
    if "password authentication failed" in said or "no pg_hba.conf entry" in said:
        return StoreRejected(
            f"the database refused the log-in: {said}",
            hint="check the user and the password in `database`",
        )
    if "does not exist" in said:
        return StoreRejected(
            f"the database refused the log-in: {said}",
            hint="create the database or correct `database`",
        )
    return None


def _from_sqlite(error: sqlite3.Error, said: str, file: str | None) -> MidwatchError:
    code = getattr(error, "sqlite_errorcode", 0)
    if code & 0xFF == sqlite3.SQLITE_IOERR and file and _disk_is_full(file):
        return StoreFull(f"the database's disk is full: {said}")
    if "no such table" in said or "no such column" in said:
        return SchemaMismatch(f"the database is not ours or not up to date: {said}")
    if kind := _SQLITE.get(code & 0xFF):
        return kind(f"the database says: {said}")
    return StoreRejected(
        f"the database refused: {said}", hint="check the file that `database` names"
    )


def _disk_is_full(file: str) -> bool:
    try:
        return shutil.disk_usage(Path(file).parent).free < _FULL_BELOW
    except OSError:
        return False
